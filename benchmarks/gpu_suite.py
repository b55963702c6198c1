"""Everything one GPU can say about Taylor attention, in one call of a few minutes.

    python -m benchmarks.gpu_suite --out runs/gpu_suite        # NVIDIA Hopper
    python -m benchmarks.gpu_suite --out /tmp/suite --smoke    # tiny shapes, anywhere

Sections: parity with the reference in float32, block sizes, the kernels one by one, the goal shapes
beside softmax attention (cuDNN), one decoding step. Each measurement is guarded: what fails is a
row with its error, and the rest goes on; nothing new begins after `--minutes`. Writes report.json
and report.md. Needs jax and numpy alone.

Times are medians over rounds of calls enqueued together, forward and backward compiled as one
program; useful TFLOP/s count P exact features and causal halves (`operations`), not what is padded.
Register spills: run with MOSAIC_GPU_DUMP_PTXAS=1 in the environment.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import statistics
import subprocess
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np

from kernels import taylor_attention as taylor
from kernels.taylor_attention import (
    mosaic_gpu,
    mosaic_gpu_chunk,
    mosaic_gpu_state,
    mosaic_gpu_tiles,
    reference,
    xla,
)

IMPLEMENTATIONS = {
    "reference": reference.taylor_attention,
    "xla": xla.taylor_attention,
    "mosaic_gpu": mosaic_gpu.taylor_attention,
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """Causal attention of N heads, every head its own key."""

    order: int
    head_dim: int
    value_dim: int
    num_heads: int
    length: int
    batch_size: int = 1
    goal_milliseconds: float | None = None

    def __str__(self):
        return (
            f"p={self.order} H={self.head_dim} E={self.value_dim} N={self.num_heads} "
            f"B={self.batch_size} T={self.length}"
        )

    def operations(self, backward: bool, chunk: int = 1024) -> float:
        """Multiplications and additions that the linear form needs at this chunk."""
        features = taylor.num_features(self.head_dim, self.order)
        per_token = 4 * features * (self.value_dim + 1)
        per_token += min(chunk, self.length) * (self.head_dim + self.value_dim)
        return (3.5 if backward else 1) * per_token * self.length * self.num_heads * self.batch_size

    def softmax_operations(self, backward: bool) -> float:
        """The same for causal softmax attention with keys as wide as values."""
        pairs = self.batch_size * self.num_heads * self.length**2
        return (3.5 if backward else 1) * pairs * 2 * self.value_dim

    def inputs(self, dtype=jnp.bfloat16, key_dim: int | None = None):
        """Query and key on the sphere of radius sqrt(2), so that scores stay within +-2."""
        rng = np.random.default_rng(0)
        heads = (self.batch_size, self.length, self.num_heads)
        query, key = (rng.normal(size=(*heads, key_dim or self.head_dim)) for _ in range(2))
        query, key = (x * np.sqrt(2 / (x**2).sum(-1, keepdims=True)) for x in (query, key))
        value = rng.normal(size=(*heads, self.value_dim))
        return tuple(jnp.asarray(x, dtype) for x in (query, key, value))


GOALS = (
    Shape(2, 64, 64, 8, 65_536, goal_milliseconds=16.0),
    Shape(4, 8, 128, 16, 8_192),
    Shape(4, 8, 128, 16, 65_536),
    Shape(8, 4, 128, 16, 8_192),
    Shape(8, 4, 128, 16, 65_536),
    Shape(2, 16, 128, 16, 8_192),
    Shape(2, 16, 128, 16, 65_536),
)
PARITY = tuple(
    Shape(order, width, value_dim, 2, length)
    for order, width, value_dim in (
        (0, 8, 64), (1, 64, 64), (2, 64, 64), (2, 16, 128), (3, 16, 64), (4, 8, 128), (6, 4, 64),
        (8, 4, 128), (2, 128, 128),
    )
    for length in (1000, 2500)
)  # fmt: skip
SMOKE_GOALS = (Shape(2, 8, 8, 2, 512, goal_milliseconds=1e6), Shape(4, 4, 8, 2, 256))
SMOKE_PARITY = (Shape(2, 8, 8, 2, 200), Shape(4, 4, 8, 1, 100))
BLOCKS = tuple(
    mosaic_gpu.BlockSizes(**changed)
    for changed in (
        {},
        {"chunk": 512},
        {"chunk": 2048},
        {"features": 128},
        {"stages": 3},
        {"features": 128, "stages": 4},
        {"keys": 64},
        {"backward_keys": 128},
        {"warpgroups": 3, "chunk": 1152, "keys": 64},
        {"warpgroups": 1, "keys": 64},
    )
)


class Suite:
    """The rows of the report, and the clock."""

    def __init__(self, arguments):
        self.smoke = arguments.smoke
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.out = arguments.out
        self.rows: list[dict] = []
        self.blocks = mosaic_gpu.BlockSizes()  # the best found so far
        self.out.mkdir(parents=True, exist_ok=True)

    def measure(self, section: str, what: str, function, **facts) -> dict:
        """One guarded row; `function` returns more of its fields."""
        row = {"section": section, "what": what, **facts}
        if time.monotonic() > self.deadline:
            row["error"] = "not begun: out of time"
        else:
            try:
                row |= function()
            except Exception as error:  # noqa: BLE001 (one failure must not end the rest)
                row["error"] = f"{type(error).__name__}: {str(error)[:400]}"
                row["traceback"] = traceback.format_exc()[-2000:]
        self.rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "traceback"}), flush=True)
        self.save()  # a killed run leaves what it has
        return row

    def save(self):
        """Writes both reports."""
        report = {"schema_version": 1, "environment": environment(), "rows": self.rows}
        (self.out / "report.json").write_text(json.dumps(report, indent=1))
        lines = [f"`{json.dumps(environment())}`"]
        for section in dict.fromkeys(row["section"] for row in self.rows):
            rows = [row for row in self.rows if row["section"] == section]
            fields = dict.fromkeys(f for row in rows for f in row)
            fields = [f for f in fields if f not in ("section", "traceback")]
            lines += ["", f"## {section}", "", f"| {' | '.join(fields)} |"]
            lines += ["|" + " --- |" * len(fields)]
            for row in rows:
                cells = [_cell(row.get(f)) for f in fields]
                lines.append(f"| {' | '.join(cells)} |")
        (self.out / "report.md").write_text("\n".join(lines) + "\n")

    def time(self, function, *arguments, operations: float | None = None) -> dict:
        """Median milliseconds of a call of the compiled function."""
        start = time.monotonic()
        compiled = jax.jit(function).lower(*arguments).compile()
        compile_seconds = time.monotonic() - start
        jax.block_until_ready(compiled(*arguments))
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        once = time.perf_counter() - start
        calls = max(1, min(50, int(0.1 / once)))  # enqueued together: hides the launch
        seconds = []
        for _ in range(2 if self.smoke else 7):
            start = time.perf_counter()
            for _ in range(calls):
                out = compiled(*arguments)
            jax.block_until_ready(out)
            seconds.append((time.perf_counter() - start) / calls)
        median = statistics.median(seconds)
        row = {
            "milliseconds": round(1e3 * median, 4),
            "spread": round((max(seconds) - min(seconds)) / median, 3),
            "compile_seconds": round(compile_seconds, 1),
        }
        memory = compiled.memory_analysis()
        if memory is not None:
            row["temporary_mebibytes"] = round(memory.temp_size_in_bytes / 2**20, 1)
        if operations:
            row["tflops"] = round(operations / median / 1e12, 2)
        return row


@functools.cache
def environment() -> dict:
    device = jax.devices()[0]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "device": device.device_kind,
        "compute_capability": str(getattr(device, "compute_capability", "")),
        "jax": jax.__version__,
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def attend(implementation, shape: Shape, query, key, value, blocks=None, wide=False):
    """Output [B, T, N, E] of one implementation, called past `api` so that blocks can be given."""
    coefficients = jnp.asarray(taylor.minimax_coefficients(shape.order, 2.0), jnp.float32)
    options = {"blocks": blocks} if implementation == "mosaic_gpu" else {}
    (numerator, denominator), _ = IMPLEMENTATIONS[implementation](
        query[:, :, :, None],
        key,
        value,
        coefficients=coefficients,
        log_decay_K=None,
        runs=None,
        initial_state=None,
        return_state=False,
        chunk_size=None,
        precision=jax.lax.Precision.HIGHEST if wide else None,
        **options,
    )
    return (numerator / denominator[..., None])[:, :, :, 0].astype(value.dtype)


def with_gradients(function, query, key, value):
    """The output and the gradients of its product with the value."""
    out, vjp = jax.vjp(function, query, key, value)
    return out, *vjp(value)


def parity(suite: Suite):
    """Largest error of output and gradients over the largest entry, against float32 O(T^2)."""
    for shape in SMOKE_PARITY if suite.smoke else PARITY:
        want = functools.cache(functools.partial(_gradients, "reference", shape, wide=True))
        for implementation in IMPLEMENTATIONS:  # the reference shows what rounding alone costs
            compare = functools.partial(_errors, implementation, shape, want)
            suite.measure("parity", str(shape), compare, implementation=implementation)


def _gradients(implementation: str, shape: Shape, wide: bool) -> list[np.ndarray]:
    function = functools.partial(attend, implementation, shape, wide=wide)
    arguments = shape.inputs()
    if wide:
        arguments = tuple(x.astype(jnp.float32) for x in arguments)
    out = jax.jit(functools.partial(with_gradients, function))(*arguments)
    return [np.asarray(x.astype(jnp.float32)) for x in out]


def _errors(implementation: str, shape: Shape, want) -> dict:
    got = _gradients(implementation, shape, wide=False)
    errors = {
        name: float(f"{np.abs(g - w).max() / np.abs(w).max():.2e}")
        for name, g, w in zip(("out", "dq", "dk", "dv"), got, want(), strict=True)
    }
    return errors | {"passes": max(errors.values()) <= 2e-2}  # NaN does not pass


def tuning(suite: Suite):
    """Forward and backward of the first goal for several block sizes; the best are kept."""
    shape = (SMOKE_GOALS if suite.smoke else GOALS)[0]
    best = None
    for blocks in BLOCKS[:2] if suite.smoke else BLOCKS:
        function = functools.partial(attend, "mosaic_gpu", shape, blocks=blocks)
        row = suite.measure(
            "block sizes",
            str(shape),
            lambda function=function: suite.time(
                functools.partial(with_gradients, function),
                *shape.inputs(),
                operations=shape.operations(backward=True),
            ),
            **dataclasses.asdict(blocks),
        )
        milliseconds = row.get("milliseconds")
        if milliseconds and (best is None or milliseconds < best):
            best, suite.blocks = milliseconds, blocks


def kernels(suite: Suite):
    """Each kernel alone on the first goal: where the time goes."""
    shape = (SMOKE_GOALS if suite.smoke else GOALS)[0]
    blocks = suite.blocks
    if shape.length % blocks.chunk:
        blocks = mosaic_gpu.BlockSizes(chunk=256)
    plan = mosaic_gpu_tiles.plan(shape.head_dim, shape.order, blocks.features, blocks.warpgroups)
    heads, length = shape.batch_size * shape.num_heads, shape.length
    query, key, value = (
        x.transpose(0, 2, 1, 3).reshape(heads, length, -1).astype(jnp.float32)
        for x in shape.inputs()
    )
    width = -(-shape.value_dim // 64) * 64
    query, key = (jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[-1] % 16))) for x in (query, key))
    value = jnp.pad(value, ((0, 0), (0, 0), (0, width - value.shape[-1])))
    transposed = key[..., : shape.head_dim].swapaxes(1, 2)
    chunked = transposed.reshape(heads, shape.head_dim, -1, blocks.chunk).swapaxes(1, 2)
    left, right = plan.left(chunked).astype(jnp.bfloat16), plan.right(transposed)
    state = jnp.ones(
        (heads, length // blocks.chunk, plan.num_tiles, width, plan.tile), jnp.bfloat16
    )
    spec = mosaic_gpu_state.Spec(plan, blocks, 1)
    narrow = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    scalars = jnp.ones((heads, shape.order + 2), jnp.float32)
    start = jnp.zeros((heads, length), jnp.int32)
    chunk_spec = mosaic_gpu_chunk.Spec(blocks, shape.order, 1, False, False)
    features = taylor.num_features(shape.head_dim, shape.order)
    through_state = 2 * features * shape.value_dim * length * heads
    in_chunk = 2 * length * heads * (blocks.chunk / 2)
    right, wide_value = right.astype(jnp.bfloat16), narrow[2]
    gradients = (scalars, start, wide_value, jnp.ones((heads, length), jnp.float32))
    h, e = shape.head_dim, shape.value_dim
    cases = {
        "state sums": (mosaic_gpu_state._sums, (left, right, wide_value), through_state),
        "state read": (mosaic_gpu_state._read, (left, right, state), through_state),
        "state slopes": (mosaic_gpu_state._slopes, (left, right, wide_value, state), through_state),
        "chunk sums": (mosaic_gpu_chunk._sums, (*narrow, scalars, start), in_chunk * (h + e)),
        "chunk dq": (
            lambda *a: mosaic_gpu_chunk._query_gradient(*a, False)[0],
            (*narrow, *gradients),
            in_chunk * (2 * h + e),
        ),
        "chunk dk, dv": (
            mosaic_gpu_chunk._key_value_gradient,
            (*narrow, *gradients),
            in_chunk * (2 * h + 2 * e),
        ),
    }
    for name, (kernel, arguments, operations) in cases.items():
        specialised = functools.partial(kernel, chunk_spec if "chunk" in name else spec)
        suite.measure(
            "kernels",
            f"{name}, {shape}",
            lambda f=specialised, a=arguments, o=operations: suite.time(f, *a, operations=o),
        )
    added = state.astype(jnp.float32)
    gates = jnp.ones(added.shape[:2], jnp.float32)
    weights = jnp.ones((heads, plan.num_tiles, 1, plan.tile), jnp.float32)
    for name, kernel in (
        ("prefix", mosaic_gpu_state._prefix),
        ("prefix backward", mosaic_gpu_state._prefix_backward),
    ):
        run = functools.partial(kernel, dtype=jnp.bfloat16)
        suite.measure(
            "kernels",
            f"{name}, {shape}",
            lambda f=run: suite.time(f, added, added[:, 0], gates, weights),
        )


def goals(suite: Suite):
    """The shapes of the goals, beside softmax attention with keys as wide as values."""
    for shape in SMOKE_GOALS if suite.smoke else GOALS:
        query, key, value = shape.inputs()
        wide_query, wide_key, _ = shape.inputs(key_dim=shape.value_dim)
        softmax = functools.partial(
            jax.nn.dot_product_attention,
            is_causal=True,
            implementation="xla" if suite.smoke else "cudnn",
        )
        cases = {
            f"softmax ({'xla' if suite.smoke else 'cudnn'})": (
                softmax, (wide_query, wide_key, value), shape.softmax_operations
            ),
            "xla": (functools.partial(attend, "xla", shape), (query, key, value), shape.operations),
            "mosaic_gpu": (
                functools.partial(attend, "mosaic_gpu", shape, blocks=suite.blocks),
                (query, key, value),
                shape.operations,
            ),
        }  # fmt: skip
        for (name, case), backward in itertools.product(cases.items(), (False, True)):
            suite.measure(
                "goals",
                str(shape),
                functools.partial(_time_goal, suite, shape, *case, backward),
                implementation=name,
                direction="forward + backward" if backward else "forward",
            )


def _time_goal(suite: Suite, shape: Shape, function, arguments, operations, backward) -> dict:
    if backward:
        function = functools.partial(with_gradients, function)
    row = suite.time(function, *arguments, operations=operations(backward))
    goal = shape.goal_milliseconds
    if backward and goal:
        row |= {"goal": goal, "reached": row["milliseconds"] <= goal}
    return row


def decoding(suite: Suite):
    """One token against a state: constant in the tokens seen."""
    for shape in SMOKE_GOALS if suite.smoke else (GOALS[0], GOALS[1], GOALS[3], GOALS[5]):
        for batch_size in (1, 2) if suite.smoke else (1, 64):
            query, key, value = (jnp.repeat(x[:, 0], batch_size, axis=0) for x in shape.inputs())
            state = taylor.empty_state(
                batch_size=batch_size,
                num_kv_heads=shape.num_heads,
                head_dim=shape.head_dim,
                value_dim=shape.value_dim,
                order=shape.order,
            )
            step = functools.partial(
                taylor.taylor_attention_step,
                coefficients=taylor.minimax_coefficients(shape.order, 2.0),
            )
            suite.measure(
                "decoding step",
                f"{shape}, {batch_size} texts",
                lambda s=step, a=(query, key, value, state): suite.time(s, *a),
            )


def main():
    """Runs the sections and writes the reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the reports")
    parser.add_argument("--minutes", type=float, default=7.5, help="nothing begins after this")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to try the suite itself")
    suite = Suite(parser.parse_args())
    for section in (parity, tuning, kernels, goals, decoding):
        try:
            section(suite)
        except Exception:  # noqa: BLE001 (as above: preparing a section may fail, too)
            suite.rows.append(
                {"section": section.__name__, "error": traceback.format_exc()[-2000:]}
            )
            suite.save()
    failed = sum("error" in row for row in suite.rows)
    print(f"{len(suite.rows)} rows, {failed} with an error: {suite.out / 'report.md'}")


def _cell(value) -> str:
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")[:120]


if __name__ == "__main__":
    main()
