"""`python -m evaluation.harness CHECKPOINT`: the tasks of lm-eval (extra `eval`), without torch.

    python -m evaluation.harness runs/NAME --tasks mmlu truthfulqa_mc1 gsm8k --limit 50
    python -m evaluation.harness path/to/Llama-3.2-1B --tasks gsm8k --search    # System 2 on

`HarnessModel` is a model of ours as lm-eval's `LM`: `loglikelihood` and `loglikelihood_rolling` are
read in batches that share what texts have in common (`evaluation.likelihood`), `generate_until` is
greedy decoding, sampling, or any method of `evaluation.methods`. Prompts, filters and scores are
lm-eval's own. Nothing is downloaded: data sets come from the data folder (`local_dataset`).
"""

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import jax
import jax.numpy as jnp
import lm_eval
import lm_eval.api.task
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from configs import load
from data import files, gsm8k, math500, prompts
from data.problems import Prompt
from data.tokenizer import prompt_ids
from evaluation import benchmarks, choices, likelihood, report, run, tasks
from evaluation.methods import AnyMethod, Search
from evaluation.player import Player, Questions
from models import generate
from search.gumbel import SearchConfig
from train import checkpoints
from train.errors import ConfigError, DataError

MAX_NEW_TOKENS = 256  # where a task does not say; as in lm-eval
JSON_FOLDER = "lm_eval"  # below the data folder: PATH/NAME/SPLIT.jsonl of any other data set


