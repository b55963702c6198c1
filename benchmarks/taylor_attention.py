"""Taylor attention against softmax attention: time, memory and decoding, per shape and length.

    python -m benchmarks.taylor_attention [--lengths 1024 4096 16384] [--shapes 2x16x64 2x64x64]
        [--json FILE] [--folder docs/results/taylor_attention]

Every measurement is a process of its own and the sides take turns (A B A B): neighbours on the
machine then slow all alike. Printed are medians over the turns and the load. Processor seconds
(summed over cores) suffer less than wall-clock seconds from a busy machine, so both are reported.
A side that cannot run is skipped with the reason. Sides:

    taylor      this package; the implementation `None` would take beyond the crossover. On a CPU
                the faster of one device and of one device per core with the heads shared out
    reference   this package, quadratic form
    softmax     jax.nn.dot_product_attention (on a GPU also `cudnn`)
    torch       scaled_dot_product_attention at its best: threads 1 or all, keys as they are or
                padded to the width of the values (it has a fused CPU kernel for equal widths only)
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from train import run_folder

SIDES = ("taylor", "reference", "softmax", "cudnn", "torch")
WARM_SECONDS = 0.3
MAX_SCORE_BYTES = 2 << 30  # a side that stores all scores is skipped beyond this
DECODE_TOKENS = (1, 1_000, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Causal self-attention in float32, or bfloat16 on a GPU."""

    lengths: tuple[int, ...] = (1024, 4096, 16384)
    """Tokens per sequence."""
    shapes: tuple[str, ...] = ("1x64x64", "2x16x64", "2x64x64", "4x8x64", "8x4x64")
    """ORDERxHxE: degree, width of a query, width of a value."""
    sides: tuple[str, ...] = SIDES
    """What to compare."""
    passes: tuple[str, ...] = ("forward", "both")
    """The forward pass, or forward and backward."""
    batch_size: int = 1
    """Sequences."""
    num_heads: int = 4
    """Heads of query, key and value."""
    repeats: int = 3
    """Turns of each side."""
    decode: bool = True
    """Also measure one token against a state."""
    json: Path | None = None
    """File for all measurements."""
    folder: Path | None = None
    """Folder for the table (README.md) and the plot (time.png)."""
    measure: str = ""
    """Used by the program itself: a measurement as JSON; it runs once and prints JSON."""


def main(config: Benchmark) -> None:
    """Fills the tables, or is one of the processes that do."""
    if config.measure:
        print(json.dumps(measure(config, **json.loads(config.measure))))
        return
    report: dict[str, Any] = {
        "command": "python -m benchmarks.taylor_attention " + " ".join(sys.argv[1:]),
        "commit": git_commit(),
        "cores": run_folder.available_cores(),
        "load_before": os.getloadavg()[0],
        "num_heads": config.num_heads,
        "rows": [],
        "decode": [],
    }
    for shape in config.shapes:
        for direction in config.passes:
            for length in config.lengths:
                report["rows"].append(_compare(config, shape, direction, length))
                report["load_after"] = os.getloadavg()[0]
                if config.json is not None:
                    config.json.write_text(json.dumps(report, indent=1) + "\n")
        if config.decode:
            what = {"shape": shape, "side": "decode", "direction": "forward", "length": 1}
            report["decode"].append({"shape": shape} | _in_process(config, what))
    report["load_after"] = os.getloadavg()[0]
    if config.json is not None:
        config.json.write_text(json.dumps(report, indent=1) + "\n")
    text = table(report)
    print(text)
    if config.folder is not None:
        config.folder.mkdir(parents=True, exist_ok=True)
        (config.folder / "README.md").write_text(text + "\n")
        plot(report, config.folder / "time.png")


def _compare(config: Benchmark, shape: str, direction: str, length: int) -> dict[str, Any]:
    """One row: the median over the turns of every side, or why it was skipped."""
    turns: dict[str, list[dict]] = {side: [] for side in config.sides}
    for _ in range(config.repeats):
        for side, done in turns.items():
            if done and "skipped" in done[0]:
                continue
            what = {"shape": shape, "side": side, "direction": direction, "length": length}
            done.append(_in_process(config, what))
            print(f"{shape} {direction} {length} {side}: {done[-1]}", file=sys.stderr)
    row: dict[str, Any] = {"shape": shape, "direction": direction, "length": length}
    for side, done in turns.items():
        if "skipped" in done[0]:
            row[side] = done[0]
        else:
            row[side] = {k: statistics.median(d[k] for d in done) for k in done[0]}
    return row


