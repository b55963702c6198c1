"""Searching with one cache per tree, with a cache in every node, and without a cache.

    python -m benchmarks.search [--json FILE] [--quick]

Every measurement is a process of its own and the sides take turns (A B A B), so that neighbours on
the machine slow all alike; printed are medians over the turns, and the load. Processor seconds
(summed over cores) suffer less from a busy machine than wall-clock seconds. Sides:

    tree        search.tree_cache.TreeCache
    nodes       search.tree_cache.NodeCaches
    none        every node reads its whole text; fewer simulations, scaled up
    calls       the model calls of `tree` alone: what it takes beyond them is bookkeeping

and, for a Taylor model, the tree cache after prompts of several lengths.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tyro

from benchmarks.taylor_attention import git_commit
from train import run_folder

SIDES = ("tree", "nodes", "none", "calls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Token actions in float32, random parameters."""

    prompt_tokens: int = 256
    """Tokens of every prompt."""
    depth_tokens: int = 64
    """Tokens that a completion, and so a path of the tree, may have."""
    num_simulations: int = 200
    """Per search."""
    simulations_without_cache: int = 10
    """Of the side that reads whole texts; its time is scaled up."""
    num_layers: int = 8
    """Blocks of the model."""
    width: int = 448
    """Channels; heads of 32, each with keys and values of its own."""
    vocab_size: int = 256
    """Tokens."""
    batch_size: int = 4
    """Trees at once."""
    taylor_prompts: tuple[int, ...] = (512, 2048, 8192, 32768)
    """Prompt lengths of the Taylor model."""
    taylor_layers: int = 2
    """Its blocks."""
    repeats: int = 3
    """Turns of each side."""
    quick: bool = False
    """Small sizes, to see that all runs."""
    json: Path | None = None
    """File for all measurements."""
    measure: str = ""
    """Used by the program itself: a measurement as JSON; it runs once and prints JSON."""


QUICK = {
    "prompt_tokens": 16,
    "depth_tokens": 8,
    "num_simulations": 12,
    "simulations_without_cache": 4,
    "num_layers": 2,
    "width": 64,
    "batch_size": 2,
    "taylor_prompts": (64, 128),
    "repeats": 1,
}


