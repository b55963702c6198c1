import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import load
from configs.base import Experiment
from data.documents import TextFileSource
from data.synthetic import InductionHeadsSource, RecallSource, SelectiveCopyingSource
from evaluation import report, scoring
from evaluation.scoring import HeldOut, ScoredModel, ScoringConfig
from models.attention import AttentionConfig
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from train import loop
from train.errors import ConfigError
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.pipeline import Stage

RECALL = RecallSource(num_documents=20, context_tokens=8, num_pairs=2, num_symbols=6, seed=9)
HELD_OUT = HeldOut(source=RECALL, length=20)  # two documents and padding in a window


def experiment(seed=0, **attention) -> Experiment:
    return Experiment(
        model=TransformerConfig(
            vocab_size=8, width=16, num_layers=1, num_heads=2, head_dim=8, value_head_width=8,
            tie_embeddings=False,
            attention=AttentionConfig(normalize_query_key=True, radius=0.9, **attention),
        ),
        tokenizer="symbols-6",
        sources=(dataclasses.replace(RECALL, seed=0),),
        optimizers=OptimizersConfig(policy=OptimizerConfig(peak_learning_rate=1e-2)),
        sequence_length_tokens=20,
        batch_size=4,
        train_steps=2,
        seed=seed,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of softmax, two of Taylor attention of order 1."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {"softmax": {}, "order 1": {"kind": "taylor", "order": 1}}
    return {
        name: tuple(str(loop.run(experiment(seed, **fields), folder / f"{name}{seed}"))
                    for seed in (0, 1))
        for name, fields in kinds.items()
    }  # fmt: skip


def test_scores_by_hand():
    """Each document alone, token by token, gives what packed windows of a batch give."""
    model = LanguageModel(experiment(kind="taylor", order=1).model)
    params = model.init(jax.random.key(0))
    windows = scoring.read(HELD_OUT, "symbols-6")
    assert len(windows) == 10
    scores = scoring.score(model, params, windows)
    right, loss = [], []
    forward = jax.jit(model.forward)
    for tokens, counted in zip(windows.tokens[:, :18].reshape(20, 9),
                               windows.is_counted[:, :18].reshape(20, 9), strict=True):  # fmt: skip
        log_p = np.asarray(jax.nn.log_softmax(forward(params, tokens[None])[0]))
        asked = np.flatnonzero(counted)
        assert len(asked) == 2
        right.append(np.mean(log_p[asked - 1].argmax(-1) == tokens[asked]))
        loss.append(-np.mean(log_p[asked - 1, tokens[asked]]))
    assert 0 < np.mean(right) < 1
    np.testing.assert_array_equal(scores.right, right)
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-5)
    assert scores.num_counted == 40


def test_batches_do_not_change_scores(monkeypatch):
    model = LanguageModel(experiment().model)
    params = model.init(jax.random.key(0))
    windows = scoring.read(HELD_OUT, "symbols-6")
    whole = scoring.score(model, params, windows)
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", 80)  # 4 windows: 4, 4 and 2
    parts = scoring.score(model, params, windows)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-5)
    assert whole.seconds is None and parts.seconds > 0


def test_accuracies_are_means_over_seeds(trained, tmp_path):
    config = ScoringConfig(
        task="recall",
        models=(ScoredModel(name="softmax", checkpoints=trained["softmax"]),),
        held_out=(HELD_OUT,),
    )
    path = scoring.run(config, tmp_path, resume=False, stop=None)
    token, document = report.read(path).rows
    assert (token.metric, document.metric) == (report.TOKEN_ACCURACY, report.DOCUMENT_ACCURACY)
    assert token.n == 20 and token.forward_passes_per_problem == 9
    assert len(token.settings["scores"]) == 2
    assert token.score == np.mean(token.settings["scores"])
    assert document.score <= token.score
    names = ["report.json", "scores.png", "table.csv", "table.md"]
    assert sorted(file.name for file in path.parent.iterdir()) == names
    table = (path.parent / "table.md").read_text()
    assert "token accuracy" in table and "simulations" not in table


