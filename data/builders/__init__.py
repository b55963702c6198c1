"""Datasets for tensorflow-datasets, which here needs no TensorFlow: files are ArrayRecord.

A builder is a module of this folder named after its dataset.
"""

import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from data.errors import DataError


def data_source(
    name: str, split: str, data_dir: str | os.PathLike[str] | None = None
) -> Sequence[dict[str, Any]]:
    """The examples of a split, by number; the dataset is prepared on first use.

    Args:
      name: dataset and config, such as "game24/puzzles"; a dataset that is not of this folder
        must be known to tfds.
      split: such as "train" or "test[:10]".
      data_dir: where tfds keeps datasets; None is its own default.

    Raises:
      DataError: if tfds cannot give it.
    """
    import tensorflow_datasets as tfds  # only those who use it wait for its import

    dataset = name.partition("/")[0]
    if pathlib.Path(__file__).with_name(f"{dataset}.py").exists():
        importlib.import_module(f"data.builders.{dataset}")  # registers itself
    try:
        return tfds.data_source(
            name, split=split, data_dir=data_dir, builder_kwargs={"file_format": "array_record"}
        )
    except (tfds.core.DatasetNotFoundError, ValueError, KeyError, AssertionError) as error:
        known = sorted(path.stem for path in pathlib.Path(__file__).parent.glob("[!_]*.py"))
        raise DataError(
            f"a tfds source names a dataset, a config and a split; got {name!r}, {split!r}: "
            f"{str(error).splitlines()[0]} Correct the name (datasets here: {known})."
        ) from error
