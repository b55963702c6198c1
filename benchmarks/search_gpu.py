"""Node evaluations per second of a batched search on one accelerator.

    python -m benchmarks.search_gpu [--json FILE]      # a GPU: 110M parameters, bfloat16
    python -m benchmarks.search_gpu --quick            # tiny, anywhere: does it run?

A row searches B prompts at once with token actions, up to W leaves of a tree in a model call. Every
leaf is one token read and k candidates ranked. The time is that of whole searches, compiled before;
their trees and caches stay on the device. Needs flax and mctx beside jax.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import subprocess
import time

import jax
import jax.numpy as jnp

from models.attention import AttentionConfig
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from search import engine, gumbel, token_model

GPT2 = TransformerConfig(
    vocab_size=32_768, width=768, num_layers=12, num_heads=12, head_dim=64, dtype="bfloat16"
)
TINY = dataclasses.replace(GPT2, vocab_size=256, width=32, num_layers=1, num_heads=2, head_dim=16)
TAYLOR = AttentionConfig(kind="taylor", order=2, normalize_query_key=True)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: prompts, simulations and tokens are per search."""

    attention: str
    batch: int
    leaves: int
    simulations: int
    prompt_tokens: int


def measure(row: Row, model_config: TransformerConfig, repeats: int) -> dict:
    """Median over searches. Error: the text of what the accelerator refused."""
    if row.attention == "taylor":
        model_config = dataclasses.replace(model_config, attention=TAYLOR)
    model = LanguageModel(model_config)
    action = token_model.ActionConfig(
        kind="token", num_candidates=16, max_completion_tokens=64, min_probability=0.0
    )
    dynamics = token_model.TokenModel(model, action, eos_id=1, newline_id=2)
    config = gumbel.SearchConfig(
        action=action, num_simulations=row.simulations, parallel_leaves=row.leaves
    )
    plan = config.plan(row.simulations, capacity=row.simulations)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), jax.jit(model.init)(jax.random.key(0)))

    @jax.jit
    def start(params):
        shape = (row.batch, row.prompt_tokens)
        tokens = jax.random.randint(jax.random.key(1), shape, 3, model_config.vocab_size)
        lengths = jnp.full((row.batch,), row.prompt_tokens, jnp.int32)
        return dynamics.start(params, tokens, lengths, jnp.arange(row.batch), max_moves=1)

    @jax.jit
    def search(params, root):
        growth = engine.plant(dynamics, params, root, jax.random.key(2), plan=plan, config=config)
        growth = engine.advance(dynamics, params, growth, plan=plan, config=config)
        return growth.calls, growth.num_nodes

    root = start(params)
    began = time.perf_counter()
    run = search.lower(params, root).compile()
    compile_seconds = time.perf_counter() - began
    jax.block_until_ready(run(params, root))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        calls, nodes = jax.block_until_ready(run(params, root))
        seconds.append(time.perf_counter() - began)
    median = sorted(seconds)[len(seconds) // 2]
    evaluated = int(jnp.sum(nodes - 1))
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "nodes_per_second": round(evaluated / median),
        "milliseconds_per_call": round(1e3 * median / int(calls), 3),
        "calls": int(calls),
        "seconds_per_prompt": round(median / row.batch, 4),
        "compile_seconds": round(compile_seconds, 1),
        "temporary_mebibytes": round(run.memory_analysis().temp_size_in_bytes / 2**20),
    }


def main():
    """Prints and writes one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=pathlib.Path, help="file for the report")
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    row = functools.partial(Row, simulations=200, prompt_tokens=256)
    rows = [
        row("softmax", 256, 16),
        row("softmax", 64, 1),
        row("softmax", 1024, 1),
        row("taylor", 256, 16),
        row("softmax", 512, 16),
    ]
    model_config = GPT2
    if arguments.quick:
        rows = [Row(kind, 2, leaves, 8, 16) for kind in ("softmax", "taylor") for leaves in (1, 4)]
        model_config = TINY
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    report = {"device": jax.devices()[0].device_kind, "commit": commit, "rows": []}
    for one in rows:
        try:
            found = measure(one, model_config, arguments.repeats)
        except Exception as error:  # noqa: BLE001 (out of memory in one row must not end the rest)
            found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        report["rows"].append(dataclasses.asdict(one) | found)
        print(json.dumps(report["rows"][-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
