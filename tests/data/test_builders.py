import itertools
import subprocess
import sys

import grain
import numpy as np
import pytest

from data import builders, documents, files, game24, grade_school, tokenizer
from data.errors import DataError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import data.builders.game24 as builder
    import data.builders.grade_school as stories

    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:  # a short version of the same dataset
        play = next(c for c in builder.Game24.BUILDER_CONFIGS if c.name == "legal_play")
        patch.setattr(play, "num_plays", 300)
        builders.data_source("game24/legal_play", "train", folder)
        patch.setattr(stories, "NUM_TRAIN", 50)
        builders.data_source("grade_school", "train", folder)
    return folder


@pytest.mark.parametrize("split", game24.SPLITS)
def test_puzzles_are_read_through_grain(data_dir, split):
    source = builders.data_source("game24/puzzles", split, data_dir)
    assert len(source) == len(game24.split(split))
    batches = list(grain.MapDataset.source(source).map(lambda one: one["numbers"]).batch(50))
    found = {tuple(numbers) for batch in batches for numbers in batch.tolist()}
    assert found == set(game24.split(split))
    assert source[0]["prompt"].decode() == game24.prompt_text(source[0]["numbers"])
    assert source[0]["id"].decode().startswith("game24/")
    files = [path.name for path in data_dir.glob("game24/puzzles/*/*record*")]
    assert len(files) == 3 and all("array_record" in name for name in files)


def test_legal_play_becomes_batches(data_dir):
    tokens = tokenizer.load_tokenizer("game24")
    source = documents.TfdsSource(name="game24/legal_play", data_dir=str(data_dir))
    corpus = documents.load([source], tokens, sequence_length_tokens=32)
    wanted = set(itertools.islice(game24.iterate_legal_plays(0), 300))
    assert {tokens.decode(row) for row in corpus.windows.tokens} == {a + b for a, b in wanted}
    batch = next(iter(documents.batches(corpus, batch_size=4, seed=0)))
    np.testing.assert_array_equal(batch["loss_mask"].sum(axis=1), 25)  # all after the prompt


def test_grade_school_has_the_problems_of_its_splits(data_dir):
    tokens = tokenizer.load_tokenizer("grade_school")
    source = documents.TfdsSource(name="grade_school", split="test", data_dir=str(data_dir))
    whole = source.documents(tokens, 288)
    wanted = {one.prompt + one.answer for one in grade_school.problem_set("test")}
    ends = np.cumsum(whole.lengths)
    assert {tokens.decode(whole.tokens[a:b]) for a, b in zip(whole.starts, ends)} == wanted
    train = builders.data_source("grade_school", "train", data_dir)
    by_id = {one["id"].decode(): one for one in train}  # tfds shuffles them
    assert len(by_id) == 50
    for number, problem in enumerate(itertools.islice(grade_school.problems(0), 3)):
        one = by_id[f"grade_school/train/{number}"]
        assert one["template"].decode() == problem.template
        assert int(one["num_steps"]) == problem.num_steps


def test_unknown_datasets_are_refused(data_dir):
    for name, split in [
        ("game25/puzzles", "test"),
        ("game24/x", "test"),
        ("game24/puzzles", "dev"),
    ]:
        with pytest.raises(DataError, match="tfds source"):
            builders.data_source(name, split, data_dir)


def test_no_tensorflow_is_loaded(data_dir):
    """Holds with and without an installed TensorFlow."""
    code = (
        "import sys; from data import builders; "
        f"print(len(builders.data_source('game24/puzzles', 'test', {str(data_dir)!r}))); "
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=files.REPOSITORY_ROOT
    )
    assert (done.returncode, done.stdout) == (0, "100\n"), done.stderr
