"""What the alignment report says of answers whose truth is known."""

import dataclasses
import random

import jax
import numpy as np
import pytest
from scipy import stats

from data import attributes, json_rows, planted
from data.errors import DataError
from data.tokenizer import load_tokenizer
from evaluation import alignment, alignment_plot, rounds, statistics
from evaluation.policies import Judged, Policy, Scores
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from synthesis import plant
from synthesis.writers import Sampling
from train.errors import ConfigError

WEIGHTS = plant.weights_of("nemotron4_340b")
TOKENIZER = load_tokenizer("planted")
MODEL = LanguageModel(
    TransformerConfig(
        vocab_size=TOKENIZER.vocab_size, width=16, num_layers=1, num_heads=2, head_dim=8,
        value_head_width=8,
    )
)  # fmt: skip


def scores(kl, reward, count=4):
    """Of a policy with these means."""
    spread = np.linspace(-1, 1, count)
    return Scores(
        rewards=reward + spread,
        attributes=np.zeros((count, 5)),
        kl=kl + spread,
        gap_errors=np.full(count, 0.25),
        target_gaps=np.array([1.0, -1.0, 2.0, -2.0]),
        chosen=np.full(count, -3.0),
        rejected=np.full(count, -4.0),
        share_finished=1.0,
    )


def test_correlations_equal_scipy():
    generator = np.random.default_rng(0)
    x = generator.normal(size=60)
    y = np.round(x + generator.normal(size=60))
    r, low, high = alignment.correlation(x, y)
    want = stats.pearsonr(x, y)
    assert r == pytest.approx(want.statistic)
    assert (low, high) == pytest.approx(tuple(want.confidence_interval()), abs=1e-6)
    rho, low, high = alignment.correlation(x, y, of_ranks=True)
    assert rho == pytest.approx(stats.spearmanr(x, y).statistic) and low < rho < high
    assert statistics.pearson([1, 1, 1, 1], [1, 2, 3, 4]) == 0
    assert statistics.fisher_interval(0.5, 3) == (-1, 1)


def steered(tmp_path, answer):
    """Rows of a file of answers to random requests; `answer(generator, asked, wanted)`."""
    generator = random.Random(0)
    rows = []
    for _ in range(300):
        asked = planted.request(generator, "test")
        wanted = planted.Attributes(*(generator.randint(0, 4) for _ in range(5)))
        label = attributes.label_text(dict(zip(attributes.FIVE, wanted.as_tuple(), strict=True)))
        text = answer(generator, asked, wanted)
        rows.append({"prompt": asked.text, "response": text, "requested": label})
    json_rows.write(tmp_path / "responses.jsonl", rows)
    found = alignment.steering_rows(str(tmp_path / "responses.jsonl"))
    return {row.method: row for row in found}


def test_a_model_that_does_what_is_asked(tmp_path):
    rows = steered(tmp_path, planted.respond)
    for name in attributes.FIVE:
        assert rows[f"steered {name}"].score == pytest.approx(1)
        assert rows[f"steered {name}"].settings["means"] == pytest.approx([0, 1, 2, 3, 4])
    assert rows["steering"].score < 1e-9
    assert rows["steering"].metric == alignment.CROSS_TALK


def test_cross_talk_is_measured(tmp_path):
    def verbose_when_complex(generator, asked, wanted):
        mixed = dataclasses.replace(wanted, verbosity=wanted.complexity)
        return planted.respond(generator, asked, mixed)

    rows = steered(tmp_path, verbose_when_complex)
    assert rows["steered complexity"].settings["slopes"] == pytest.approx([0, 0, 0, 1, 1], abs=1e-6)
    assert rows["steering"].score == pytest.approx(1 / 20, abs=1e-6)  # one of 20 pairs
    assert rows["steering"].settings["largest"] == pytest.approx(1, abs=1e-6)
    assert abs(rows["steered verbosity"].score) < 0.15


