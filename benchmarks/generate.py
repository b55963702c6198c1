"""Greedy decoding of a Llama of 100 million parameters: ours beside `transformers`.

    python -m benchmarks.generate [--json FILE] [--quick]      (without the extra hf: ours alone)

Both sides read one checkpoint folder with random parameters in float32 and continue the same
prompts; they must write the same tokens. Every measurement is a process of its own and the sides
take turns; printed are medians of tokens per second (all rows together, prompt included in the
time), and what a step reads of memory (every parameter once) as a share of what the machine can
read, measured as the sum of a large array on all cores. `transformers` runs with its cache, in
inference mode, at the best number of threads.
"""

import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.taylor_attention import git_commit
from train import run_folder

HAS_TRANSFORMERS = all(map(importlib.util.find_spec, ("torch", "transformers")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The defaults have 101 million parameters beside the value head."""

    width: int = 768
    """Channels; heads of 64."""
    num_layers: int = 12
    """Blocks, with an MLP of 2,048 units."""
    vocab_size: int = 20_480
    """Tokens; the embedding also makes the logits."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Prompts at once."""
    prompt_tokens: int = 32
    """Tokens of every prompt."""
    new_tokens: int = 128
    """Tokens written after each."""
    repeats: int = 3
    """Turns of each side."""
    quick: bool = False
    """Small sizes, to see that all runs."""
    json: Path | None = None
    """File for all measurements."""
    measure: str = ""
    """Used by the program itself: a measurement as JSON; it runs once and prints JSON."""


QUICK = {"width": 64, "num_layers": 2, "vocab_size": 512, "new_tokens": 8, "repeats": 1}


def main(config: Benchmark) -> None:
    """Prints the table, or is one of the processes that fill it."""
    if config.quick:
        config = dataclasses.replace(config, **QUICK)  # type: ignore[arg-type]
    if config.measure:
        print(json.dumps(measure(config, **json.loads(config.measure))))
        return
    cores = run_folder.available_cores()
    report: dict[str, Any] = {
        "command": "python -m benchmarks.generate " + " ".join(sys.argv[1:]),
        "commit": git_commit(),
        "cores": cores,
        "load_before": os.getloadavg()[0],
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        parameters = _write_model(config, Path(folder) / "llama")
        report |= {"parameters": parameters, "gigabytes_per_second": _bandwidth(cores)}
        for batch_size in config.batch_sizes:
            report["rows"].append(_row(config, Path(folder) / "llama", batch_size, report))
    report["load_after"] = os.getloadavg()[0]
    if config.json is not None:
        config.json.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def _row(config: Benchmark, folder: Path, batch_size: int, report: dict) -> dict[str, Any]:
    """Both sides at one batch size, turn by turn."""
    cores = report["cores"]
    cases = [("ours", cores)]
    if HAS_TRANSFORMERS:
        cases += [("transformers", threads) for threads in sorted({1, cores})]
    turns: dict[tuple[str, int], list[dict]] = {case: [] for case in cases}
    for _ in range(config.repeats):
        for (side, threads), done in turns.items():
            what = {"folder": str(folder), "side": side, "batch": batch_size, "threads": threads}
            done.append(_in_process(config, what))
            print(f"{what}: {done[-1]['tokens_per_second']:.1f}", file=sys.stderr, flush=True)
    written = {tuple(one["tokens"]) for done in turns.values() for one in done}
    best: dict[str, float] = {}
    for (side, _), done in turns.items():
        speed = statistics.median(one["tokens_per_second"] for one in done)
        best[side] = max(speed, best.get(side, 0.0))
    read = 4e-9 * report["parameters"] * best["ours"] / batch_size
    row = {
        "batch": batch_size,
        "tokens_per_second": best,
        "share_of_bandwidth": read / report["gigabytes_per_second"],
    }
    if HAS_TRANSFORMERS:
        row |= {"ratio": best["ours"] / best["transformers"], "same_tokens": len(written) == 1}
    return row


def _in_process(config: Benchmark, what: dict[str, Any]) -> dict[str, Any]:
    sizes = ("width", "num_layers", "vocab_size", "prompt_tokens", "new_tokens")
    arguments = [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in sizes]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.generate", *arguments, f"--measure={json.dumps(what)}"],
        cwd=run_folder.REPOSITORY_ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def _write_model(config: Benchmark, folder: Path) -> int:
    """A random Llama; how many parameters one step reads."""
    import jax

    from models import huggingface
    from models.language_model import LanguageModel
    from models.transformer import TransformerConfig

    model = LanguageModel(
        TransformerConfig(
            vocab_size=config.vocab_size,
            width=config.width,
            num_layers=config.num_layers,
            num_heads=config.width // 64,
            head_dim=64,
            scale_embeddings=False,
        )
    )
    params = jax.jit(model.init)(jax.random.key(0))
    huggingface.save(folder, model, params)
    return sum(leaf.size for leaf in jax.tree.leaves(params["trunk"]))


def _bandwidth(cores: int) -> float:
    """Gigabytes a second that all cores together read, the best of five sums."""
    parts = [np.ones(2**26, np.float32) for _ in range(cores)]
    best = 0.0
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, cores * parts[0].nbytes / (time.perf_counter() - start) / 1e9)
    return best


def measure(
    config: Benchmark, *, folder: str, side: str, batch: int, threads: int
) -> dict[str, Any]:
    """Tokens per second of one side after a run to warm up, and the first row's tokens."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, config.vocab_size, (batch, config.prompt_tokens)).astype(np.int32)
    run = _ours(config, folder, prompts) if side == "ours" else _theirs(config, folder, threads)
    run(prompts)
    start = time.perf_counter()
    tokens = run(prompts)
    seconds = time.perf_counter() - start
    return {
        "tokens_per_second": batch * config.new_tokens / seconds,
        "tokens": np.asarray(tokens)[0].tolist(),
    }


def _ours(config: Benchmark, folder: str, prompts: np.ndarray):
    import jax

    from models import generate, huggingface

    model, params, _ = huggingface.load(folder)
    lengths = np.full(len(prompts), config.prompt_tokens, np.int32)

    def run(tokens: np.ndarray) -> np.ndarray:
        out = generate.generate(
            model,
            params,
            tokens,
            lengths,
            max_new_tokens=config.new_tokens,
            rng_key=jax.random.key(0),
            temperature=0.0,
        )
        return np.asarray(out.tokens)

    return run


def _theirs(config: Benchmark, folder: str, threads: int):
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def run(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            ids = torch.from_numpy(tokens.astype(np.int64))
            whole = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=config.new_tokens,
                min_new_tokens=config.new_tokens,
                do_sample=False,
                use_cache=True,
            )
        return whole[:, tokens.shape[1] :].numpy()

    return run


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [
        "# Greedy decoding in float32, ours beside transformers",
        "",
        f"`{report['command']}`, commit {report['commit']}, {report['parameters']:,} parameters, "
        f"{report['cores']} cores that read {report['gigabytes_per_second']:.1f} GB/s, load "
        f"{report['load_before']:.1f} to {report['load_after']:.1f}.",
        "",
        "| batch | ours, tokens/s | share of bandwidth | transformers | ratio | same tokens |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in report["rows"]:
        speeds = row["tokens_per_second"]
        theirs = ["", "", ""]
        if "ratio" in row:
            same = "yes" if row["same_tokens"] else "no"
            theirs = [f"{speeds['transformers']:.1f}", f"{row['ratio']:.2f}", same]
        ours = [str(row["batch"]), f"{speeds['ours']:.1f}", f"{row['share_of_bandwidth']:.0%}"]
        lines.append(f"| {' | '.join(ours + theirs)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
