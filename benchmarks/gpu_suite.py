"""Everything one GPU can say about Taylor attention, in one call of a few minutes.

    python -m benchmarks.gpu_suite --out runs/gpu_suite        # NVIDIA Hopper
    python -m benchmarks.gpu_suite --out /tmp/suite --smoke    # tiny shapes, anywhere
    python -m benchmarks.gpu_suite --out DIR --sections goals decoding

Sections: parity with the reference in float32, block sizes, the kernels one by one, the goal shapes
beside softmax attention (cuDNN), one decoding step. Writes report.json and report.md. Needs jax
and numpy alone.

Every row is a process of its own. Twice as many as there are cores compile side by side, which
takes most of the time; then they are measured one after another, alone. What fails is a row with
its error, and the rest goes on; nothing new begins after `--minutes`.

Times are medians over rounds of calls enqueued together, forward and backward compiled as one
program; useful TFLOP/s count P exact features and causal halves (`operations`), not what is padded.
Register spills: run with MOSAIC_GPU_DUMP_PTXAS=1 in the environment.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

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
Measurement = Callable[[], dict[str, Any]]


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
        heads = (self.batch_size, self.length, self.num_heads)
        query_key, key_key, value_key = jax.random.split(jax.random.key(0), 3)

        def on_sphere(rng_key):
            x = jax.random.normal(rng_key, (*heads, key_dim or self.head_dim))
            return x * jnp.sqrt(2 / jnp.square(x).sum(-1, keepdims=True))

        value = jax.random.normal(value_key, (*heads, self.value_dim))
        inputs = on_sphere(query_key), on_sphere(key_key), value
        return tuple(x.astype(dtype) for x in inputs)


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
    Shape(order, width, value_dim, 2, 2500)
    for order, width, value_dim in (
        (0, 8, 64), (1, 64, 64), (2, 64, 64), (2, 16, 128), (3, 16, 64), (4, 8, 128), (6, 4, 64),
        (8, 4, 128), (2, 128, 128),
    )
)  # fmt: skip
SMOKE_GOALS = (Shape(2, 8, 8, 2, 2048, goal_milliseconds=1e6),)
SMOKE_PARITY = (Shape(4, 4, 8, 1, 100),)
BLOCKS: tuple[tuple[Shape, dict[str, int]], ...] = (
    (GOALS[0], {"chunk": 2048}),
    (GOALS[0], {"columns": 128}),
    (GOALS[0], {"warpgroups": 3, "chunk": 1152, "keys": 64}),
    *(
        (dataclasses.replace(shape, length=length), {"chunk": chunk})
        for shape in (GOALS[0], GOALS[1], GOALS[3], GOALS[5])
        for length in (4096, 8192)
        for chunk in (1024, length)
    ),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: `prepare(*arguments)` compiles, and returns the measurement, a function of nothing
    that returns the other fields.
    """

    section: str
    what: str
    prepare: Callable[..., Measurement]
    arguments: tuple
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Program:
    """A compiled function; its arguments are made when it first runs.

    Args:
      make_arguments: a function of nothing, which is only traced here.
    """

    def __init__(self, function, make_arguments):
        start = time.monotonic()
        self.make_arguments = make_arguments
        shapes = jax.eval_shape(make_arguments)
        self.compiled = jax.jit(function).lower(*shapes).compile()
        self.compile_seconds = time.monotonic() - start

    def __call__(self):
        return self.compiled(*self.make_arguments())

    def time(self, *, rounds: int = 7, operations: float | None = None) -> dict[str, Any]:
        """Median milliseconds of a call."""
        arguments = jax.block_until_ready(self.make_arguments())
        jax.block_until_ready(self.compiled(*arguments))
        start = time.perf_counter()
        jax.block_until_ready(self.compiled(*arguments))
        once = time.perf_counter() - start
        calls = max(1, min(50, int(0.1 / once)))  # enqueued together: hides the launch
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(calls):
                out = self.compiled(*arguments)
            jax.block_until_ready(out)
            seconds.append((time.perf_counter() - start) / calls)
        median = statistics.median(seconds)
        row = {
            "milliseconds": round(1e3 * median, 4),
            "spread": round((max(seconds) - min(seconds)) / median, 3),
            "compile_seconds": round(self.compile_seconds, 1),
        }
        memory = self.compiled.memory_analysis()
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


