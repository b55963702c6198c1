"""Taylor attention: milliseconds and bytes of temporary memory per shape, against the reference.

    python -m benchmarks.taylor_attention [--lengths 256 1024 4096] [--order 2] [--repeats 4]

Each measurement is a process of its own, and the implementations take turns (A B A B): neighbours
on the machine then slow both alike. Printed are medians over the turns, and the load at the start,
because a busy machine gives false wins.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import rich
import rich.table
import tyro

from train import run_folder

IMPLEMENTATIONS = ("reference", "xla")
WARM_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Causal self-attention, forward and backward, in float32."""

    lengths: tuple[int, ...] = (256, 1024, 4096)
    """Tokens per sequence; one row of the table each."""
    batch_size: int = 1
    """Sequences."""
    num_heads: int = 4
    """Heads of query, key and value."""
    head_dim: int = 16
    """Width of a head."""
    order: int = 2
    """Degree of the polynomial."""
    repeats: int = 4
    """Turns of each implementation per length."""
    measure: str = ""
    """Used by the program itself: "IMPLEMENTATION:LENGTH" measures once and prints JSON."""


def main(config: Benchmark) -> None:
    """Prints the table, or is one of the processes that fill it."""
    if config.measure:
        implementation, length = config.measure.split(":")
        print(json.dumps(measure(config, implementation, int(length))))
        return
    load = f"{os.getloadavg()[0]:.1f} on {run_folder.available_cores()} cores"
    table = rich.table.Table(
        "tokens", *(f"{name} {unit}" for name in IMPLEMENTATIONS for unit in ("ms", "MiB")),
        "times faster", title=f"order {config.order}, load {load}",
    )  # fmt: skip
    for length in config.lengths:
        turns = [
            {name: _in_process(config, f"{name}:{length}") for name in IMPLEMENTATIONS}
            for _ in range(config.repeats)
        ]
        cells = [
            f"{statistics.median(turn[name][field] for turn in turns):.1f}"
            for name in IMPLEMENTATIONS
            for field in ("milliseconds", "mebibytes")
        ]
        ratios = [turn["reference"]["milliseconds"] / turn["xla"]["milliseconds"] for turn in turns]
        table.add_row(str(length), *cells, f"{statistics.median(ratios):.2f}")
    rich.print(table)


def measure(config: Benchmark, implementation: str, length: int) -> dict[str, float]:
    """Median milliseconds of one forward and backward pass, and its temporary MiB."""
    import jax

    from kernels import taylor_attention as kernel

    shape = (config.batch_size, length, config.num_heads, config.head_dim)
    query, key, value, cotangent = (
        jax.random.normal(rng_key, shape) for rng_key in jax.random.split(jax.random.key(0), 4)
    )

    def loss(query, key, value):
        out = kernel.taylor_attention(
            query,
            key,
            value,
            coefficients=kernel.taylor_coefficients(config.order),
            implementation=implementation,
        )
        return (out * cotangent).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(query, key, value).compile()
    seconds: list[float] = []
    start = time.monotonic()
    while time.monotonic() - start < 2 * WARM_SECONDS or len(seconds) < 3:
        before = time.perf_counter()
        jax.block_until_ready(compiled(query, key, value))
        if time.monotonic() - start > WARM_SECONDS or len(seconds) < 1:
            seconds.append(time.perf_counter() - before)
    return {
        "milliseconds": 1e3 * statistics.median(seconds),
        "mebibytes": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }


def _in_process(config: Benchmark, what: str) -> dict[str, float]:
    arguments = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in asdict(config).items()
        if name not in ("lengths", "measure")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.taylor_attention", *arguments, f"--measure={what}"],
        cwd=run_folder.REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
