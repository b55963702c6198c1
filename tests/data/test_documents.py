import itertools
import json
import lzma

import numpy as np
import pytest

from data import documents, files, game24, records, tokenizer
from data.errors import DataError
from tests.data import synthetic_records

GAME24 = tokenizer.load_tokenizer("game24")
# The same words in another order: another tokenizer, for which no fast path exists.
SHUFFLED = tokenizer.WordTokenizer(("<pad>", "<eos>", *reversed(GAME24.words[2:])))


def load(*sources, length=32, tokens=GAME24):
    return documents.load(sources, tokens, sequence_length_tokens=length)


def counted_words(source, tokens=GAME24):
    windows = load(source, tokens=tokens).windows
    return [tokens.words[i] for i in windows.tokens[0][windows.is_counted[0]]]


def test_loss_masks_by_hand(tmp_path):
    text = "4 5 6\n6 - 4 = 2 left 2 5\n5 * 2 = 10"
    (tmp_path / "plays.txt").write_text(text)
    path = str(tmp_path / "plays.txt")
    results = ["2", "left", "2", "5", "\n", "10", "<eos>"]
    everything = [*text.replace("\n", " \n ").split(" ")[1:], "<eos>"]
    assert counted_words(documents.TextFileSource(path=path, loss="all")) == everything
    assert counted_words(documents.TextFileSource(path=path, loss="results")) == results


def test_a_result_ends_with_its_document(tmp_path):
    (tmp_path / "a.txt").write_text("6 - 4 = 2|5 6 7\n6 - 5 = 1")
    source = documents.TextFileSource(path=str(tmp_path / "a.txt"), separator="|", loss="results")
    assert counted_words(source) == ["2", "<eos>", "1", "<eos>"]


@pytest.mark.parametrize("tokens", [GAME24, SHUFFLED])
@pytest.mark.parametrize("loss", ["completion", "results", "all"])
def test_legal_play_counts_the_right_tokens(loss, tokens):
    source = documents.LegalPlaySource(num_plays=40, loss=loss)
    windows = load(source, tokens=tokens).windows
    plays = game24.legal_plays(np.random.default_rng(0), 40)
    for row, play in enumerate(plays):
        prompt, newline, completion = GAME24.decode(play).partition("\n")
        assert tokens.decode(windows.tokens[row]) == prompt + newline + completion
        words = [tokens.words[i] for i in windows.tokens[row][windows.is_counted[row]]]
        lines = [[*line.split(" "), "\n"] for line in completion.split("\n")]
        lines[-1][-1] = "<eos>"
        whole = [word for line in lines for word in line]
        wanted = {
            "completion": whole,
            "results": [word for line in lines for word in line[line.index("=") + 1 :]],
            "all": [*prompt.split(" ")[1:], "\n", *whole],
        }
        assert words == wanted[loss]


def test_short_games_share_windows():
    source = documents.LegalPlaySource(num_plays=30, num_numbers=2, max_number=99)
    windows = load(source, length=32).windows
    assert len(windows) == 10 and windows.segment_ids.max() == 3


def test_text_is_cut_into_windows(tmp_path):
    path = tmp_path / "words.txt.xz"
    path.write_bytes(lzma.compress(b"1 2 3 4 5 6 7|8 9||10"))
    source = documents.TextFileSource(path=str(path), separator="|")
    windows = load(source, length=3).windows
    texts = [
        GAME24.decode(row[ids == segment])
        for row, ids in zip(windows.tokens, windows.segment_ids)
        for segment in range(1, ids.max() + 1)
    ]
    assert texts == ["1 2 3", "4 5 6", "7", "8 9", "10"]


