"""Preference and reward losses: golden values, gradients, another implementation, extremes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.attributes import MASKED
from train import losses
from train.losses import log_probs, preference, reward

KINDS = ("dpo", "ipo", "rpo_bwd_kl", "rpo_fwd_kl", "rpo_sq")
# Log-ratios of chosen and rejected, rewards, beta, eta -> the losses, in the order of KINDS.
GOLDEN = {
    "no gap": (
        (0.0, 0.0, 1.0, 0.0, 0.1, 1.0),
        (0.6931471806, 25.0, 0.1109440717, 0.1201145070, 1.0),
    ),
    "a gap below the target": (
        (-3.0, -11.0, 3.5, 1.25, 0.1, 0.5),
        (0.3711006659, 9.0, 0.0102979004, 0.0108077639, 0.105625),
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def preference_loss(kind, logps, rewards, beta, eta):
    return losses.preference_loss(
        kind, *logps, beta=beta, eta=eta, reward_chosen=rewards[0], reward_rejected=rewards[1]
    )


def loss_of(kind, chosen, rejected, reward_chosen, reward_rejected, beta, eta, dtype):
    """One pair whose reference has log-probabilities that are not 0."""
    logps = np.array([[chosen - 40], [rejected - 60], [-40], [-60]], dtype)
    rewards = np.array([[reward_chosen], [reward_rejected]], dtype)
    return preference_loss(kind, logps, rewards, beta, eta)[0]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    inputs, wanted = GOLDEN[name]
    for kind, want in zip(KINDS, wanted, strict=True):
        with jax.enable_x64(True):
            got = float(loss_of(kind, *inputs, np.float64))
        assert got == pytest.approx(want, abs=1e-7), kind
        assert float(loss_of(kind, *inputs, np.float32)) == pytest.approx(want, rel=1e-5), kind


@pytest.mark.parametrize("kind", KINDS[2:])
def test_rpo_is_zero_where_the_gap_is_the_target(kind):
    assert float(loss_of(kind, 5.0, 0.0, 1.0, 0.0, 0.2, 1.0, np.float32)) < 1e-12
    assert float(loss_of(kind, 6.0, 0.0, 1.0, 0.0, 0.2, 1.0, np.float32)) > 1e-4


def gap_loss(kind, d, g, beta=1.0):
    """The loss as a function of d and g."""
    zero = jnp.zeros_like(d)
    return losses.preference_loss(
        kind, d / beta, zero, zero, zero, beta=beta, reward_chosen=g, reward_rejected=zero
    )


def test_gradients_are_those_of_the_table():
    rng = np.random.default_rng(0)
    d, g = (rng.uniform(-6, 6, 200).astype(np.float32) for _ in range(2))
    s = lambda x: 1 / (1 + np.exp(-x.astype(np.float64)))  # noqa: E731
    beta = 0.3
    wanted = {
        "dpo": s(d) - 1,
        "ipo": 2 * (d / beta - 1 / (2 * beta)) / beta,
        "rpo_bwd_kl": s(d) - s(g),
        "rpo_fwd_kl": s(d) * s(-d) * (d - g),
        "rpo_sq": 2.0 * (d - g),
    }
    for kind, want in wanted.items():
        loss = lambda x, kind=kind: jnp.sum(gap_loss(kind, x, jnp.array(g), beta))  # noqa: E731
        got = jax.jit(jax.grad(loss))(jnp.array(d))
        np.testing.assert_allclose(got, want, atol=1e-6, rtol=2e-6, err_msg=kind)


def test_identities_between_the_kinds():
    rng = np.random.default_rng(1)
    d, g = (jnp.array(rng.uniform(-4, 4, 100), jnp.float32) for _ in range(2))
    target = jax.nn.sigmoid(g)
    soft = target * jax.nn.softplus(-d) + (1 - target) * jax.nn.softplus(d)
    entropy = target * jax.nn.softplus(-g) + (1 - target) * jax.nn.softplus(g)
    np.testing.assert_allclose(gap_loss("rpo_bwd_kl", d, g), soft - entropy, atol=2e-6)
    far = jnp.full_like(d, 60.0)  # eta -> infinity: the target is certainty
    np.testing.assert_allclose(gap_loss("rpo_bwd_kl", d, far), gap_loss("dpo", d, far), atol=1e-6)
    half, beta = jnp.full_like(d, 0.5), 0.2
    as_square = gap_loss("rpo_sq", d, half, beta) / beta**2
    np.testing.assert_allclose(gap_loss("ipo", d, half, beta), as_square, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "float32") for kind in KINDS), ("rpo_bwd_kl", "bfloat16")]
)
def test_extreme_gaps_are_finite(kind, dtype):
    values = (-1e4, -200.0, -30.0, -1.0, 0.0, 1e-3, 40.0, 1e4)
    d, g = (jnp.array(x, dtype) for x in zip(*itertools.product(values, values), strict=True))

    def total(d):
        losses_B = gap_loss(kind, d, g)
        return jnp.sum(losses_B.astype(jnp.float32)), losses_B

    (_, value), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(d)
    assert np.isfinite(value).all() and np.isfinite(gradient.astype(jnp.float32)).all()
    assert (value >= -1e-6).all()
    if kind == "rpo_bwd_kl":  # certain of the wrong answer: the loss is the distance
        np.testing.assert_allclose(gap_loss(kind, jnp.array([-1e4]), jnp.array([1e4])), 1e4)


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="one of dpo, ipo, .*; got 'kto'"):
        gap_loss("kto", jnp.zeros(1), jnp.zeros(1))


def test_torch_agrees_on_random_pairs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    n = 1000
    logps = rng.normal(-50, 10, (4, n))
    rewards = rng.normal(0, 2, (2, n))
    beta, eta = rng.uniform(0.05, 0.5), rng.uniform(0.2, 2.0)
    a, b, c, e = (torch.tensor(x, dtype=torch.float64) for x in logps)
    r1, r2 = (torch.tensor(x, dtype=torch.float64) for x in rewards)
    ratio = (a - c) - (b - e)
    policy = torch.distributions.Bernoulli(logits=beta * ratio)
    target = torch.distributions.Bernoulli(logits=eta * (r1 - r2))
    divergence = torch.distributions.kl_divergence
    wanted = {
        "dpo": -torch.nn.functional.logsigmoid(beta * ratio),
        "ipo": (ratio - 1 / (2 * beta)) ** 2,
        "rpo_bwd_kl": divergence(target, policy),
        "rpo_fwd_kl": divergence(policy, target),
        "rpo_sq": (beta * ratio - eta * (r1 - r2)) ** 2,
    }
    for kind, want in wanted.items():
        with jax.enable_x64(True):
            got = preference_loss(kind, logps, rewards, float(beta), float(eta))
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-9, atol=1e-12, err_msg=kind)
        single = preference_loss(
            kind, logps.astype("f4"), rewards.astype("f4"), float(beta), float(eta)
        )
        np.testing.assert_allclose(single, want.numpy(), rtol=1e-4, atol=1e-5, err_msg=kind)


# ------------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize("num_attributes", [5, 9])
def test_regression_of_all_masks(num_attributes):
    """Every pattern of given and missing grades (a sample of 64 of nine), against numpy."""
    rng = np.random.default_rng(3)
    masks = np.array(list(itertools.product((0, 1), repeat=num_attributes)))[1:]
    if num_attributes == 9:
        masks = masks[rng.choice(len(masks), 64, replace=False)]
    predictions = rng.normal(2, 1, masks.shape).astype(np.float32)
    grades = rng.integers(0, 5, masks.shape).astype(np.float32)
    labels = np.where(masks, grades, MASKED).astype(np.float32)
    value_and_grad = jax.jit(jax.value_and_grad(reward.regression))
    for row in range(len(masks)):
        got, gradient = value_and_grad(predictions[row : row + 1], labels[row : row + 1])
        given = masks[row] == 1
        error = (predictions[row] - grades[row])[given].astype(np.float64)
        assert float(got) == pytest.approx(np.mean(error**2), rel=1e-6)
        want = np.zeros(num_attributes)
        want[given] = 2 * error / given.sum()
        np.testing.assert_allclose(gradient[0], want, rtol=1e-6, atol=1e-7)


def test_regression_does_not_depend_on_the_split():
    rng = np.random.default_rng(4)
    predictions = rng.normal(2, 1, (12, 5)).astype(np.float32)
    labels = np.where(rng.random((12, 5)) < 0.4, MASKED, rng.integers(0, 5, (12, 5)))
    labels = labels.astype(np.float32)
    regression = jax.jit(reward.regression, static_argnames="micro_batch_size")
    whole, count = regression(predictions, labels), np.sum(labels != MASKED)
    for size in (1, 4):
        parts = [
            regression(predictions[i : i + size], labels[i : i + size], count=count)
            for i in range(0, 12, size)
        ]
        assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)
    means = [float(regression(predictions[i : i + 4], labels[i : i + 4])) for i in (0, 4, 8)]
    theirs = float(regression(predictions, labels, micro_batch_size=4))
    assert theirs == pytest.approx(np.mean(means), rel=1e-6)
    assert abs(theirs - float(whole)) > 1e-3  # the masks differ: theirs depends on the split
    assert float(regression(predictions, np.full((12, 5), MASKED, np.float32))) == 0.0


def test_pair_losses():
    chosen, rejected = jnp.array([2.0, -1.0, 1e4]), jnp.array([0.5, 1.0, -1e4])
    strength = jnp.array([1.0, 3.0, 2.0])
    gap = np.array([1.5, -2.0, 2e4])
    plain = np.logaddexp(0, -gap)
    wanted = {
        "bradley_terry": plain,
        "margin_bt": np.logaddexp(0, np.array(strength) - gap),
        "scaled_bt": np.array(strength) * plain,
    }
    for kind, want in wanted.items():
        got = reward.pair_loss(kind, chosen, rejected, strength)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=kind)
    np.testing.assert_allclose(reward.centring(chosen, rejected), [6.25, 0.0, 0.0])
    with pytest.raises(ValueError, match="a pair loss is one of"):
        reward.pair_loss("hinge", chosen, rejected)


# --------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("chunk_tokens", [1, 4, 256])  # 11 positions: whole chunks and not
def test_log_probs_by_chunks_equal_those_at_once(chunk_tokens):
    rng = np.random.default_rng(5)
    hidden = jnp.array(rng.normal(size=(3, 12, 8)), jnp.float32)
    kernel = jnp.array(rng.normal(size=(8, 30)), jnp.float32)
    tokens = jnp.array(rng.integers(0, 30, (3, 12)))
    weights = jnp.array(rng.normal(size=(3, 12)), jnp.float32)

    def chunked(hidden, kernel):
        scores = log_probs.token_scores(
            lambda h: h @ kernel, hidden, tokens, chunk_tokens=chunk_tokens
        )
        return jnp.sum(weights * scores.log_prob), scores

    def naive(hidden, kernel):
        log_p = jax.nn.log_softmax(hidden[:, :-1] @ kernel)
        chosen = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.sum(weights[:, 1:] * chosen), (log_p, chosen)

    both = [
        jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(hidden, kernel)
        for loss in (chunked, naive)
    ]
    ((got, scores), got_gradient), ((want, (log_p, chosen)), gradient) = both
    log_p = np.asarray(log_p)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(scores.log_prob[:, 1:], chosen, atol=1e-5)
    np.testing.assert_allclose(scores.entropy[:, 1:], -(np.exp(log_p) * log_p).sum(-1), atol=1e-5)
    np.testing.assert_array_equal(scores.is_likeliest[:, 1:], tokens[:, 1:] == log_p.argmax(-1))
    assert not np.any([part[:, 0] for part in scores])
    for one, other in zip(got_gradient, gradient, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_log_probs_of_a_large_vocabulary_need_little_memory():
    """V = 128k, T = 4,096, as the compiler plans forward and backward: at most 15% of naive."""
    shapes = (
        jax.ShapeDtypeStruct((1, 4096, 32), jnp.float32),
        jax.ShapeDtypeStruct((32, 128_000), jnp.float32),
        jax.ShapeDtypeStruct((1, 4096), jnp.int32),
    )

    def chunked(hidden, kernel, tokens):
        return jnp.sum(log_probs.token_scores(lambda h: h @ kernel, hidden, tokens).log_prob)

    def naive(hidden, kernel, tokens):
        log_p = jax.nn.log_softmax(hidden[:, :-1] @ kernel)
        return jnp.sum(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1))

    def planned_bytes(loss):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    share = planned_bytes(chunked) / planned_bytes(naive)
    assert share < 0.15


def test_answers_are_sums_or_means_of_their_own_tokens():
    log_prob = jnp.array([[0.0, -1.0, -2.0, -4.0], [0.0, -1.0, -1.0, -1.0]])
    mask = jnp.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(log_probs.answer_log_probs(log_prob, mask), [-6.0, 0.0])
    averaged = log_probs.answer_log_probs(log_prob, mask, average=True)
    np.testing.assert_allclose(averaged, [-3.0, 0.0])


def test_gaps_are_of_the_policy_over_the_reference():
    policy_gap, target_gap = preference.gaps(
        jnp.array([-8.0]), jnp.array([-9.0]), jnp.array([-10.0]), jnp.array([-8.0]),
        beta=0.5, eta=2.0, reward_chosen=3.0, reward_rejected=1.0,
    )  # fmt: skip
    assert (float(policy_gap[0]), float(target_gap[0])) == (1.5, 4.0)