def measure(config: Benchmark, *, shape: str, side: str, direction: str, length: int) -> dict:
    """Milliseconds (wall clock and processor), MiB of temporaries, useful GFLOP/s; or `skipped`."""
    order, head_dim, value_dim = map(int, shape.split("x"))
    heads = config.batch_size * config.num_heads
    if side in ("reference", "softmax") and 4 * heads * length**2 > MAX_SCORE_BYTES:
        return {"skipped": "stores all scores"}
    sizes = config.batch_size, config.num_heads, length, head_dim, value_dim
    if side == "torch":
        return measure_torch(*sizes, both=direction == "both")
    import jax

    from kernels import taylor_attention as kernel

    if side == "taylor":  # XLA splits no small product among cores, but each device has its thread
        jax.config.update("jax_num_cpu_devices", math.gcd(config.num_heads, os.cpu_count() or 1))
    if side == "decode":
        return measure_decode(config, order, head_dim, value_dim)
    on_gpu = jax.default_backend() == "gpu"
    if side == "cudnn" and (not on_gpu or head_dim != value_dim):
        return {"skipped": "no GPU" if not on_gpu else "query and value differ in width"}
    dtype = "bfloat16" if on_gpu else "float32"
    leading = config.batch_size, length, config.num_heads
    rng_keys = jax.random.split(jax.random.key(0), 4)
    widths = head_dim, head_dim, value_dim, value_dim
    query, key, value, cotangent = (
        jax.random.normal(rng_key, (*leading, width), dtype)
        for rng_key, width in zip(rng_keys, widths, strict=True)
    )

    def attend(query, key, value):
        if side in ("softmax", "cudnn"):
            if head_dim < value_dim:  # it wants one width
                pad = ((0, 0), (0, 0), (0, 0), (0, value_dim - head_dim))
                query, key = jax.numpy.pad(query, pad), jax.numpy.pad(key, pad)
            implementation = "cudnn" if side == "cudnn" else None
            return jax.nn.dot_product_attention(
                query, key, value, is_causal=True, implementation=implementation
            )
        implementation = "reference"
        if side == "taylor":
            platform = kernel.api.PLATFORM_IMPLEMENTATIONS.get(jax.default_backend())
            implementation = "xla" if platform is None else platform[0]
        return kernel.taylor_attention(
            query,
            key,
            value,
            coefficients=kernel.taylor_coefficients(order),
            implementation=implementation,
        )

    def run(query, key, value, cotangent):
        if direction == "forward":
            return attend(query, key, value)
        return jax.vjp(attend, query, key, value)[1](cotangent)

    results = []
    by_core = side == "taylor" and jax.default_backend() == "cpu"
    for num_devices in sorted({1, jax.device_count() if by_core else 1}):
        mesh = jax.make_mesh(
            (num_devices,),
            ("heads",),
            axis_types=(jax.sharding.AxisType.Auto,),
            devices=jax.devices()[:num_devices],
        )
        by_heads = jax.sharding.PartitionSpec(None, None, "heads")
        arguments = jax.device_put(
            (query, key, value, cotangent), jax.sharding.NamedSharding(mesh, by_heads)
        )
        mapped = jax.shard_map(run, mesh=mesh, in_specs=(by_heads,) * 4, out_specs=by_heads)
        compiled = jax.jit(mapped if num_devices > 1 else run).lower(*arguments).compile()
        timed = _timed(lambda: jax.block_until_ready(compiled(*arguments)))  # noqa: B023
        temporary = num_devices * compiled.memory_analysis().temp_size_in_bytes
        results.append(timed | {"devices": num_devices, "temporary_mebibytes": temporary / 2**20})
    result = min(results, key=lambda result: result["milliseconds"])
    chunk = kernel.api.DEFAULT_CHUNK_SIZE
    per_token = (kernel.crossover_length(head_dim, value_dim, order, chunk)) * (
        head_dim + value_dim + order
    )
    if side != "taylor":
        per_token = length * (head_dim + value_dim)
    operations = heads * length * per_token * (3.5 if direction == "both" else 1)
    result["gigaflops"] = operations / result["milliseconds"] / 1e6
    return result


def measure_torch(batch_size, num_heads, length, head_dim, value_dim, *, both: bool) -> dict:
    """The fastest of the settings that PyTorch offers."""
    try:
        import torch
    except ImportError:
        return {"skipped": "torch is not installed"}
    results = []
    for width in sorted({head_dim, value_dim}):
        if width != value_dim and 4 * batch_size * num_heads * length**2 > MAX_SCORE_BYTES:
            continue  # not the fused kernel: stores all scores
        shape = batch_size, num_heads, length
        query, key = (torch.randn(*shape, width, requires_grad=both) for _ in range(2))
        value = torch.randn(*shape, value_dim, requires_grad=both)
        cotangent = torch.randn(*shape, value_dim)

        def run(query=query, key=key, value=value, cotangent=cotangent):
            attend = torch.nn.functional.scaled_dot_product_attention
            out = attend(query, key, value, is_causal=True, scale=head_dim**-0.5)
            if both:
                out.backward(cotangent)

        for threads in {1, os.cpu_count() or 1}:
            torch.set_num_threads(threads)
            results.append(_timed(run))
    return min(results, key=lambda result: result["milliseconds"])