class HarnessModel(TemplateLM):
    """A model of ours as an `LM` of lm-eval.

    Args:
      longest_tokens: that the model reads at once; longer contexts lose their beginning.
      method: writes the texts of `generate_until`; None: greedy decoding, or as the task samples.
    """

    def __init__(
        self,
        player: Player,
        *,
        longest_tokens: int,
        method: AnyMethod | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ):
        super().__init__()
        self.player, self.method = player, method
        self.max_length, self.batch_size = longest_tokens, batch_size
        self._rng_key = jax.random.key(seed)

    # ------------------------------------------------------------------------------- tokens

    @property
    def eot_token_id(self) -> int:
        return self.player.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return tasks.prefix_id(self.player.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        return self.player.tokenizer.fingerprint[:16]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if add_special_tokens is False:
            return self.player.tokenizer.encode(string)
        return prompt_ids(self.player.tokenizer, string)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return getattr(self.player.tokenizer, "chat_template", None) if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if not add_generation_prompt:
            raise NotImplementedError("chats that end in the assistant's turn are not continued.")
        return prompts.render(self.player.tokenizer, chat_history)

    # -------------------------------------------------------------------------- likelihoods

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [likelihood.Request(tuple(context), tuple(cont)) for _, context, cont in requests]
        found = likelihood.Reader(self.player.model, self.player.params).score(
            asked, longest_tokens=self.max_length
        )
        for (texts, _, _), each in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, tuple(each))
        return [(each.log_prob, each.is_greedy) for each in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        windows: list[likelihood.Request] = []
        ends: list[int] = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            windows += tasks.windows(ids, self.prefix_token_id, self.max_length)
            ends.append(len(windows))
        found = self._loglikelihood_tokens([(None, *window) for window in windows])
        totals = [
            sum(log_prob for log_prob, _ in found[start:end])
            for start, end in zip([0, *ends], ends)
        ]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # -------------------------------------------------------------------------------- texts

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts: dict[int, str] = {}
        for settings, numbers in groups.items():
            contexts = [requests[number].args[0] for number in numbers]
            written = self._generate(contexts, json.loads(settings))
            texts |= dict(zip(numbers, written, strict=True))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[number])
        return [texts[number] for number in range(len(requests))]

    def _generate(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        settings = dict(normalize_gen_kwargs(settings, MAX_NEW_TOKENS))
        # A text ends before the first of these; the token that ends texts is not written out.
        until = handle_stop_sequences(settings.get("until"), eos=None)
        longest = settings["max_gen_toks"]
        if longest >= self.max_length:
            raise ConfigError(
                "a model reads the context and what it writes; got max_gen_toks="
                f"{longest} for a model of {self.max_length} tokens. Set --max-new-tokens lower."
            )
        if self.method is not None:
            texts = self._play(contexts, longest)
        else:
            temperature = settings["temperature"] if settings.get("do_sample") else 0.0
            texts = self._decode(
                [self.tok_encode(context)[longest - self.max_length :] for context in contexts],
                longest,
                temperature=temperature,
                top_k=settings.get("top_k") or None,
                top_p=settings.get("top_p"),
            )
        return [postprocess_generated_text(text, until, None) for text in texts]

    def _decode(self, contexts: Sequence[list[int]], longest: int, **sampling: Any) -> list[str]:
        """Contexts of like length at once; no token is forbidden, as in lm-eval's own backends."""
        order = sorted(range(len(contexts)), key=lambda n: -len(contexts[n]))
        texts: dict[int, str] = {}
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            filled = [*numbers, *[numbers[-1]] * (self.batch_size - len(numbers))]
            tokens, lengths = generate.right_padded([contexts[n] for n in filled])
            keys = jax.vmap(lambda n: jax.random.fold_in(self._rng_key, n))(np.array(filled))
            written = generate.generate(
                self.player.model,
                self.player.params,
                jnp.asarray(tokens),
                jnp.asarray(lengths),
                max_new_tokens=longest,
                rng_key=keys,
                stop_tokens=(self.eot_token_id,),
                **sampling,
            )
            ids, ends = jax.device_get((written.tokens, written.lengths))
            known = self.player.tokenizer.vocab_size  # logits beyond it say nothing
            for row, number in enumerate(numbers):
                said = [token for token in ids[row, : ends[row]].tolist() if token < known]
                texts[number] = self.player.tokenizer.decode(said)
        return [texts[n] for n in range(len(contexts))]

    def _play(self, contexts: Sequence[str], longest: int) -> list[str]:
        """The texts of a method, such as a search."""
        assert self.method is not None
        method = benchmarks.of_length(self.method, longest)
        texts: list[str] = []
        for start in range(0, len(contexts), self.batch_size):
            some = contexts[start : start + self.batch_size]
            asked = [
                Prompt(id=f"lm-eval/{start + n}", split="test", text=text)
                for n, text in enumerate(some)
            ]
            numbers = range(start, start + len(some))
            attempts = method.play(self.player, Questions("lm-eval", numbers, asked))
            texts += [attempt.completion for attempt in attempts]
        return texts


# --------------------------------------------------------------------------------- data sets


def local_dataset(path: str, name: str | None = None, **kwargs: Any) -> datasets.DatasetDict:
    """What `datasets.load_dataset` would download, from the data folder: MMLU, TruthfulQA, GSM8K,
    MATH-500, and `lm_eval/PATH/NAME/SPLIT.jsonl`. Files that a task names itself are read as ever.

    Raises:
      DataError: it is not there.
    """
    if path in ("json", "csv", "parquet", "text"):
        return _LOAD_DATASET(path, name, **kwargs)
    rows: dict[str, list[dict[str, Any]]] = {}
    if path == "cais/mmlu":
        for split, by_subject in choices.mmlu_rows().items():
            rows["validation" if split == "val" else split] = [
                {
                    "question": row[0],
                    "subject": name,
                    "choices": list(row[1:5]),
                    "answer": choices.LETTERS.index(row[5]),
                }
                for row in by_subject[name or ""]
            ]
    elif (path, name) == ("truthfulqa/truthful_qa", "multiple_choice"):
        rows["validation"] = [
            {
                "question": row["question"],
                **{
                    kind: {"choices": list(row[kind]), "labels": list(row[kind].values())}
                    for kind in ("mc1_targets", "mc2_targets")
                },
            }
            for row in json.loads(files.read_text(choices.TRUTHFULQA_FILE))
        ]
    elif path == "openai/gsm8k":
        for split, file in gsm8k.FILES.items():
            rows[split] = files.read_json_lines(file, fields=("question", "answer"))
    elif path == "HuggingFaceH4/MATH-500":
        rows["test"] = files.read_json_lines(math500.FILE, fields=("problem", "answer"))
    else:
        folder = files.find(f"{JSON_FOLDER}/{path}/{name or 'default'}")
        found = sorted(folder.glob("*.jsonl")) if folder else []
        if not found:
            raise DataError(
                f"nothing is downloaded: the data set {path} ({name}) is wanted as "
                f"{JSON_FOLDER}/{path}/{name or 'default'}/SPLIT.jsonl below "
                f"{', '.join(map(str, files.roots()))}. Put it there."
            )
        rows = {file.stem: files.read_json_lines(str(file), fields=()) for file in found}
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(some) for split, some in rows.items()}
    )


_LOAD_DATASET = datasets.load_dataset


@contextlib.contextmanager
def local_datasets() -> Iterator[None]:
    """Inside, tasks of lm-eval read their data from the data folder."""
    datasets.load_dataset = local_dataset
    try:
        yield
    finally:
        datasets.load_dataset = _LOAD_DATASET


