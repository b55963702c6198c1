import dataclasses
import json

import numpy as np
import pytest

from data import documents, hybrid, record_rows, records
from data.errors import DataError
from tests.data import synthetic_records
from tests.data.synthetic_records import TOKENIZER
from tests.data.test_records import changed

SOLVED = synthetic_records.solved_record()
TEXT = (documents.LegalPlaySource(num_plays=50, loss="results"),)
PROMPT = len(SOLVED.prompt_tokens)


@pytest.fixture
def folder(tmp_path):
    games = [synthetic_records.random_record(seed) for seed in range(12)]
    records.write_shard(tmp_path / "first" / "a.arrayrecord", [SOLVED, *games[:6]])
    records.write_shard(tmp_path / "second" / "a.arrayrecord", games[6:])
    return tmp_path


def config(folder, *, weights=(1.0, 1.0), **fields):
    sources = tuple(
        hybrid.RecordSource(path=str(folder / name), weight=weight)
        for name, weight in zip(("first", "second"), weights)
    )
    sizes = {"policy_batch": 6, "value_batch": 5, "text_batch": 4}
    return hybrid.HybridConfig(**({"records": sources} | sizes | fields))


def load(config):
    return hybrid.load(config, TEXT, TOKENIZER, sequence_length_tokens=32)


def batches(config, **options):
    return iter(hybrid.batches(load(config), config, **({"seed": 0} | options)))


def policy(games, solved=None, **fields):
    options = {"num_candidates": 3, "prefix_tokens": 32, "candidate_tokens": 12, "pad_id": 0}
    options |= {"solved_only": False} | fields
    known = record_rows.SolvedTexts(games if solved is None else solved)
    return record_rows.policy_rows(games, solved=known, **options)


def value_labels(games, **fields):
    """(text of the state, label) of every label of every row, and the texts of the rows."""
    options = {"value_from": "tree", "min_explored": 0.6, "label_once": True}
    rows = record_rows.value_rows(
        games, solved=record_rows.SolvedTexts(games), path_tokens=40, pad_id=0, **(options | fields)
    )
    labels = [
        (TOKENIZER.decode(tokens[: place + 1]), target[place])
        for tokens, target, mask in zip(*rows.values())
        for place in np.flatnonzero(mask)
    ]
    assert (rows["value_target"][rows["value_mask"] == 0] == 0).all()
    return labels, [TOKENIZER.decode(tokens) for tokens in rows["tokens"]]


