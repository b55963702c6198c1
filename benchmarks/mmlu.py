"""MMLU by likelihood with a model of 10 million parameters: ours beside lm-eval's transformers.

    python -m benchmarks.mmlu [--fraction 0.02] [--json FILE]

Without the extras hf and eval: ours alone. Both sides read one folder with random parameters in
float32 and a BPE of 8,192 tokens trained on other questions, and are asked every n-th question;
every measurement is a process of its own, and sides take turns. Measured is all that comes after
loading (tokens, batches, model), once the programs are compiled; ours has the tokens per batch that
lm-eval's batch of `--batch-size` texts has on average. Printed are medians, their ratio, and what
all 14,042 questions would take. The sides must agree on every log-likelihood.

Then ours alone, on all questions of `--subjects`: without examples, and with `--shots` of them,
which are read once for a subject.
"""

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

import tyro

from benchmarks.taylor_attention import git_commit
from train import run_folder

NUM_QUESTIONS = 14_042
HAS_HARNESS = all(map(importlib.util.find_spec, ("torch", "transformers", "lm_eval")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The defaults have 10.6 million parameters beside embeddings."""

    fraction: float = 0.02
    """Of the questions, evenly taken."""
    width: int = 384
    """Channels; heads of 64."""
    num_layers: int = 6
    """Blocks of softmax attention and SwiGLU."""
    vocab_size: int = 8192
    """Tokens."""
    batch_size: int = 32
    """Texts that lm-eval reads at once."""
    shots: int = 5
    """Worked examples of the measurement with a shared prefix."""
    subjects: tuple[str, ...] = ("anatomy", "global_facts", "marketing")
    """All questions of these are asked with and without examples."""
    repeats: int = 1
    """Turns of each side."""
    json: Path | None = None
    """File for all measurements."""
    measure: str = ""
    """Used by the program itself: side and folder; it runs once and prints JSON."""


def make_folder(config: Benchmark, folder: Path) -> int:
    """Writes model and tokenizer; returns the parameters beside embeddings."""
    import jax
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from data import folder_tokenizer
    from evaluation import choices
    from models import huggingface, tensor_files
    from models.language_model import LanguageModel
    from models.transformer import TransformerConfig

    model = LanguageModel(
        TransformerConfig(
            vocab_size=config.vocab_size, width=config.width, num_layers=config.num_layers,
            num_heads=config.width // 64, head_dim=64, scale_embeddings=False,
        )
    )  # fmt: skip
    params = jax.jit(model.init)(jax.random.key(0))
    huggingface.save(folder, model, params, longest_text_tokens=4096)
    pieces = tokenizers.Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = choices.mmlu_rows()
    others = [row for split in ("dev", "val") for some in rows[split].values() for row in some]
    pieces.train_from_iterator(map(choices.mmlu_question, others), trainer)
    pieces.save(str(folder / folder_tokenizer.PIECES))
    settings = {
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # fmt: skip
    tensor_files.write_json(folder / folder_tokenizer.SETTINGS, settings)
    inner = {name: part for name, part in params["trunk"].items() if name != "embedding"}
    return sum(leaf.size for leaf in jax.tree.leaves(inner))


def questions_of(config: Benchmark, side: str) -> list[Any]:
    """Every n-th question, or all of some subjects."""
    from evaluation import tasks

    if side in ("subjects", "shots"):
        shots = config.shots if side == "shots" else 0
        options = tasks.TaskOptions(shots=shots, subjects=config.subjects)
        return tasks.find("mmlu").questions(options)
    every = tasks.find("mmlu").questions(tasks.TaskOptions())
    assert len(every) == NUM_QUESTIONS
    return every[:: round(1 / config.fraction)]


def measure(config: Benchmark, side: str, folder: str) -> dict[str, Any]:
    """Seconds of one side after a first pass that compiles, and its log-likelihoods."""
    questions = questions_of(config, side)
    run = (_theirs if side == "theirs" else _ours)(config, folder, questions)
    started = time.monotonic()
    run()
    first = time.monotonic() - started
    started = time.monotonic()
    found = run()
    return {
        "first_seconds": first,
        "seconds": time.monotonic() - started,
        "questions": len(questions),
        "log_probs": found,
    }


def _ours(config: Benchmark, folder: str, questions: list[Any]):
    from evaluation import likelihood, tasks
    from evaluation.run import load_player

    player = load_player(folder)
    reader = likelihood.Reader(player.model, player.params)

    def run() -> list[float]:
        requests = [
            request
            for question in questions
            for request in tasks.encode_pairs(
                player.tokenizer, question.prompt, question.continuations
            )
        ]
        # A question is about as long with examples, which are not read again.
        shown = [len(player.tokenizer.encode(question.shown)) for question in questions]
        batch_tokens = round(config.batch_size * sum(shown) / len(shown))
        found = reader.score(requests, longest_tokens=4096, batch_tokens=batch_tokens)
        return [each.log_prob for each in found]

    return run


def _theirs(config: Benchmark, folder: str, questions: list[Any]):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=config.batch_size)
    requests = [
        Instance("loglikelihood", {}, (question.prompt, continuation), 0)
        for question in questions
        for continuation in question.continuations
    ]
    return lambda: [log_prob for log_prob, _ in model.loglikelihood(requests, disable_tqdm=True)]


def main(config: Benchmark) -> None:
    """Runs all measurements and prints the table."""
    if config.measure:
        side, _, folder = config.measure.partition(":")
        print(json.dumps(measure(config, side, folder)))
        return
    sides = ["ours", *(["theirs"] if HAS_HARNESS else []), "subjects", "shots"]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        parameters = make_folder(config, folder)
        loads = [os.getloadavg()[0]]
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(config.repeats):
            for side in sides:
                found[side].append(_in_a_process(config, f"{side}:{folder}"))
        loads.append(os.getloadavg()[0])
    report = make_report(config, parameters, found, loads)
    print(table(report))
    if config.json is not None:
        run_folder.write_json(config.json, report)


def _in_a_process(config: Benchmark, what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.mmlu", "--measure", what]
    for field in ("fraction", "width", "num_layers", "vocab_size", "batch_size", "shots"):
        command += [f"--{field.replace('_', '-')}", str(getattr(config, field))]
    command += ["--subjects", *config.subjects]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def make_report(
    config: Benchmark, parameters: int, found: dict[str, list[dict[str, Any]]], loads: list[float]
) -> dict[str, Any]:
    """Medians and ratios."""
    environment = run_folder.environment()
    rows = {}
    for side, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        rows[side] = {
            "questions": runs[0]["questions"],
            "seconds": seconds,
            "first_seconds": statistics.median(run["first_seconds"] for run in runs),
            "questions_per_second": runs[0]["questions"] / seconds,
            "minutes_for_all": seconds * NUM_QUESTIONS / runs[0]["questions"] / 60,
        }
    report = {
        "command": " ".join(["python", "-m", "benchmarks.mmlu", *sys.argv[1:]]),
        "commit": git_commit(),
        "hardware": f"{environment['cpu_model']}, {environment['cpu_cores']} cores",
        "load": loads,
        "parameters_beside_embeddings": parameters,
        "rows": rows,
        "shots_over_none": rows["shots"]["seconds"] / rows["subjects"]["seconds"],
    }
    if "theirs" in found:
        pairs = zip(found["ours"][0]["log_probs"], found["theirs"][0]["log_probs"], strict=True)
        report["largest_difference"] = max(abs(one - other) for one, other in pairs)
        report["theirs_over_ours"] = rows["theirs"]["seconds"] / rows["ours"]["seconds"]
    return report


NAMES = {
    "ours": "ours, 0-shot",
    "theirs": "lm-eval's transformers, 0-shot",
    "subjects": "ours, whole subjects, 0-shot",
    "shots": "ours, whole subjects, with examples",
}


def table(report: dict[str, Any]) -> str:
    """The report as markdown."""
    lines = [
        f"`{report['command']}`, commit {report['commit']}, {report['hardware']}, load "
        f"{report['load'][0]:.1f} to {report['load'][1]:.1f}; "
        f"{report['parameters_beside_embeddings']:,} parameters beside embeddings.",
        "",
        "| side | questions | seconds | with compilation | questions/s | minutes for all 14,042 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {NAMES[side]} | {row['questions']} | {row['seconds']:.1f} | "
        f"{row['first_seconds']:.1f} | {row['questions_per_second']:.1f} | "
        f"{row['minutes_for_all']:.1f} |"
        for side, row in report["rows"].items()
    ]
    lines += ["", f"Examples take {report['shots_over_none']:.2f} times as long as none."]
    if "theirs_over_ours" in report:
        lines.append(
            f"lm-eval takes {report['theirs_over_ours']:.2f} times as long as ours; the largest "
            f"difference of a log-likelihood is {report['largest_difference']:.1e}."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