def test_losses_are_compared_seed_by_seed(trained, tmp_path):
    models = [ScoredModel(name=name, checkpoints=paths) for name, paths in trained.items()]
    order_1 = AttentionConfig(kind="taylor", order=1, normalize_query_key=True, radius=0.9)
    models.append(ScoredModel(name="replaced", checkpoints=trained["softmax"], attention=order_1))
    config = ScoringConfig(
        task="recall", models=tuple(models), held_out=(HELD_OUT,), metric="loss",
        relative_to_first=True, plot_against="order",
    )  # fmt: skip
    path = scoring.run(config, tmp_path, resume=False, stop=None)
    rows = report.read(path).rows
    assert [row.method for row in rows] == ["softmax", *["order 1"] * 2, *["replaced"] * 2]
    by_place = {(row.method, row.metric): row.settings["scores"] for row in rows}
    for name in ("order 1", "replaced"):
        gaps = np.subtract(by_place[name, report.LOSS], by_place["softmax", report.LOSS])
        above = by_place[name, f"{report.LOSS} above softmax"]
        np.testing.assert_allclose(above, gaps, atol=1e-6)
        assert np.abs(gaps).max() > 1e-5
    assert rows[1].settings["order"] == 1 and rows[0].settings["order"] is None


def test_a_state_is_measured_by_its_arrays():
    """Order 1 of 8-wide heads: 9 features, each with 8 values and its normaliser, 2 heads."""
    small = LanguageModel(experiment(kind="taylor", order=1).model)
    assert scoring.state_bytes(small, 5) == scoring.state_bytes(small, 500) == 9 * (8 + 1) * 2 * 4
    softmax = LanguageModel(experiment().model)
    assert scoring.state_bytes(softmax, 10) == 10 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ()}, "models of different names"),
        ({"models": (ScoredModel(name="a", checkpoints=("x",)),) * 2}, "Name them apart"),
        ({"relative_to_first": True}, "metric='accuracy'"),
    ],
)
def test_a_scoring_that_means_nothing_is_refused(changes, said):
    fields = {"task": "t", "models": (ScoredModel(name="a", checkpoints=("x",)),)}
    with pytest.raises(ConfigError, match=said):
        ScoringConfig(**(fields | {"held_out": (HELD_OUT,)} | changes))


# ---------------------------------------------------------------- the configs that compare models

COMPARISONS = ("selective_copying", "induction_heads", "mqar", "listops", "text_orders")


def shrunk(source):
    """The same task with few documents."""
    if isinstance(source, SelectiveCopyingSource):
        return dataclasses.replace(source, num_documents=4)
    if isinstance(source, (InductionHeadsSource, RecallSource)):
        return dataclasses.replace(source, num_documents=32)
    if isinstance(source, TextFileSource):
        return dataclasses.replace(source, begin=0.99, end=1.0)
    return source


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_trains_a_step_and_is_scored(name, tmp_path, data_root):
    stages: tuple[Stage, ...] = load.find(name).stages
    *_, last, scores = stages
    run = dataclasses.replace(
        last.config,
        model=dataclasses.replace(last.config.model, num_layers=1, width=16, num_heads=1),
        sources=tuple(map(shrunk, last.config.sources)),
        validation_sources=(),
        batch_size=4,
        train_steps=1,
    )
    checkpoint = str(loop.run(run, tmp_path / "run"))
    held_out = scores.config.held_out[0]
    config = dataclasses.replace(
        scores.config,
        models=(ScoredModel(name="softmax", checkpoints=(checkpoint,)),),
        held_out=(dataclasses.replace(held_out, source=shrunk(held_out.source)),),
    )
    path = scoring.run(config, tmp_path, resume=False, stop=None)
    assert json.loads(path.read_text())["rows"]


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_is_scored_on_what_it_was_not_trained_on(name, data_root):
    """By the documents themselves where they are small, by their seeds where they are generated."""
    stages = load.find(name).stages
    scored = {held_out.source for held_out in stages[-1].config.held_out}
    for stage in stages[:-1]:
        read = {*stage.config.sources, *stage.config.validation_sources}
        assert not scored & read
        for source in scored:
            if hasattr(source, "seed"):
                assert source.seed not in {other.seed for other in read}
            if hasattr(source, "begin"):
                assert all(other.end <= source.begin for other in read)
