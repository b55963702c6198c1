"""Search records -> batches that teach policy, value and text at the same time.

A batch is a dictionary of up to three dictionaries of arrays (a part of size 0 is left out):
  policy: tokens [B,T], lengths [B], candidates [B,k,s], candidate_lengths [B,k] (0 = absent),
          weights [B,k+1] (the last is all that is not a candidate)
  value:  tokens [B,T], value_target [B,T], value_mask [B,T] (1 at the last token of a state whose
          value is known)
  text:   as in `data.documents`
Integers are int32, the rest float32; rows are padded on the right.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Literal

import grain

from data import documents, mixture, record_rows, records
from data.errors import DataError
from data.mixture import Rows
from data.record_rows import Arrays, SolvedTexts
from data.records import SearchRecord
from data.tokenizer import Tokenizer

_ENDLESS = 10**12

Folders = list[list[SearchRecord]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSource:
    """A folder of record shards."""

    path: str
    """The folder; "stage:NAME/records" in a pipeline."""
    weight: float = 1.0
    """Share of the rows, against the other weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """What is taken from search records, and the shapes of the batches."""

    records: tuple[RecordSource, ...]
    """Folders of records, for instance one per round."""
    policy_batch: int = 64
    """Rows that teach the policy; 0 leaves the part out."""
    value_batch: int = 64
    """Rows that teach the value; 0 leaves the part out."""
    text_batch: int = 64
    """Rows of text; 0 leaves the part out."""
    prefix_tokens: int = 32
    """T of policy rows: the longest prompt and completion before a move."""
    num_candidates: int = 16
    """k; of more candidates the ones of largest weight are kept."""
    candidate_tokens: int = 12
    """s, the longest move."""
    path_tokens: int = 32
    """T of value rows: the longest prompt and completion."""
    policy_from: Literal["all", "solved"] = "all"
    """Positions: "all", or only those below which a "solved" text is known."""
    value_from: Literal["outcome", "tree"] = "tree"
    """Labels: "outcome" labels played positions and finished texts with how they ended; "tree"
    adds the nodes of the trees and lets solved texts anywhere below decide."""
    value_min_explored: float = 0.6
    """A tree node below which nothing solved was found is labelled 0 only if the search knows the
    end of this share of the model's continuations from there."""
    label_once: bool = True
    """Label a state in only one of the rows that pass through it."""


@dataclasses.dataclass(frozen=True)
class HybridCorpus:
    """All rows of a hybrid training run, in memory. A part that is not used is None."""

    policy: Rows | None
    value: Rows | None
    text: documents.Corpus | None

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that training can see of the corpus."""
        digest = hashlib.sha256((self.text.fingerprint if self.text else "").encode())
        for rows in filter(None, (self.policy, self.value)):
            rows.add_to(digest)
        return digest.hexdigest()


def load(
    config: HybridConfig,
    text_sources: Sequence[documents.Source],
    tokenizer: Tokenizer,
    *,
    sequence_length_tokens: int,
) -> HybridCorpus:
    """Reads all records and text sources; records of another tokenizer are given in this one's.

    Raises:
      DataError: if records are not readable, do not fit the shapes, or hold no rows at all.
    """
    if not (config.policy_batch or config.value_batch or config.text_batch):
        raise DataError(
            "hybrid training needs at least one part; got policy_batch=value_batch=text_batch=0. "
            "Give one of them a size."
        )
    folders = [list(records.read_for_training(source.path, tokenizer)) for source in config.records]
    solved = SolvedTexts(itertools.chain.from_iterable(folders))
    return HybridCorpus(
        policy=_policy(config, folders, solved, tokenizer) if config.policy_batch else None,
        value=_value(config, folders, solved, tokenizer) if config.value_batch else None,
        text=documents.load(text_sources, tokenizer, sequence_length_tokens=sequence_length_tokens)
        if config.text_batch
        else None,
    )


def _policy(
    config: HybridConfig, folders: Folders, solved: SolvedTexts, tokenizer: Tokenizer
) -> Rows:
    rows = functools.partial(
        record_rows.policy_rows,
        solved=solved,
        solved_only=config.policy_from == "solved",
        num_candidates=config.num_candidates,
        prefix_tokens=config.prefix_tokens,
        candidate_tokens=config.candidate_tokens,
        pad_id=tokenizer.pad_id,
    )
    return _join("policy", [rows(games) for games in folders], config)


def _value(
    config: HybridConfig, folders: Folders, solved: SolvedTexts, tokenizer: Tokenizer
) -> Rows:
    for source, games in zip(config.records, folders, strict=True):
        is_labelled = any(game.trees for game in games) or not any(game.positions for game in games)
        if config.value_from == "tree" and not is_labelled:
            raise DataError(
                'value_from="tree" labels the nodes of search trees; the records in '
                f"{source.path} have none. Search with keep_trees=True, or take "
                'value_from="outcome".'
            )
    rows = functools.partial(
        record_rows.value_rows,
        solved=solved,
        value_from=config.value_from,
        min_explored=config.value_min_explored,
        label_once=config.label_once,
        path_tokens=config.path_tokens,
        pad_id=tokenizer.pad_id,
    )
    return _join("value", [rows(games) for games in folders], config)


def _join(part: str, sources: list[Arrays], config: HybridConfig) -> Rows:
    """Rows of all folders; folders without any are left out of the mixture."""
    counts = [len(arrays["tokens"]) for arrays in sources]
    weights = [source.weight for source in config.records]
    if not sum(counts) or min(weights) <= 0:
        raise DataError(
            f"hybrid training needs {part} rows from folders of positive weight; got {counts} rows "
            f"of weights {weights} from {[source.path for source in config.records]}. "
            f"Search more, take policy_from='all', or set {part}_batch=0."
        )
    kept = [i for i, count in enumerate(counts) if count]
    return mixture.join([sources[i] for i in kept], [weights[i] for i in kept])


def batches(
    corpus: HybridCorpus, config: HybridConfig, *, seed: int, host: int = 0, num_hosts: int = 1
) -> grain.IterDataset[dict[str, Arrays]]:
    """Endless hybrid batches; iterators can be saved and restored (`data.mixture.iterate`)."""
    parts = {
        "policy": (corpus.policy, config.policy_batch),
        "value": (corpus.value, config.value_batch),
        "text": (corpus.text, config.text_batch),
    }
    used = {name: (rows, size) for name, (rows, size) in parts.items() if rows is not None}
    datasets = [
        mixture.batched_rows(
            rows.num_rows,
            rows.weights,
            rows.gather,
            batch_size=batch_size,
            seed=seed + 1000 * i,
            host=host,
            num_hosts=num_hosts,
        )
        for i, (rows, batch_size) in enumerate(used.values())
    ]
    datasets = [dataset[:_ENDLESS] for dataset in datasets]  # zip wants equal lengths
    joined = grain.experimental.ZipMapDataset(datasets)
    return mixture.iterate(joined.map(lambda arrays: dict(zip(used, arrays, strict=True))))