def parity(shape: Shape, implementation: str) -> Measurement:
    """Largest and root mean square error of output and gradients, relative to those of the float32
    form in O(T^2). For the Hopper kernels also with a single chunk: the quadratic form in bfloat16.
    """
    programs = {"": _gradients(shape, implementation)}
    if implementation == "mosaic_gpu":
        one_chunk = mosaic_gpu.BlockSizes(chunk=-(-shape.length // 128) * 128)
        programs["one_chunk_"] = _gradients(shape, implementation, blocks=one_chunk)
    wide = _gradients(shape, "reference", wide=True)

    def measure():
        want = [np.asarray(x, np.float32) for x in wide()]
        row: dict[str, Any] = {}
        for prefix, program in programs.items():
            got = [np.asarray(x.astype(jnp.float32)) for x in program()]
            largest, mean = {}, []
            for name, g, w in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
                error, size = np.abs(g - w), np.maximum(np.abs(w), 1e-30)  # order 0: dq = dk = 0
                largest[name] = float(f"{error.max() / size.max():.2e}")
                mean.append(float(np.sqrt(np.square(error).mean() / np.square(size).mean())))
            row |= {prefix + name: error for name, error in largest.items() if not prefix}
            row[prefix + "rms"] = float(f"{max(mean):.2e}")
            row["passes"] = max(largest.values()) <= 2e-2  # NaN does not pass
        if "one_chunk_rms" in row:
            row["over_quadratic"] = round(row["rms"] / row["one_chunk_rms"], 2)
        return row

    return measure


def _gradients(shape: Shape, implementation: str, *, wide: bool = False, blocks=None) -> Program:
    function = functools.partial(attend, implementation, shape, wide=wide, blocks=blocks)
    inputs = functools.partial(shape.inputs, jnp.bfloat16)
    if wide:  # the same numbers
        inputs = lambda: tuple(x.astype(jnp.float32) for x in shape.inputs())  # noqa: E731
    return Program(functools.partial(with_gradients, function), inputs)


def goal(shape: Shape, side: str, backward: bool, blocks: dict[str, int], smoke: bool):
    """One goal shape by one implementation, or by softmax with keys as wide as values."""
    if side == "softmax":
        implementation = "xla" if smoke else "cudnn"
        function: Callable = functools.partial(
            jax.nn.dot_product_attention, is_causal=True, implementation=implementation
        )
        inputs = functools.partial(shape.inputs, key_dim=shape.value_dim)
        operations = shape.softmax_operations(backward)
    else:
        sizes = mosaic_gpu.BlockSizes(**blocks) if blocks else None
        function = functools.partial(attend, side, shape, blocks=sizes)
        inputs, operations = shape.inputs, shape.operations(backward)
    if backward:
        function = functools.partial(with_gradients, function)
    program = Program(function, inputs)

    def measure():
        row = program.time(rounds=2 if smoke else 7, operations=operations)
        if backward and side != "softmax" and shape.goal_milliseconds:
            row |= {
                "goal": shape.goal_milliseconds,
                "reached": row["milliseconds"] <= shape.goal_milliseconds,
            }
        return row

    return measure


def kernel(shape: Shape, name: str, blocks: dict[str, int]) -> Measurement:
    """A kernel alone: where the time goes."""
    sizes = mosaic_gpu._fitting(
        mosaic_gpu.BlockSizes(**blocks), shape.head_dim, shape.value_dim, shape.order
    )
    assert sizes is not None
    plan = mosaic_gpu_tiles.plan(shape.head_dim, shape.order, sizes.features, sizes.warpgroups)
    assert plan is not None
    heads, length = shape.batch_size * shape.num_heads, shape.length // sizes.chunk * sizes.chunk
    num_chunks = length // sizes.chunk
    key_dim, value_dim = -(-shape.head_dim // 16) * 16, -(-shape.value_dim // 64) * 64
    tiles = (plan.num_tiles, value_dim, plan.tile)

    def normal(*dims, dtype=jnp.bfloat16):
        return jax.random.normal(jax.random.key(0), dims, dtype)

    left = functools.partial(normal, heads, num_chunks, plan.num_lefts, sizes.chunk)
    right = functools.partial(normal, heads, length, plan.right_width)
    key = functools.partial(normal, heads, length, key_dim)
    value = functools.partial(normal, heads, length, value_dim)
    states = functools.partial(normal, heads, num_chunks, *tiles)
    state = functools.partial(normal, heads, *tiles, dtype=jnp.float32)
    gates = functools.partial(jnp.ones, (heads, num_chunks))
    weights = functools.partial(jnp.ones, (heads, plan.num_tiles, 1, plan.tile))
    scalars = functools.partial(jnp.ones, (heads, shape.order + 2))
    start = functools.partial(jnp.zeros, (heads, length), jnp.int32)
    ones = functools.partial(jnp.ones, (heads, length))

    state_spec = mosaic_gpu_state.Spec(plan, sizes, 1)
    chunk_spec = mosaic_gpu_chunk.Spec(sizes, shape.order, 1, False, False)
    prefix = functools.partial(mosaic_gpu_state._prefix, dtype=jnp.bfloat16)
    prefix_backward = functools.partial(mosaic_gpu_state._prefix_backward, dtype=jnp.bfloat16)
    wide = lambda: states(dtype=jnp.float32)  # noqa: E731
    num_features = taylor.num_features(shape.head_dim, shape.order)
    via_state = 2.0 * num_features * shape.value_dim * length * heads
    in_chunk = 1.0 * length * heads * sizes.chunk
    h, e = shape.head_dim, shape.value_dim
    of = functools.partial
    function, makers, operations = {
        "state sums": (of(mosaic_gpu_state._sums, state_spec), (left, right, value), via_state),
        "state read": (of(mosaic_gpu_state._read, state_spec), (left, right, states), via_state),
        "state slopes": (
            of(mosaic_gpu_state._slopes, state_spec), (left, right, value, states), via_state
        ),
        "prefix": (prefix, (wide, state, gates, weights), None),
        "prefix backward": (prefix_backward, (wide, state, gates, weights), None),
        "chunk sums": (
            of(mosaic_gpu_chunk._sums, chunk_spec), (key, key, value, scalars, start),
            in_chunk * (h + e),
        ),
        "chunk dq": (
            lambda *a: mosaic_gpu_chunk._query_gradient(chunk_spec, *a, False)[0],
            (key, key, value, scalars, start, value, ones), in_chunk * (2 * h + e),
        ),
        "chunk dk, dv": (
            of(mosaic_gpu_chunk._key_value_gradient, chunk_spec),
            (key, key, value, scalars, start, value, ones), in_chunk * (2 * h + 2 * e),
        ),
    }[name]  # fmt: skip
    program = Program(function, lambda: tuple(make() for make in makers))
    return lambda: program.time(operations=operations)


KERNELS = (
    "state sums", "state read", "state slopes", "prefix", "prefix backward",
    "chunk sums", "chunk dq", "chunk dk, dv",
)  # fmt: skip


def decoding(shape: Shape, batch_size: int) -> Measurement:
    """One token against a state: constant in the tokens seen."""
    coefficients = taylor.minimax_coefficients(shape.order, 2.0)

    def inputs():
        query, key, value = (jnp.repeat(x[:, 0], batch_size, axis=0) for x in shape.inputs())
        state = taylor.empty_state(
            batch_size=batch_size,
            num_kv_heads=shape.num_heads,
            head_dim=shape.head_dim,
            value_dim=shape.value_dim,
            order=shape.order,
        )
        return query, key, value, state

    step = functools.partial(taylor.taylor_attention_step, coefficients=coefficients)
    program = Program(step, inputs)
    return lambda: program.time()


def cases(smoke: bool) -> Iterator[Case]:
    """All rows, what matters most first."""
    goals = SMOKE_GOALS if smoke else GOALS
    first = goals[0]

    def beside(side, shapes):
        for shape, backward in itertools.product(shapes, (False, True)):
            direction = "forward + backward" if backward else "forward"
            facts = {"implementation": side, "direction": direction}
            yield Case("goals", str(shape), goal, (shape, side, backward, {}, smoke), facts)

    yield from beside("mosaic_gpu", goals)
    for shape in SMOKE_PARITY if smoke else PARITY:
        for name in ("reference", "mosaic_gpu"):  # the first shows what rounding alone costs
            yield Case("parity", str(shape), parity, (shape, name), {"implementation": name})
    yield from beside("softmax", goals)
    for shape, blocks in ((first, {"chunk": 512}),) if smoke else BLOCKS:
        arguments = (shape, "mosaic_gpu", True, blocks, smoke)
        yield Case("block sizes", str(shape), goal, arguments, {"changed": json.dumps(blocks)})
    for name in KERNELS:
        yield Case("kernels", f"{name}, {first}", kernel, (first, name, {}))
    yield from beside("xla", dict.fromkeys((first, goals[-1])))
    for shape in goals if smoke else (GOALS[0], GOALS[1], GOALS[3], GOALS[5]):
        for batch_size in (1, 64):
            what = f"{shape}, {batch_size} texts"
            yield Case("decoding step", what, decoding, (shape, batch_size))


def _work(case: Case, pipe) -> None:
    """A process: compile, say so, wait for the word, measure, answer."""
    measure, result = None, {}
    try:
        measure = case.prepare(*case.arguments)
    except Exception as error:  # noqa: BLE001 (one failure must not end the rest)
        result = _failure(error)
    pipe.send(environment())
    pipe.recv()
    if measure is not None:
        try:
            result = measure()
        except Exception as error:  # noqa: BLE001
            result = _failure(error)
    pipe.send(result)


def _failure(error: Exception) -> dict[str, str]:
    text = f"{type(error).__name__}: {str(error)[:400]}"
    return {"error": text, "traceback": traceback.format_exc()[-2000:]}


def run(found: list[Case], minutes: float, out: pathlib.Path) -> list[dict]:
    """The rows of all cases; those measured so far are on disk at any time."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    deadline = time.monotonic() + 60 * minutes
    rows: list[dict] = []
    place: dict = {}
    size = 2 * (os.cpu_count() or 1)  # some wait for others' memory or disk
    for first in range(0, len(found), size):
        for case, ready, result in _wave(found[first : first + size], deadline):
            place = place or ready
            rows.append({"section": case.section, "what": case.what, **case.facts, **result})
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "traceback"}), flush=True)
            save(rows, place, out)  # a killed run leaves what it has
    return rows


def _wave(wave: list[Case], deadline: float) -> Iterator[tuple[Case, dict, dict]]:
    """Some cases that compile at the same time: each with its machine and its measurements."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for case in wave if time.monotonic() < deadline else ():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(case, theirs), daemon=True)
        process.start()
        theirs.close()
        workers.append((process, ours))

    def answer(pipe):
        try:
            return pipe.recv() if pipe.poll(max(0.0, deadline - time.monotonic())) else None
        except EOFError:
            return None

    ready = [answer(pipe) for _, pipe in workers]
    for case, (process, pipe), machine in zip(wave, workers, ready):
        result = None
        if machine is not None:
            pipe.send("measure")
            result = answer(pipe)
        process.kill()
        yield case, machine or {}, result or {"error": "died, or out of time"}
    for case in wave[len(workers) :]:
        yield case, {}, {"error": "not begun: out of time"}


def save(rows: list[dict], place: dict, out: pathlib.Path) -> None:
    """Writes both reports."""
    report = {"schema_version": 1, "environment": place, "rows": rows}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [f"`{json.dumps(place)}`"]
    for section in dict.fromkeys(row["section"] for row in rows):
        table = [row for row in rows if row["section"] == section]
        table.sort(key=lambda row: row["what"])
        fields = dict.fromkeys(f for row in table for f in row)
        fields = [f for f in fields if f not in ("section", "traceback")]
        lines += ["", f"## {section}", "", f"| {' | '.join(fields)} |"]
        lines += ["|" + " --- |" * len(fields)]
        for row in table:
            lines.append(f"| {' | '.join(_cell(row.get(f)) for f in fields)} |")
    (out / "report.md").write_text("\n".join(lines) + "\n")


def _cell(value) -> str:
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")[:120]


def main():
    """Runs the sections and writes the reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the reports")
    parser.add_argument("--minutes", type=float, default=7.5, help="all ends after this")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to try the suite itself")
    parser.add_argument("--sections", nargs="+", help="only these: parity, goals, ...")
    arguments = parser.parse_args()
    found = list(cases(arguments.smoke))
    if arguments.sections:
        found = [c for c in found if c.section.partition(" ")[0] in arguments.sections]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = run(found, arguments.minutes, arguments.out)
    failed = sum("error" in row for row in rows)
    print(f"{len(rows)} rows, {failed} with an error: {arguments.out / 'report.md'}")


if __name__ == "__main__":
    main()