# ----------------------------------------------------------------------------------- command


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tasks of lm-eval on one model."""

    checkpoint: str = ""
    """Run folder, checkpoint or folder of transformers."""
    tasks: tuple[str, ...] = ("mmlu",)
    """Names of tasks or groups of lm-eval, or paths of YAML files of your own."""
    num_fewshot: int | None = None
    """Worked examples; None: as the task says (gsm8k 5, mmlu 0)."""
    limit: int | None = None
    """Only the first so many questions of every task; None asks all."""
    chat: bool = False
    """Put as a chat in the model's own template."""
    max_new_tokens: int | None = None
    """Longest text; None: as the task says."""
    search: SearchConfig | None = None
    """Texts are searched for; a field such as --search.num-simulations 50 turns it on."""
    max_moves: int = 3
    """Moves after which a search is over."""
    batch_size: int = 32
    """Texts that are written at once."""


def evaluate(options: Options, model: HarnessModel, cache: Path | None = None) -> dict[str, Any]:
    """What lm-eval finds: its `results` and `samples`."""
    generation = {}
    if options.max_new_tokens is not None:
        generation["max_gen_toks"] = options.max_new_tokens
    with local_datasets():
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(options.tasks),
            num_fewshot=options.num_fewshot,
            limit=options.limit,
            apply_chat_template=options.chat,
            fewshot_as_multiturn=options.chat,
            gen_kwargs=generation or None,
            use_cache=None if cache is None else str(cache),
            bootstrap_iters=0,
        )
    assert found is not None
    return found


def make_rows(found: dict[str, Any], method: str, settings: dict[str, Any]) -> list[report.Row]:
    """Every metric of every task and filter; intervals are 1.96 of lm-eval's standard errors."""
    rows = []
    for name, results in found["results"].items():
        if name not in found["n-samples"]:  # groups have no questions of their own
            continue
        for key, score in results.items():
            metric, _, chosen = key.partition(",")
            error = results.get(f"{metric}_stderr,{chosen}")
            if not chosen or metric.endswith("_stderr") or not isinstance(score, float):
                continue
            half = 1.96 * error if isinstance(error, float) else 0.0
            title = "accuracy" if metric in ("acc", "exact_match") else metric
            low, high = score - half, score + half
            if report.is_share(title):
                low, high = max(0.0, low), min(1.0, high)
            rows.append(
                report.Row(
                    task=name,
                    split="test",
                    stage="" if chosen == "none" else chosen,
                    method=method,
                    metric=title,
                    score=score,
                    low=low,
                    high=high,
                    n=found["n-samples"][name]["effective"],
                    simulations=None,
                    use_oracle=False,
                    use_value=False,
                    forward_passes_per_problem=0.0,
                    seconds_per_problem=None,
                    settings=settings | {"lm_eval": lm_eval.__version__, "metric": metric},
                )
            )
    return rows


def main(argv: list[str]) -> None:
    if not argv or argv[0].startswith("-"):
        if list(argv) in (["--help"], ["-h"]):
            load.override(Options(), ["--help"], program="evaluation.harness CHECKPOINT")
        raise ConfigError(
            "the first argument is a run folder, a checkpoint or a folder of transformers. "
            "usage: python -m evaluation.harness CHECKPOINT [--options]"
        )
    checkpoint, *rest = argv
    name = f"harness-{Path(checkpoint).name}"
    options, flags = load.override(Options(), rest, program="evaluation.harness", name=name)
    options = dataclasses.replace(options, checkpoint=checkpoints.name_step(checkpoint))
    command = shlex.join(["python", "-m", "evaluation.harness", *argv])
    with load.opened_run(options, dataclasses.replace(flags, command=command)) as (folder, _):
        players = run.Players(run.EvaluationConfig(checkpoint=options.checkpoint))
        method = None
        if options.search is not None:
            method = Search(search=options.search, max_moves=options.max_moves)
        model = HarnessModel(
            players("trained"),
            longest_tokens=players.longest_tokens or benchmarks.TOKENS_OF_UNKNOWN_MODEL,
            method=method,
            batch_size=options.batch_size,
        )
        try:
            found = evaluate(options, model, folder / "responses")
        except KeyError as error:
            raise ConfigError(f"lm-eval has no such task: {error}") from error
        settings = {"num_fewshot": options.num_fewshot, "chat": options.chat}
        title = "lm-eval" if method is None else f"lm-eval, {method.title}"
        made = report.make(make_rows(found, title, settings), folder)
        path = report.write(folder / "report", made)
    report.show(report.read(path))
    print(f"report: {path}")


if __name__ == "__main__":
    load.main("evaluation.harness", main)