def test_batches_have_the_contract(folder):
    batch = next(batches(config(folder)))
    shapes = {
        part: {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
        for part, arrays in batch.items()
    }
    assert shapes == {
        "policy": {
            "tokens": ((6, 32), "int32"),
            "lengths": ((6,), "int32"),
            "candidates": ((6, 16, 12), "int32"),
            "candidate_lengths": ((6, 16), "int32"),
            "weights": ((6, 17), "float32"),
        },
        "value": {
            "tokens": ((5, 32), "int32"),
            "value_target": ((5, 32), "float32"),
            "value_mask": ((5, 32), "float32"),
        },
        "text": {
            "tokens": ((4, 32), "int32"),
            "loss_mask": ((4, 32), "float32"),
            "segment_ids": ((4, 32), "int32"),
            "positions": ((4, 32), "int32"),
        },
    }


def test_policy_rows_by_hand():
    rows = policy([SOLVED])
    np.testing.assert_array_equal(rows["lengths"], [PROMPT, PROMPT + 10, PROMPT + 19])
    for row, position in enumerate(SOLVED.positions):
        prefix = SOLVED.prompt_tokens + SOLVED.completion_tokens[: position.offset]
        np.testing.assert_array_equal(rows["tokens"][row, : len(prefix)], prefix)
        assert not rows["tokens"][row, len(prefix) :].any()
        for i, move in enumerate(position.candidates):
            assert rows["candidate_lengths"][row, i] == len(move)
            np.testing.assert_array_equal(rows["candidates"][row, i, : len(move)], move)
    np.testing.assert_array_equal(rows["candidate_lengths"][:, 2], 0)  # absent
    np.testing.assert_array_equal(rows["weights"], [[0.75, 0.125, 0, 0.125]] * 3)


def test_the_largest_candidates_are_kept_and_the_rest_takes_the_others():
    moves = ((9,), (10,), (11,), (12,))
    position = {"candidates": moves, "weights": (0.1, 0.4, 0.05, 0.3, 0.15)}
    position |= {"visits": (1,) * 4, "prior": (0.25,) * 4}
    rows = policy([changed(SOLVED, position=position)], num_candidates=2)
    np.testing.assert_array_equal(rows["candidates"][0, :, 0], [10, 12])
    np.testing.assert_allclose(rows["weights"][0], [0.4, 0.3, 0.3], rtol=1e-6)


def test_policy_from_solved_takes_positions_with_a_known_solution():
    lost = changed(SOLVED, outcome=0.0, leaves=())
    other_way = changed(  # the second move differs: no known text goes on from there
        lost,
        completion_tokens=SOLVED.positions[0].candidates[1] + SOLVED.completion_tokens[10:],
    )
    games = [SOLVED, lost, other_way]
    rows = policy(games, solved_only=True)
    np.testing.assert_array_equal(rows["lengths"], [5, 15, 24, 5, 15, 24, 5])
    assert len(policy([lost], solved_only=True)["tokens"]) == 0
    assert len(policy(games)["tokens"]) == 9


def test_outcome_labels_by_hand():
    right, failed = (SOLVED.prompt_tokens + leaf.tokens for leaf in SOLVED.leaves)
    right, failed = TOKENIZER.decode(right), TOKENIZER.decode(failed)
    first, second = right.index("\n") + 1, right.index("\n5 *") + 1
    third = right.index("\n30 -") + 1
    labels, rows = value_labels([SOLVED], value_from="outcome")
    assert sorted(rows) == sorted([right, failed])
    played = [right[:first], right[:second], right[:third], right]
    assert sorted(labels) == sorted([*((text, 1.0) for text in played), (failed, 0.0)])
    lost = changed(SOLVED, outcome=0.0)
    labels, _ = value_labels([lost], value_from="outcome")
    assert [label for _, label in labels] == [0.0] * 5  # the game's end, not what was found


def test_tree_labels_let_solved_texts_decide():
    """The end that was played is wrong; the states before it are not blamed for it."""
    lost_tokens = SOLVED.leaves[1].tokens
    lost = changed(SOLVED, completion_tokens=lost_tokens, outcome=0.0)
    labels, _ = value_labels([lost])
    right, failed = (TOKENIZER.decode(SOLVED.prompt_tokens + leaf.tokens) for leaf in SOLVED.leaves)
    by_text = dict(labels)
    assert by_text.pop(failed) == 0.0
    assert by_text.pop(right) == 1.0
    assert set(by_text.values()) <= {1.0}


def test_tree_nodes_are_refuted_where_the_search_looked():
    """root -> a (.7) -> wrong end (.9); a -> unfinished (.1); root -> b (.2) -> unfinished (1)."""
    line, end = SOLVED.positions[0].candidates[1], (*TOKENIZER.encode("1 + 1 = 2"), 1)
    tree = records.Tree(
        parent=(-1, 0, 0, 1, 1, 2),
        edge_tokens=((), line, (12,), end, (13,), (13,)),
        prior=(1.0, 0.7, 0.2, 0.9, 0.1, 1.0),
        visits=(40, 10, 9, 9, 1, 1),
        value=(0.0,) * 6,
        outcome=(None, None, None, 0.0, None, None),
    )
    np.testing.assert_allclose(
        record_rows.explored_shares(tree), [0.63, 0.9, 0.0, 1.0, 0.0, 0.0], rtol=1e-6
    )
    game = changed(SOLVED, outcome=0.0, leaves=(), positions=SOLVED.positions[:1], trees=(tree,))
    prompt = SOLVED.prompt
    a, played = prompt + TOKENIZER.decode(line), prompt + SOLVED.completion
    wrong = prompt + TOKENIZER.decode([*line, *end])
    labels, rows = value_labels([game], min_explored=0.63)
    assert sorted(labels) == sorted((text, 0.0) for text in (prompt, a, wrong, played))
    assert sorted(rows) == sorted([wrong, played])
    labels, _ = value_labels([game], min_explored=0.64)
    assert sorted(labels) == sorted((text, 0.0) for text in (a, wrong, played))
    # once a text below a node is known to be right, so are all nodes that lead to it
    solved_tree = synthetic_records.replace_outcomes(tree, (None, None, None, 1.0, None, None))
    labels, _ = value_labels([changed(game, trees=(solved_tree,))])
    assert dict(labels) == {prompt: 1.0, a: 1.0, wrong: 1.0, played: 0.0}


@pytest.mark.parametrize("value_from", ["outcome", "tree"])
def test_label_once_labels_each_state_once(value_from):
    games = [synthetic_records.random_record(seed) for seed in range(5)]
    once, rows = value_labels(games, value_from=value_from)
    often, same_rows = value_labels(games, value_from=value_from, label_once=False)
    assert rows == same_rows
    assert set(once) == set(often) and len(once) < len(often)
    assert value_from == "outcome" or len(once) == len(set(once))


def test_labels_of_trees_need_trees(folder):
    records.write_shard(folder / "third" / "a.arrayrecord", [SOLVED])  # it has none
    sources = tuple(hybrid.RecordSource(path=str(folder / name)) for name in ("first", "third"))
    wanted = config(folder, records=sources)
    with pytest.raises(DataError, match="third have none. Search with keep_trees=True"):
        load(wanted)
    assert load(dataclasses.replace(wanted, value_from="outcome")).value is not None


def test_unchecked_games_give_no_labels():
    unknown = changed(SOLVED, outcome=None, leaves=())
    for value_from in ("outcome", "tree"):
        assert value_labels([unknown], value_from=value_from) == ([], [])


def test_solved_texts_against_all_prefixes():
    games = [synthetic_records.random_record(seed, nodes_per_tree=60) for seed in range(8)]
    solved = record_rows.SolvedTexts([*games, SOLVED])
    texts = {
        game.prompt_tokens + leaf.tokens
        for game in [*games, SOLVED]
        for leaf in game.leaves
        if leaf.outcome == 1
    }
    prefixes = {text[:length] for text in texts for length in range(len(text) + 1)}
    states = {
        (game.prompt_tokens + leaf.tokens)[:length]
        for game in games
        for leaf in game.leaves
        for length in range(2, 40, 3)
    }
    assert len(texts) >= 3
    for state in states | prefixes:
        assert solved.continue_from(state) == (state in prefixes)
    assert not record_rows.SolvedTexts([]).continue_from((1,))


def flat(batch):
    return {(part, name): array for part in batch for name, array in batch[part].items()}


@pytest.mark.parametrize("consumed", [0, 1, 9])
def test_resumed_iterator_gives_identical_batches(folder, consumed):
    first = batches(config(folder))
    for _ in range(consumed):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    wanted = [next(first) for _ in range(4)]
    resumed = batches(config(folder))
    next(resumed)
    resumed.set_state(state)
    for batch in wanted:
        again = flat(next(resumed))
        for name, array in flat(batch).items():
            np.testing.assert_array_equal(array, again[name])


def test_seeds_and_hosts_differ(folder):
    whole = next(batches(config(folder)))
    other = next(batches(config(folder), seed=1))
    assert any((whole[p]["tokens"] != other[p]["tokens"]).any() for p in whole)
    half = config(folder, policy_batch=3)
    part = next(batches(half, host=1, num_hosts=2))
    np.testing.assert_array_equal(part["policy"]["tokens"], whole["policy"]["tokens"][1::2])


def test_folders_are_mixed_by_weight(folder):
    settings = config(folder, weights=(1.0, 4.0), policy_batch=10, value_batch=0, text_batch=0)
    corpus = load(settings)
    first = {row.tobytes() for row in corpus.policy.arrays["weights"][: corpus.policy.num_rows[0]]}
    iterator = iter(hybrid.batches(corpus, settings, seed=0))
    rows = [row.tobytes() for _ in range(10) for row in next(iterator)["policy"]["weights"]]
    assert abs(sum(row in first for row in rows) - 20) <= 2


def test_parts_of_size_zero_are_left_out(folder):
    batch = next(batches(config(folder, value_batch=0, text_batch=0)))
    assert list(batch) == ["policy"]
    with pytest.raises(DataError, match="at least one part"):
        load(config(folder, policy_batch=0, value_batch=0, text_batch=0))


def test_loading_is_deterministic(folder):
    prints = {load(config(folder)).fingerprint for _ in range(2)}
    assert len(prints) == 1
    assert load(config(folder, weights=(1.0, 2.0))).fingerprint not in prints
    assert load(config(folder, policy_from="solved")).fingerprint not in prints


@pytest.mark.parametrize("field", ["prefix_tokens", "candidate_tokens", "path_tokens"])
def test_records_that_do_not_fit_are_refused(folder, field):
    with pytest.raises(DataError, match=f"Set {field} to at least"):
        load(config(folder, **{field: 4}))


def test_records_without_useful_rows_are_refused(tmp_path):
    game = changed(SOLVED, outcome=0.0, leaves=())
    records.write_shard(tmp_path / "first" / "a.arrayrecord", [game])
    settings = {"policy_from": "solved", "weights": (1.0,)}
    with pytest.raises(DataError, match="policy_from='all'"):
        load(config(tmp_path, **settings))
    with pytest.raises(DataError, match="positive weight"):
        load(config(tmp_path, weights=(0.0,)))


def test_records_of_the_test_split_are_refused(tmp_path):
    records.write_shard(tmp_path / "a.arrayrecord", [changed(SOLVED, split="test")])
    assert len(list(records.read_folder(tmp_path))) == 1  # reading them is fine, learning is not
    with pytest.raises(DataError, match="test split"):
        load(hybrid.HybridConfig(records=(hybrid.RecordSource(path=str(tmp_path)),)))
    with pytest.raises(DataError, match="test split"):
        documents.load(
            [documents.RecordTextSource(path=str(tmp_path))], TOKENIZER, sequence_length_tokens=40
        )