def measure_decode(config: Benchmark, order: int, head_dim: int, value_dim: int) -> dict:
    """Milliseconds of a token after 1, 1,000, 1,000,000 tokens, and bytes of state per head."""
    import jax
    import jax.numpy as jnp

    from kernels import taylor_attention as kernel

    shape = config.batch_size, config.num_heads
    state = kernel.empty_state(
        batch_size=shape[0],
        num_kv_heads=shape[1],
        head_dim=head_dim,
        value_dim=value_dim,
        order=order,
    )
    query, key = (0.1 * jnp.ones((*shape, head_dim)) for _ in range(2))
    value = jnp.ones((*shape, value_dim))
    coefficients = kernel.taylor_coefficients(order)
    step = jax.jit(lambda *arrays: kernel.taylor_attention_step(*arrays, coefficients=coefficients))
    result = {}
    for tokens in DECODE_TOKENS:  # a state of so many equal keys
        one = kernel.fold(state, key[:, None], value[:, None])
        many = jax.tree.map(lambda x: x * tokens, one)  # noqa: B023
        timed = _timed(lambda: jax.block_until_ready(step(query, key, value, many)))  # noqa: B023
        result[f"milliseconds_after_{tokens}"] = timed["milliseconds"]
    num_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return result | {"state_bytes_per_head": num_bytes // (shape[0] * shape[1])}


def _timed(run: Callable[[], object]) -> dict[str, float]:
    run()
    wall: list[float] = []
    processor: list[float] = []
    start = time.monotonic()
    while len(wall) < 3 or (time.monotonic() - start < WARM_SECONDS):
        before = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - before[0])
        processor.append(time.process_time() - before[1])
    return {
        "milliseconds": 1e3 * statistics.median(wall),
        "processor_milliseconds": 1e3 * statistics.median(processor),
    }


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [
        "# Taylor attention against softmax attention",
        "",
        f"`{report['command']}`, commit {report['commit']}, {report['cores']} cores, load "
        f"{report['load_before']:.1f} to {report['load_after']:.1f}, {report['num_heads']} heads.",
        "Milliseconds of wall clock / of processor; `times`: torch over taylor, both ways. The "
        "shape is order x H x E.",
        "",
    ]
    sides = [
        side for side in SIDES if any("milliseconds" in r.get(side, {}) for r in report["rows"])
    ]
    lines.append("| shape | pass | tokens | " + " | ".join(sides) + " | times | MiB |")
    lines.append("| --- " * (len(sides) + 5) + "|")
    for row in report["rows"]:
        cells = []
        for side in sides:
            cell = row.get(side, {})
            cells.append(
                f"{cell['milliseconds']:.1f} / {cell['processor_milliseconds']:.1f}"
                if "milliseconds" in cell
                else cell.get("skipped", "")
            )
        ours, theirs = row.get("taylor", {}), row.get("torch", {})
        times = ""
        if "milliseconds" in ours and "milliseconds" in theirs:
            times = " / ".join(
                f"{theirs[unit] / ours[unit]:.1f}"
                for unit in ("milliseconds", "processor_milliseconds")
            )
        memory = f"{ours.get('temporary_mebibytes', 0):.0f}"
        start = f"| {row['shape']} | {row['direction']} | {row['length']} | "
        lines.append(start + " | ".join([*cells, times, memory]) + " |")
    if report["decode"]:
        names = [f"ms after {tokens:,}" for tokens in DECODE_TOKENS]
        lines += ["", "One token against a state:", ""]
        lines.append("| shape | " + " | ".join(names) + " | state bytes per head |")
        lines.append("| --- " * (len(names) + 2) + "|")
        for row in report["decode"]:
            values = [f"{row[f'milliseconds_after_{tokens}']:.3f}" for tokens in DECODE_TOKENS]
            cells = [row["shape"], *values, f"{row['state_bytes_per_head']:,}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Time against length, one panel per shape."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shapes = list(dict.fromkeys(row["shape"] for row in report["rows"]))
    figure, axes = plt.subplots(1, len(shapes), figsize=(3.2 * len(shapes), 3), squeeze=False)
    last = report["rows"][-1]["direction"]
    for axis, shape in zip(axes[0], shapes, strict=True):
        for side in SIDES:
            points = [
                (row["length"], row[side]["processor_milliseconds"])
                for row in report["rows"]
                if row["shape"] == shape
                and row["direction"] == last
                and "milliseconds" in row.get(side, {})
            ]
            if points:
                axis.loglog(*zip(*points, strict=True), marker="o", label=side)
        axis.set(title=shape, xlabel="tokens", ylabel="processor ms")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def git_commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=run_folder.REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def _in_process(config: Benchmark, what: dict[str, Any]) -> dict[str, Any]:
    settings = [f"--{n.replace('_', '-')}={asdict(config)[n]}" for n in ("batch_size", "num_heads")]
    command = [sys.executable, "-m", "benchmarks.taylor_attention", *settings]
    done = subprocess.run(
        [*command, f"--measure={json.dumps(what)}"],
        cwd=run_folder.REPOSITORY_ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        return {"skipped": "failed: " + done.stderr.strip().splitlines()[-1][:80]}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
