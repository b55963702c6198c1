"""Game of 24 as a tfds dataset: puzzles with fixed splits, and random legal play as text.

    builders.data_source("game24/puzzles", "test", data_dir)[0]

Configs:
  puzzles     train, validation, test: every solvable puzzle (`data.game24.split`)
  legal_play  train: random legal games as prompt and completion, never of a test puzzle
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from data import game24

NUM_PLAYS = 100_000


@dataclasses.dataclass(kw_only=True)
class Game24Config(tfds.core.BuilderConfig):
    """What a config holds.

    Attributes:
      num_plays: random legal games; None for the puzzles.
      seed: of the games.
    """

    num_plays: int | None = None
    seed: int = 0


class Game24(tfds.core.GeneratorBasedBuilder):
    """Game of 24."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        Game24Config(name="puzzles", description="Every solvable multiset of four numbers 1-13."),
        Game24Config(
            name="legal_play",
            description="Random legal games, without the test puzzles.",
            num_plays=NUM_PLAYS,
        ),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        if self.builder_config.num_plays is None:
            features = {"id": text(), "prompt": text()}
            features["numbers"] = tfds.features.Tensor(shape=(4,), dtype=np.int32)
        else:
            features = {"prompt": text(), "completion": text()}
        return self.dataset_info_from_configs(
            description="Reach 24 from four numbers with + - * /, using each exactly once.",
            features=tfds.features.FeaturesDict(features),
            homepage="https://github.com/princeton-nlp/tree-of-thought-llm",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        if self.builder_config.num_plays is not None:
            return {"train": self._plays()}
        return {split: self._generate_examples(split) for split in game24.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for numbers in game24.split(split):
            name = "-".join(map(str, numbers))
            prompt = game24.prompt_text(numbers)
            yield name, {"id": f"game24/{name}", "prompt": prompt, "numbers": numbers}

    def _plays(self) -> Iterator[tuple[int, dict[str, str]]]:
        plays = game24.iterate_legal_plays(self.builder_config.seed)
        chosen = itertools.islice(plays, self.builder_config.num_plays)
        for key, (prompt, completion) in enumerate(chosen):
            yield key, {"prompt": prompt, "completion": completion}