def main(config: Benchmark) -> None:
    """Fills the tables, or is one of the processes that do."""
    if config.quick:
        config = dataclasses.replace(config, **QUICK)  # type: ignore[arg-type]
    if config.measure:
        print(json.dumps(measure(config, **json.loads(config.measure))))
        return
    report: dict[str, Any] = {
        "command": "python -m benchmarks.search " + " ".join(sys.argv[1:]),
        "commit": git_commit(),
        "cores": run_folder.available_cores(),
        "load_before": os.getloadavg()[0],
        "settings": {
            k: v for k, v in dataclasses.asdict(config).items() if k not in ("json", "measure")
        },
    }
    cases = {side: {"side": side} for side in SIDES}
    prompts = {
        str(length): {"side": "tree", "taylor_prompt": length} for length in config.taylor_prompts
    }
    report["sides"] = _take_turns(config, cases)
    report["taylor_prompts"] = _take_turns(config, prompts)
    report["load_after"] = os.getloadavg()[0]
    report["ratios"] = ratios(report)
    if config.json is not None:
        config.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def _take_turns(config: Benchmark, cases: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Medians over the turns, each in a process of its own."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(config.repeats):
        for name, what in cases.items():
            turns[name].append(_in_process(config, what))
            print(f"{name}: {turns[name][-1]}", file=sys.stderr, flush=True)
    return {
        name: {k: statistics.median(d[k] for d in done) for k in done[0]}
        for name, done in turns.items()
    }


def _in_process(config: Benchmark, what: dict[str, Any]) -> dict[str, float]:
    arguments = [f"--measure={json.dumps(what)}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("json", "measure", "quick", "taylor_prompts"):
            arguments.append(f"--{field.name.replace('_', '-')}={value}")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.search", *arguments],
        cwd=run_folder.REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure(config: Benchmark, *, side: str, taylor_prompt: int | None = None) -> dict[str, float]:
    """Milliseconds per simulation (of all trees), wall clock and processor, and MiB that the
    compiled search allocates beside its arguments.
    """
    import jax
    import jax.numpy as jnp

    from models.attention import AttentionConfig
    from models.language_model import LanguageModel
    from models.transformer import TransformerConfig
    from search import engine, gumbel
    from search.token_model import ActionConfig, TokenModel

    taylor = taylor_prompt is not None
    attention = AttentionConfig(kind="taylor" if taylor else "softmax")
    model = LanguageModel(
        TransformerConfig(
            vocab_size=config.vocab_size,
            width=config.width,
            num_layers=config.taylor_layers if taylor else config.num_layers,
            num_heads=config.width // 32,
            head_dim=32,
            attention=attention,
        )
    )
    action = ActionConfig(kind="token", max_completion_tokens=config.depth_tokens)
    dynamics = TokenModel(model, action, eos_id=0, newline_id=0)
    num_simulations = config.num_simulations
    if side == "nodes":
        dynamics = dataclasses.replace(dynamics, node_caches=True)
    if side == "none":
        dynamics = _reading_again(dynamics)
        num_simulations = min(num_simulations, config.simulations_without_cache)
    batch, prompt_tokens = config.batch_size, taylor_prompt or config.prompt_tokens
    tokens = jax.random.randint(jax.random.key(1), (1, prompt_tokens), 1, config.vocab_size)
    params = jax.jit(model.init)(jax.random.key(0))
    one = jax.jit(functools.partial(dynamics.start, max_moves=1))(
        params, tokens, jnp.full((1,), prompt_tokens), jnp.zeros((1,), jnp.int32)
    )
    root = jax.tree.map(lambda x: jnp.repeat(x, batch, axis=0), one)

    def search(params, root, rng_key):
        found = engine.search(
            dynamics,
            params,
            root,
            rng_key,
            num_simulations=num_simulations,
            config=gumbel.SearchConfig(action=action, root_noise=True),
        )
        return found.action, found.visits

    def calls(params, root, rng_key):
        """As many model calls of the same shapes, one after another."""
        del rng_key
        paths = model.empty_paths(root.cache, 1, min(config.depth_tokens, num_simulations))

        def call(_, carry):
            paths, token = carry
            # Every path is half as long as it may be.
            half = jnp.full_like(paths.length, config.depth_tokens // 2)
            paths = dataclasses.replace(paths, length=half)
            out, paths = model.extend(params, paths, token[:, None], jnp.ones_like(token))
            return paths, jnp.argmax(out.logits[:, 0], axis=-1).astype(jnp.int32)

        first = jnp.ones((batch,), jnp.int32)
        return jax.lax.fori_loop(0, num_simulations, call, (paths, first))[1]

    arguments = params, root, jax.random.key(2)
    run = jax.jit(calls if side == "calls" else search).lower(*arguments).compile()
    jax.block_until_ready(run(*arguments))
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(run(*arguments))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "milliseconds": 1e3 * wall / num_simulations,
        "processor_milliseconds": 1e3 * processor / num_simulations,
        "temporary_mebibytes": run.memory_analysis().temp_size_in_bytes / 2**20,
    }


def _reading_again(dynamics):
    """The same dynamics without a cache: a node holds its whole text, which the model reads."""
    import jax
    import jax.numpy as jnp

    from search import token_model, tree_cache

    class Reading(token_model.TokenModel):
        memory = tree_cache.NodeCaches()

        def start(self, params, tokens, lengths, problem, *, max_moves=None):
            state = super().start(params, tokens, lengths, problem, max_moves=max_moves)
            room = jnp.zeros((len(tokens), self.config.max_completion_tokens), jnp.int32)
            text = jnp.concatenate([tokens, room], axis=1)
            return dataclasses.replace(state, cache=(text, lengths))

        def _read(self, params, state, tokens, count):
            text, length = state.cache
            rows = jnp.arange(len(length))
            text = text.at[rows, length].set(jnp.where(count > 0, tokens[:, 0], 0), mode="drop")
            length = length + count
            last = self.model.outputs(params, text).at(length - 1)
            moved = count > 0
            return dataclasses.replace(
                state,
                tokens=jax.vmap(lambda t, n, new: t.at[n].set(new, mode="drop"))(
                    state.tokens, jnp.where(moved, state.length, -1), tokens[:, 0]
                ),
                length=state.length + count,
                cache=(text, length),
                hidden=last.hidden,
                logits=last.logits,
                value=last.value,
                evaluations=state.evaluations + count,
            )

    fields = {f.name: getattr(dynamics, f.name) for f in dataclasses.fields(dynamics)}
    return Reading(**fields)


def ratios(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What the goals speak of, by wall clock and by processor time."""
    sides, prompts = report["sides"], list(report["taylor_prompts"].values())
    found: dict[str, dict[str, float]] = {}
    for unit in ("milliseconds", "processor_milliseconds"):
        tree = sides["tree"][unit]
        found[unit] = {
            "nodes over tree": sides["nodes"][unit] / tree,
            "none over tree": sides["none"][unit] / tree,
            "bookkeeping over calls": tree / sides["calls"][unit] - 1,
            "longest prompt over shortest": prompts[-1][unit] / prompts[0][unit],
        }
    return found


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [
        "# Searching with one cache per tree",
        "",
        f"`{report['command']}`, commit {report['commit']}, {report['cores']} cores, load "
        f"{report['load_before']:.1f} to {report['load_after']:.1f}.",
        f"{report['settings']}",
        "",
        "| side | ms per simulation | processor ms | temporary MiB |",
        "| --- | ---: | ---: | ---: |",
    ]
    rows = report["sides"] | {
        f"tree, Taylor, prompt {length}": row for length, row in report["taylor_prompts"].items()
    }
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{x:.2f}" for x in row.values()) + " |")
    lines += ["", "| ratio | wall clock | processor |", "| --- | ---: | ---: |"]
    wall, processor = report["ratios"].values()
    lines += [f"| {name} | {wall[name]:.2f} | {processor[name]:.2f} |" for name in wall]
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