def test_policies_are_compared_where_both_have_been():
    first = [(0, scores(0, 3)), (10, scores(2, 5)), (20, scores(4, 6))]
    second = [(0, scores(0, 3)), (10, scores(3, 4.5))]
    kl, one, other = alignment.at_equal_kl(first, second)
    assert (kl, one, other) == pytest.approx((3, 5.5, 4.5))
    curves = {(name, seed): c for name, c in (("RPO", first), ("DPO", second)) for seed in (0, 1)}
    rows = alignment.comparison_rows(curves)
    assert [(row.method, row.score, row.n) for row in rows] == [
        ("RPO", pytest.approx(5.5), 2),
        ("DPO", pytest.approx(4.5), 2),
        ("seeds in which RPO is above DPO", 1.0, 2),
    ]
    assert rows[0].settings["gains"] == pytest.approx([1, 1])


def test_the_share_of_the_gap_that_is_recovered(tmp_path):
    before, after = scores(0, 3), scores(2, 5)
    rows = {row.metric: row for row in alignment.rows_of_scores("RPO", after, before, "")}
    assert rows[alignment.RECOVERED].score == pytest.approx(1 - 0.25 / 1.5)
    assert rows[alignment.REWARD].score == pytest.approx(5)
    curve = {"curve": [[0, 0.0, 3.0], [10, 2.0, 5.0]]}
    drawn = alignment.rows_of_scores("RPO", after, before, "", curve)
    alignment_plot.draw(drawn, tmp_path / "alignment.png")
    assert (tmp_path / "alignment.png").stat().st_size > 5_000


def test_a_policy_that_is_its_reference():
    policy = Policy(MODEL, MODEL.init(jax.random.key(0)), TOKENIZER, "steerlm")
    pairs = list(planted.pairs(3, WEIGHTS, seed=0))
    prompts = planted.requests(3, seed=0, split="test")
    sampling = Sampling(max_new_tokens=4, batch_size=4)
    judged = Judged(
        policy, prompts, pairs, WEIGHTS, beta=0.5, eta=2.0, sampling=sampling, seed=0
    )  # fmt: skip
    found = judged.score(policy)
    rewards = [[planted.true_reward(one.attributes, WEIGHTS) for one in pair] for pair in pairs]
    gaps = [2 * (better - worse) for better, worse in rewards]
    np.testing.assert_allclose(found.target_gaps, gaps, rtol=1e-5)
    np.testing.assert_allclose(found.gap_errors, gaps, rtol=1e-5)  # d = 0
    assert found.share_finished == 0.0 and len(found.kl) == 0
    with pytest.raises(DataError, match="max_new_tokens"):
        alignment.rows_of_scores("untrained", found, found, "")
    other = Policy(MODEL, MODEL.init(jax.random.key(1)), TOKENIZER, "steerlm")
    (row,) = (other.log_probs([(pairs[0][0].prompt, pairs[0][0].response)]),)
    assert row.shape == (1,) and row[0] < -50


def test_policies_need_a_reference_and_names():
    policy = alignment.TrainedPolicy(name="RPO", checkpoint="runs/rpo")
    with pytest.raises(ConfigError, match="reference"):
        alignment.AlignmentConfig(policies=(policy,))
    with pytest.raises(ConfigError, match="name or seed"):
        alignment.AlignmentConfig(reference="runs/sft", policies=(policy, policy))


def test_rounds_are_compared_pair_by_pair():
    before = np.array([1.0, 2.0, 3.0, 4.0])
    rows = rounds.make_rows(["0", "1"], [before, before + np.array([0.5, 1.0, 0.75, 0.75])])
    assert [row.score for row in rows] == pytest.approx([2.5, 3.25, 0.75])
    assert rows[2].settings["p_value"] < 0.01 and rows[2].low > 0
    with pytest.raises(ConfigError, match="two models"):
        rounds.RoundsConfig(models=(rounds.RoundModel(name="0", checkpoint="x"),))
