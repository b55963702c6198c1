"""Games from prompts to records: bookkeeping, resuming, and no way to the answers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from data import problems, records, tokenizer
from models import language_model, transformer
from search import engine, gumbel, oracle, self_play, token_model
from tests import reading
from tests.search.stopping import StopAfter
from train import checkpoints
from train.errors import ConfigError, Preempted
from train.stopping import StopFlag

TEXT = tokenizer.load_tokenizer("game24")
CONFIG = transformer.TransformerConfig(
    vocab_size=TEXT.vocab_size, width=16, num_layers=1, num_heads=2, head_dim=8
)
MODEL = language_model.LanguageModel(CONFIG)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
ACTION = token_model.ActionConfig(
    num_candidates=4, opening_tokens=2, max_step_tokens=4, max_completion_tokens=9
)
SEARCH = gumbel.SearchConfig(
    action=ACTION, num_simulations=6, max_considered_actions=3, use_oracle=True, root_noise=True
)
PLAY = self_play.SelfPlayConfig(search=SEARCH, limit=5, batch_size=2, random_moves=(0, 1))
DYNAMICS = token_model.for_tokenizer(MODEL, ACTION, TEXT)  # as of a run: one program for both


def play(config, *, verify=None, seed=0, count=PLAY.batch_size):
    some = problems.load_problems("game24", "train")[:count]
    return self_play.play(
        DYNAMICS,
        PARAMS,
        [problem.prompt for problem in some],
        list(range(count)),
        TEXT,
        config,
        jax.random.key(seed),
        verify,
    )


def test_games_are_consistent_with_their_trees_and_with_the_model():
    games = play(PLAY, verify=oracle.Oracle("game24", "train", "game24"))
    assert any(game.record.positions for game in games)
    for game in games:
        record = game.record
        assert TEXT.encode(record.prompt) == list(record.prompt_tokens)
        assert len(record.positions) == len(record.trees)
        spent = len(record.prompt_tokens)
        for position, tree in zip(record.positions, record.trees, strict=True):
            assert sum(position.visits) == SEARCH.num_simulations
            assert sum(position.weights) == pytest.approx(1, abs=1e-5)
            played = record.completion_tokens[position.offset :]
            assert any(played[: len(c)] == c for c in position.candidates)
            assert len(set(position.candidates)) == len(position.candidates)
            for i, parent in enumerate(tree.parent[1:], start=1):
                assert parent < i and tree.edge_tokens[i]
                judged = tree.outcome[i]
                assert tree.q[i] == pytest.approx(tree.value[i] if judged is None else judged)
            spent += len(tree.parent) - 1
        assert game.evaluations >= spent
        # The prior of a candidate is what the model says of it.
        position = record.positions[0]
        prefix = list(record.prompt_tokens)
        for candidate, prior in zip(position.candidates, position.prior, strict=True):
            logits = reading.read(MODEL, PARAMS, prefix + list(candidate))[0].copy()
            logits[:, DYNAMICS.forbidden_tokens] = -np.inf
            log_p = reading.log_softmax(logits)
            want = sum(log_p[len(prefix) - 1 + i, t] for i, t in enumerate(candidate))
            assert np.log(prior) == pytest.approx(float(want), abs=1e-4)


def test_searches_of_all_sizes_share_one_program(monkeypatch):
    traced = []

    def count(*arguments, original=engine.advance, **options):
        traced.append(options["config"])
        return original(*arguments, **options)

    monkeypatch.setattr(engine, "advance", count)
    for sizes, use_value in (((3, 2), True), ((2, 3), False)):
        search = dataclasses.replace(
            SEARCH, num_simulations=sizes, use_value=use_value, use_oracle=False
        )
        for game in play(dataclasses.replace(PLAY, search=search)):
            assert sum(game.record.positions[0].visits) == sizes[0]
            assert game.record.trees[0].visits[0] == 1 + sizes[0]
    assert len(traced) == 1


def test_a_game_does_not_depend_on_its_batch():
    """Without noise, the first game is the same alone and among others."""
    quiet = dataclasses.replace(PLAY, search=dataclasses.replace(SEARCH, root_noise=False))
    verify = oracle.Oracle("game24", "train", "game24")
    alone = play(quiet, verify=verify, count=1)[0].record
    among = play(quiet, verify=verify, count=2)[0].record
    assert alone.completion == among.completion
    assert [p.visits for p in alone.positions] == [p.visits for p in among.positions]


def test_a_search_without_oracle_cannot_reach_the_answers(monkeypatch, tmp_path, checkpoint):
    """Prompts carry no checker, and a checker that explodes is never called."""

    def explode(self, completion):
        raise AssertionError("a search without oracle asked for the answer")

    monkeypatch.setattr(problems.Problem, "verify", explode)
    fields = {field.name for field in dataclasses.fields(problems.Prompt)}
    assert fields == {"id", "split", "text"}
    blind = dataclasses.replace(PLAY, search=dataclasses.replace(SEARCH, use_oracle=False))
    for game in play(blind):
        assert game.record.outcome is None
        assert all(leaf.outcome is None for leaf in game.record.leaves)
    # The one function that has problems and not only prompts in its hands:
    config = dataclasses.replace(blind, checkpoint=checkpoint, limit=2)
    folder = self_play.run(config, tmp_path / "run", resume=False, stop=StopFlag())
    assert all(record.outcome is None for record in records.read_folder(folder))
    with pytest.raises(ValueError, match="exactly when the search uses it"):
        play(blind, verify=oracle.Oracle("game24", "train", "game24"))
    with pytest.raises(ValueError, match="exactly when the search uses it"):
        play(PLAY)


def test_oracle_judges_texts(monkeypatch):
    judge = oracle.Oracle("game24", "train", "game24")
    assert hash(judge) == hash(oracle.Oracle("game24", "train", "game24"))
    puzzles = [problems.game24_problem((4, 5, 6, 10)), problems.game24_problem((4, 6, 6, 10))]
    monkeypatch.setattr(oracle.Oracle, "problems", puzzles)
    right = TEXT.encode("10 - 4 = 6 left 5 6 6\n6 * 5 = 30 left 6 30\n30 - 6 = 24")
    wrong = TEXT.encode("10 - 4 = 6 left 5 6 6\n6 * 5 = 30 left 6 30\n30 + 6 = 36")
    tokens = np.array([right, right, right, wrong])
    numbers, asked = np.array([0, 1, 0, 0]), np.array([True, True, False, True])
    for stray in (TEXT.pad_id, TEXT.vocab_size):  # right but for a token that is no text
        strange = np.array([[*right[:4], stray, *right[4:]]])
        assert judge(numbers[:1], strange, np.array([len(right) + 1]), asked[:1]) == [0]
    np.testing.assert_array_equal(
        judge(numbers, tokens, np.full(4, len(right)), asked), [1, 0, 0, 0]
    )


@pytest.fixture
def checkpoint(tmp_path):
    metadata = checkpoints.Metadata(
        model=CONFIG, tokenizer="game24", tokenizer_fingerprint=TEXT.fingerprint, data_hash=""
    )
    checkpoints.save_params(tmp_path / "model", PARAMS, metadata, dtype="float32")
    return str(tmp_path / "model")


def test_interrupted_search_gives_the_same_bytes(tmp_path, checkpoint):
    config = dataclasses.replace(PLAY, checkpoint=checkpoint)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    self_play.run(config, whole, resume=False, stop=StopFlag())
    for polls in (2, 1):
        with pytest.raises(Preempted, match="batch"):
            self_play.run(config, cut, resume=True, stop=StopAfter(polls))
    self_play.run(config, cut, resume=True, stop=StopFlag())
    names = sorted(path.name for path in (whole / "records").iterdir())
    assert names == sorted(path.name for path in (cut / "records").iterdir())
    assert len(names) == 2 * 6  # two games for each of five problems, in batches of two
    for name in names:
        assert (whole / "records" / name).read_bytes() == (cut / "records" / name).read_bytes()
    games = list(records.read_folder(whole / "records"))
    assert len(games) == 10
    assert {game.tokenizer for game in games} == {"game24"}
    assert len({(game.problem_id, game.game) for game in games}) == 10
    assert json.loads((whole / "summary.json").read_text())["games"] == 10


def test_records_are_not_mixed_with_those_of_another_run(tmp_path, checkpoint):
    config = dataclasses.replace(PLAY, checkpoint=checkpoint)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / f"shard-00000-of-00001{records.SUFFIX}").touch()
    with pytest.raises(ConfigError, match="without records; .* --resume"):
        self_play.run(config, tmp_path, resume=False, stop=StopFlag())


def test_step_actions_need_a_newline(tmp_path, monkeypatch):
    one_line = tokenizer.WordTokenizer(tuple(word for word in TEXT.words if word != "\n"))
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda name: one_line)
    monkeypatch.setattr(checkpoints, "load_params", lambda path: (CONFIG, "one_line", PARAMS))
    with pytest.raises(ConfigError, match="newline"):
        self_play.run(PLAY, tmp_path / "run", resume=False, stop=StopFlag())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_candidates": 1}, "at least two"),
        ({"opening_tokens": 0}, "at least one token"),
        ({"opening_tokens": 13}, "no shorter than its opening"),
        ({"min_probability": 1.0}, "min_probability"),
        ({"forced_probability": 0.0}, "forced_probability"),
    ],
)
def test_impossible_actions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        token_model.ActionConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_simulations": 0}, "at least one simulation"),
        ({"num_simulations": ()}, "at least one simulation"),
        ({"max_considered_actions": 16}, "fewer actions"),
    ],
)
def test_impossible_searches_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        gumbel.SearchConfig(**fields)


@pytest.mark.parametrize(
    "fields", [{"batch_size": 0}, {"limit": 0}, {"random_moves": ()}, {"random_moves": (3,)}]
)
def test_impossible_play_is_refused(fields):
    with pytest.raises(ConfigError):
        self_play.SelfPlayConfig(**fields)
