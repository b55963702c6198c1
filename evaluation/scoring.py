"""How well trained models read held-out text: token by token, each after the right ones.

    RUN/report/    report.json, table.md, table.csv, scores.png

A set of documents is read by several models, and by several runs (seeds) of each. An accuracy says
how many counted tokens the model finds the likeliest, and how many documents it gets right from
their first counted token to the last, which greedy decoding would then write as well. A loss is in
nats per counted token.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich

from data import documents
from data.sources import TextSource
from data.tokenizer import load_tokenizer
from evaluation import plots, report, statistics
from models.attention import AttentionConfig
from models.language_model import LanguageModel
from train import checkpoints, config_json
from train.errors import ConfigError

TOKENS_AT_ONCE = 32_768


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Documents that no model was trained on."""

    source: TextSource
    """Where they come from."""
    length: int
    """Tokens of a window, at least those of the longest document."""
    name: str = "test"
    """What the report calls them."""


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """One model, trained once or several times."""

    name: str
    """What the report calls it."""
    checkpoints: tuple[str, ...]
    """Run folders or checkpoints that differ in their seed only."""
    series: str = ""
    """The line of the plot that it belongs to; its name unless given."""
    attention: AttentionConfig | None = None
    """Read with this attention in place of the one it was trained with."""


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Models that read the same held-out documents."""

    task: str
    """Name of the task in the report."""
    models: tuple[ScoredModel, ...]
    """What is compared."""
    held_out: tuple[HeldOut, ...]
    """What they read."""
    metric: Literal["accuracy", "loss"] = "accuracy"
    """Accuracy of tokens and documents, or loss."""
    relative_to_first: bool = False
    """Also the losses less those of the first model, seed by seed."""
    plot_against: Literal["order", "state_bytes", "document_tokens"] | None = None
    """Number that the plot has on its horizontal axis; None draws one bar per model."""

    def __post_init__(self):
        names = [model.name for model in self.models]
        if not names or len(set(names)) < len(names) or not self.held_out:
            raise ConfigError(
                "a scoring has held-out documents and models of different names; got "
                f"{names} on {len(self.held_out)} sets. Name them apart."
            )
        counts = {len(model.checkpoints) for model in self.models}
        if self.relative_to_first and (self.metric != "loss" or len(counts) > 1):
            raise ConfigError(
                'losses relative to the first model are of metric "loss", seed by seed; got '
                f"metric={self.metric!r} and models of {sorted(counts)} seeds. Correct them."
            )


@dataclass(frozen=True)
class Scores:
    """What one run makes of one set of documents.

    right: share of the counted tokens that are found, per document. loss: nats per counted token,
    per document. seconds: per document, without the batch that compiles; None if there is no other.
    """

    right: np.ndarray
    loss: np.ndarray
    num_counted: int
    seconds: float | None


def run(config: ScoringConfig, run_folder: Path, /, *, resume: bool, stop) -> Path:
    """Scores all models; returns the path of report.json.

    Raises:
      Preempted: `stop` was requested. DataError: an unreadable checkpoint or source.
    """
    del resume  # a scoring is short, and done anew
    rows = []
    of_first: dict[HeldOut, list[Scores]] = {}
    for scored in config.models:
        loaded = [checkpoints.load_params(path) for path in scored.checkpoints]
        model_config, tokenizer_name, _ = loaded[0]
        if scored.attention is not None:
            model_config = dataclasses.replace(model_config, attention=scored.attention)
        model = LanguageModel(model_config)
        for held_out in config.held_out:
            if stop is not None and stop.requested:
                stop.raise_preempted(f"{scored.name} on {held_out.name}")
            windows = read(held_out, tokenizer_name)
            scores = [score(model, params, windows) for _, _, params in loaded]
            new_rows = make_rows(config, held_out, scored, model, windows, scores)
            if config.relative_to_first and held_out in of_first:
                new_rows.append(_relative(new_rows[0], scores, of_first[held_out], config))
            of_first.setdefault(held_out, scores)
            for row in new_rows:
                rich.print(report.one_line(row))
            rows += new_rows
    draw = functools.partial(plots.scores, against=config.plot_against)
    return report.write(
        run_folder / "report", report.make(rows, run_folder), plot=draw, plot_name="scores.png"
    )


@functools.lru_cache(maxsize=8)
def read(held_out: HeldOut, tokenizer_name: str) -> documents.Windows:
    """The documents of a set, packed into windows."""
    tokenizer = load_tokenizer(tokenizer_name)
    corpus = documents.load((held_out.source,), tokenizer, sequence_length_tokens=held_out.length)
    return corpus.windows


def score(model: LanguageModel, params, windows: documents.Windows) -> Scores:
    """Reads all windows with one model."""
    num_windows, length = windows.tokens.shape
    size = min(num_windows, max(1, TOKENS_AT_ONCE // length))
    right, losses, seconds = [], [], []
    for start in range(0, num_windows, size):
        rows = np.arange(start, start + size).clip(max=num_windows - 1)  # equal shapes
        started = time.monotonic()
        batch_right, batch_loss = jax.device_get(
            _read(model, params, windows.tokens[rows], windows.segment_ids[rows].astype(np.int32))
        )
        seconds.append(time.monotonic() - started)
        right.append(batch_right[: num_windows - start])
        losses.append(batch_loss[: num_windows - start])
    counted = windows.is_counted[:, 1:]
    # Every document of every window has a number of its own.
    ids = np.arange(num_windows)[:, None] * 2**16 + windows.segment_ids[:, 1:]
    document = np.unique(ids[counted], return_inverse=True)[1]
    sizes = np.bincount(document)

    def per_document(values: list[np.ndarray]) -> np.ndarray:
        return np.bincount(document, np.concatenate(values)[counted]) / sizes

    timed = seconds[1:]
    num_timed = len(timed) * size * len(sizes) / num_windows
    return Scores(
        right=per_document(right),
        loss=per_document(losses),
        num_counted=int(counted.sum()),
        seconds=sum(timed) / num_timed if timed else None,
    )


@functools.partial(jax.jit, static_argnums=0)
def _read(model: LanguageModel, params, tokens, segment_ids):
    """Whether each token but the first is the likeliest after those before it, and its loss."""
    positions = jnp.arange(tokens.shape[1])
    starts = jnp.diff(segment_ids, axis=1, prepend=-1) != 0
    positions = positions - jax.lax.cummax(jnp.where(starts, positions, 0), axis=1)
    logits = model.forward(params, tokens, segment_ids=segment_ids, positions=positions)[:, :-1]
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    is_right = jnp.argmax(logits, axis=-1) == tokens[:, 1:]
    return is_right, jax.nn.logsumexp(logits, axis=-1) - chosen


def make_rows(
    config: ScoringConfig,
    held_out: HeldOut,
    scored: ScoredModel,
    model: LanguageModel,
    windows: documents.Windows,
    scores: Sequence[Scores],
) -> list[report.Row]:
    """The rows of one model on one set: means over its seeds."""
    num_documents, num_counted = len(scores[0].loss), scores[0].num_counted
    tokens = (windows.segment_ids > 0).sum() / num_documents
    attention = model.config.attention
    settings = {
        "series": scored.series or scored.name,
        "order": attention.order if attention.kind == "taylor" else None,
        "state_bytes": state_bytes(model, math.ceil(tokens)),
        "document_tokens": math.ceil(tokens),
        "parameters": sum(map(np.size, jax.tree.leaves(model.abstract_params()["trunk"]))),
        "attention": config_json.encode(attention),
        "source": config_json.encode(held_out.source),
    }
    seconds = [one.seconds for one in scores if one.seconds is not None]

    def row(metric: str, per_seed: Sequence[float], low: float, high: float) -> report.Row:
        return report.Row(
            task=config.task,
            split=held_out.name,
            stage="",
            method=scored.name,
            metric=metric,
            score=sum(per_seed) / len(per_seed),
            low=low,
            high=high,
            n=num_documents,
            simulations=None,
            use_oracle=False,
            use_value=False,
            forward_passes_per_problem=float(tokens),
            seconds_per_problem=sum(seconds) / len(seconds) if seconds else None,
            settings=settings | {"scores": list(per_seed)},
        )

    if config.metric == "loss":
        losses = [float(one.loss.mean()) for one in scores]
        return [row(report.LOSS, losses, *_interval_of_loss(losses, scores[0].loss))]
    found = [float(one.right.mean()) for one in scores]
    whole = [float((one.right == 1).mean()) for one in scores]
    interval = functools.partial(statistics.interval_over_seeds, num_asked=num_documents)
    rows = [row(report.TOKEN_ACCURACY, found, *interval(found))]
    if num_counted > num_documents:
        rows.append(row(report.DOCUMENT_ACCURACY, whole, *interval(whole)))
    return rows


def _relative(
    row: report.Row, scores: Sequence[Scores], first: Sequence[Scores], config: ScoringConfig
) -> report.Row:
    """The row of a loss as a difference to the first model's, seed by seed."""
    pairs = [one.loss - other.loss for one, other in zip(scores, first, strict=True)]
    gaps = [float(pair.mean()) for pair in pairs]
    low, high = _interval_of_loss(gaps, pairs[0])
    return dataclasses.replace(
        row,
        metric=f"{report.LOSS} above {config.models[0].name}",
        score=sum(gaps) / len(gaps),
        low=low,
        high=high,
        settings=row.settings | {"scores": gaps},
    )


def _interval_of_loss(per_seed: Sequence[float], documents_of_one: np.ndarray):
    """Over the seeds; over the documents where there is one seed."""
    several = per_seed if len(per_seed) > 1 else documents_of_one.tolist()
    return statistics.student_interval(several) if len(several) > 1 else (per_seed[0],) * 2


def state_bytes(model: LanguageModel, num_tokens: int) -> int:
    """Bytes that the model keeps of one text of that many tokens, to read on from there."""
    cache = jax.eval_shape(lambda: model.empty_cache(1, num_tokens))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers))
