"""Generated grade-school problems as a tfds dataset, in the splits of `data.grade_school`.

builders.data_source("grade_school", "test", data_dir)[0]
"""

import itertools
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from data import grade_school

NUM_TRAIN = 50_000


class GradeSchool(tfds.core.GeneratorBasedBuilder):
    """Word problems of 2 to 6 steps; `completion` is the solution, with `#### n` at its end."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {"id": text(), "prompt": text(), "completion": text(), "template": text()}
        features["num_steps"] = tfds.features.Scalar(np.int32)
        return self.dataset_info_from_configs(
            description="Word problems from templates, in the form of GSM8K.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split) for split in grade_school.SPLITS}

    def _generate_examples(self, split: grade_school.Split) -> Iterator[tuple[int, dict]]:
        if split == "train":
            chosen = list(itertools.islice(grade_school.problems(0), NUM_TRAIN))
        else:
            chosen = list(grade_school.problem_set(split))
        for number, problem in enumerate(chosen):
            yield (
                number,
                {
                    "id": f"grade_school/{split}/{number}",
                    "prompt": problem.prompt,
                    "completion": problem.answer,
                    "template": problem.template,
                    "num_steps": problem.num_steps,
                },
            )