def test_parts_of_a_file_meet(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0123456789" * 2)
    letters = tokenizer.load_tokenizer("bytes")

    def text(**part):
        source = documents.TextFileSource(path=str(path), **part)
        return letters.decode(source.documents(letters, 4).tokens)

    assert text(end=0.9) == "012345678901234567" and text(begin=0.9) == "89"
    assert text(begin=0.9, end=0.95) == "8"
    with pytest.raises(DataError, match=r"begin=0\.5"):
        text(begin=0.5, end=0.5)


def test_texts_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("1 2")
    monkeypatch.setenv("TAYLORZERO_DATA", str(tmp_path))
    assert files.read_text("a.txt") == "1 2"
    with pytest.raises(DataError, match="TAYLORZERO_DATA"):
        files.read_text("b.txt")
    (tmp_path / "torn.xz").write_bytes(b"no xz file")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    for name in ("torn.xz", "latin.txt"):
        with pytest.raises(DataError, match=name):
            files.read_text(name)


def test_record_texts(tmp_path):
    games = [synthetic_records.random_record(seed) for seed in range(6)]
    solved = synthetic_records.solved_record()
    records.write_shard(tmp_path / "a.arrayrecord", [*games, solved, solved])
    texts = {}
    for include, from_leaves in itertools.product(("solved", "all"), (False, True)):
        source = documents.RecordTextSource(
            path=str(tmp_path), include=include, from_leaves=from_leaves
        )
        windows = load(source).windows
        texts[include, from_leaves] = {GAME24.decode(row) for row in windows.tokens}
        assert len(windows) == len(texts[include, from_leaves]), "repeats are dropped"
    played = {game.prompt + game.completion for game in [*games, solved]}
    assert texts["all", False] == played
    assert solved.prompt + solved.completion in texts["solved", False]
    assert texts["solved", False] <= texts["solved", True] < texts["all", True]
    for text in texts["solved", True]:
        prompt, _, completion = text.partition("\n")
        assert game24.check(tuple(map(int, prompt.split())), completion)


def mixture():
    return load(
        documents.LegalPlaySource(num_plays=100, weight=3.0),
        documents.LegalPlaySource(num_plays=20, num_numbers=3, max_number=99),
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_batches_have_the_contract():
    batch = next(iter(documents.batches(mixture(), batch_size=8, seed=0)))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "tokens": ((8, 32), "int32"),
        "loss_mask": ((8, 32), "float32"),
        "segment_ids": ((8, 32), "int32"),
        "positions": ((8, 32), "int32"),
    }


def test_sources_are_mixed_by_weight_and_reshuffled():
    corpus = mixture()
    batches = take(iter(documents.batches(corpus, batch_size=40, seed=0)), 10)
    four_numbers = corpus.windows.tokens[: corpus.num_rows[0]]
    known = {row.tobytes() for row in four_numbers}
    seen = [row.tobytes() for batch in batches for row in batch["tokens"]]
    from_first = [row for row in seen if row in known]
    assert abs(len(from_first) - 300) <= 2
    epochs = from_first[:100], from_first[100:200]
    assert set(epochs[0]) == set(epochs[1]) == known, "each epoch sees each window once"
    assert epochs[0] != epochs[1] and epochs[0] != [row.tobytes() for row in four_numbers]


@pytest.mark.parametrize("consumed", [0, 1, 7])
def test_resumed_iterator_gives_identical_batches(consumed):
    def fresh():
        return iter(documents.batches(mixture(), batch_size=16, seed=3))

    first = fresh()
    take(first, consumed)
    state = json.loads(json.dumps(first.get_state()))
    wanted = take(first, 5)
    resumed = fresh()
    take(resumed, 2)
    resumed.set_state(state)
    assert_same(wanted, take(resumed, 5))


def test_seeds_differ():
    corpus = mixture()
    one, other = (next(iter(documents.batches(corpus, batch_size=8, seed=s))) for s in (0, 1))
    assert (one["tokens"] != other["tokens"]).any()


def test_hosts_share_the_rows_of_one_host():
    corpus = mixture()
    whole = next(iter(documents.batches(corpus, batch_size=8, seed=0)))["tokens"]
    parts = [
        next(iter(documents.batches(corpus, batch_size=4, seed=0, host=host, num_hosts=2)))
        for host in (0, 1)
    ]
    for host in (0, 1):
        np.testing.assert_array_equal(parts[host]["tokens"], whole[host::2])


def test_fingerprint_tells_data_apart():
    def fingerprint(seed=0, weight=1.0):
        source = documents.LegalPlaySource(num_plays=9, seed=seed, weight=weight)
        return load(source).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(weight=2.0)}) == 3


def test_bad_sources_are_refused():
    with pytest.raises(DataError, match="positive weight"):
        load(documents.LegalPlaySource(num_plays=3, weight=0.0))
    with pytest.raises(DataError, match="positive weight"):
        load()
    with pytest.raises(DataError, match="sequence_length_tokens"):
        load(documents.LegalPlaySource(num_plays=3), length=29)
    letters = tokenizer.WordTokenizer(("<pad>", "<eos>", *GAME24.words[3:]))  # no line end
    with pytest.raises(DataError):
        load(documents.LegalPlaySource(num_plays=3, loss="results"), tokens=letters)
