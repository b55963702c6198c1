"""The search against stock mctx over every action, against hand-made numbers and against theory."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from mctx._src import seq_halving

from search import engine, gumbel, outcome
from tests.search.table_model import TableModel, random_table


def full_mctx(table: TableModel, config: gumbel.SearchConfig, num_simulations: int):
    """Stock mctx over all A root actions (inner nodes: k of A actions, the others forbidden)."""
    batch, num_actions = table.gumbel.shape
    others = ((0, 0), (0, num_actions - table.k))
    inner_logits = jnp.pad(table.log_probs, others, constant_values=-1e9)
    inner_children = jnp.pad(table.children, others)

    def recurrent_fn(params, rng_key, action, embedding):
        node = embedding
        from_root = jnp.asarray(table.root_children)[action]
        child = jnp.where(node == 0, from_root, inner_children[node, action])
        was_finished = jnp.asarray(table.finished)[node]
        child = jnp.where(was_finished, node, child)
        finished = jnp.asarray(table.finished)[child]
        final = jnp.asarray(table.outcome if config.use_oracle else table.value)[child]
        output = mctx.RecurrentFnOutput(
            reward=jnp.where(finished & ~was_finished, final, 0.0),
            discount=jnp.where(finished, 0.0, 1.0),
            prior_logits=inner_logits[child],
            value=jnp.where(finished, 0.0, jnp.asarray(table.value)[child]),
        )
        return output, child

    qtransform = lambda tree, node: mctx.qtransform_completed_by_mix_value(  # noqa: E731
        tree,
        node,
        value_scale=config.value_scale,
        maxvisit_init=config.maxvisit_init,
        rescale_values=config.rescale_values,
    )
    root_logits = jnp.broadcast_to(table.root_log_probs, (batch, num_actions))
    tree = mctx.search(
        params=None,
        rng_key=jax.random.key(0),
        root=mctx.RootFnOutput(
            prior_logits=root_logits,
            value=jnp.full((batch,), table.value[0]),
            embedding=jnp.zeros((batch,), jnp.int32),
        ),
        recurrent_fn=recurrent_fn,
        root_action_selection_fn=lambda k, t, n: mctx.gumbel_muzero_root_action_selection(
            k,
            t,
            n,
            num_simulations=num_simulations,
            max_num_considered_actions=config.max_considered_actions,
            qtransform=qtransform,
        ),
        interior_action_selection_fn=lambda k, t, n, d: (
            mctx.gumbel_muzero_interior_action_selection(k, t, n, d, qtransform=qtransform)
        ),
        num_simulations=num_simulations,
        extra_data=mctx.GumbelMuZeroExtraData(root_gumbel=jnp.asarray(table.gumbel)),
    )
    sigma = jax.vmap(qtransform, in_axes=(0, None))(tree, 0)
    return tree.children_visits[:, 0], jax.nn.softmax(root_logits + sigma)


def search(table, batch, **options):
    """`engine.search` of a table as one program."""
    run = functools.partial(engine.search, table, None, **options)
    return jax.device_get(jax.jit(run)(table.root(batch), jax.random.key(0)))


@pytest.mark.parametrize("rescale_values", [False, True])
@pytest.mark.parametrize("use_oracle", [False, True])
def test_k_candidates_lose_nothing_against_every_action(rescale_values, use_oracle):
    """Visits are equal, and the k+1 weights are those of the full policy, over random trees."""
    num_simulations, batch = 24, 50
    config = gumbel.SearchConfig(
        max_considered_actions=6,
        use_oracle=use_oracle,
        rescale_values=rescale_values,
        root_noise=True,
    )
    now = {}  # the table that is searched, for the checker, which is called outside of the program

    def verify(*asked):
        return now["table"].verify(*asked)

    @jax.jit
    def both(fields, rng_key):
        table = TableModel(**fields)
        result = engine.search(
            table,
            None,
            table.root(batch),
            rng_key,
            num_simulations=num_simulations,
            config=config,
            verify=verify if use_oracle else None,
        )
        return result, full_mctx(table, config, num_simulations)

    for seed in range(3):
        rng = np.random.default_rng(seed)
        now["table"] = random_table(rng, batch=batch, root_actions=20, k=8, depth=3)
        found = both(vars(now["table"]), jax.random.key(seed))
        result, (visits, weights) = jax.device_get(found)
        top = np.asarray(result.root_candidates.tokens[..., 0]) - 1  # node number -> action
        rows = np.arange(batch)[:, None]
        np.testing.assert_array_equal(result.visits, np.asarray(visits)[rows, top])
        assert int(np.asarray(visits).sum()) == int(result.visits.sum())
        np.testing.assert_allclose(
            result.weights[:, :-1], np.asarray(weights)[rows, top], atol=1e-6
        )
        rest = 1.0 - np.asarray(weights)[rows, top].sum(1)
        np.testing.assert_allclose(result.weights[:, -1], rest, atol=2e-6)


def test_sequential_halving_is_that_of_mctx():
    for considered in range(1, 17):
        for num_simulations in (1, 2, 5, 6, 16, 48, 50, 64, 200):
            assert gumbel.sequential_halving(considered, num_simulations) == list(
                seq_halving.get_sequence_of_considered_visits(considered, num_simulations)
            )


def test_one_program_searches_with_every_size_and_with_or_without_values():
    """In a tree with room for more simulations a search is the same, bit for bit."""
    table = random_table(np.random.default_rng(5), batch=20, root_actions=9, k=6, depth=3)
    shared = gumbel.SearchConfig(num_simulations=(30, 12))
    programs = set()
    plant, advance, summarise = (
        jax.jit(functools.partial(function, table, None, config=shared.compiled))
        for function in (engine.plant, engine.advance, outcome.summarise)
    )
    for num_simulations, use_value in ((30, True), (12, True), (12, False)):
        config = dataclasses.replace(shared, use_value=use_value)
        programs.add(config.compiled)
        plan = config.plan(num_simulations, capacity=config.capacity)
        growth = advance(plant(table.root(20), jax.random.key(0), plan=plan), plan=plan)
        roomy = jax.device_get(summarise(growth, plan=plan))
        tight = search(table, 20, num_simulations=num_simulations, config=config)
        for name in ("visits", "action", "weights", "value", "qvalues", "evaluations"):
            np.testing.assert_array_equal(getattr(roomy, name), getattr(tight, name), err_msg=name)
        assert int(roomy.visits.sum()) == 20 * num_simulations
        assert roomy.tree.node_visits.shape == (20, 65)  # room for 64 simulations
    programs.add(dataclasses.replace(shared, num_simulations=50).compiled)
    assert len(programs) == 1


def small_tree(log_probs, qvalues, visits, value):
    """What `completed_qvalues` reads of a tree with one node (`[k]` each)."""
    return types.SimpleNamespace(
        children_visits=visits[None],
        children_prior_logits=log_probs[None],
        raw_values=value[None],
        qvalues=lambda node: qvalues,
    )


def test_improved_policy_is_never_worse_than_the_prior_when_q_is_exact():
    """10,000 random one-step problems; some actions unvisited, some mass outside the k."""
    config = gumbel.SearchConfig()
    rng = np.random.default_rng(0)
    cases, num_actions, k = 10_000, 9, 5
    logits = rng.normal(size=(cases, num_actions)) * 2
    log_p = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    q = jnp.asarray(rng.uniform(size=(cases, num_actions)), jnp.float32)
    visits = jnp.asarray(rng.integers(0, 4, size=(cases, k)))
    value = jnp.sum(jnp.exp(log_p) * q, axis=-1)

    def policy_value(log_p, q, visits, value):
        tree = small_tree(log_p[:k], q[:k], visits, value)
        weights = gumbel.improved_policy(tree, 0, config)
        rest_q = jnp.sum(jnp.exp(log_p[k:]) * q[k:]) / jnp.sum(jnp.exp(log_p[k:]))
        return jnp.sum(weights[:k] * q[:k]) + weights[k] * rest_q

    def with_exact_completion(log_p, q, visits, value):
        # Theory asks for completed values that are exact in expectation: visit all, no rest.
        tree = small_tree(jax.nn.log_softmax(log_p[:k]), q[:k], jnp.ones(k, int), value)
        weights = gumbel.improved_policy(tree, 0, config)[:k]
        prior = jax.nn.softmax(log_p[:k])
        return jnp.sum(weights * q[:k]) - jnp.sum(prior * q[:k])

    gain = jax.vmap(with_exact_completion)(log_p, q, visits, value)
    assert float(jnp.min(gain)) > -1e-6
    # With unvisited actions completed by v_mix, the policy improves on average by a wide margin.
    mixed = jax.vmap(policy_value)(log_p, q, visits, value)
    assert float(jnp.mean(mixed - value)) > 0.05


def test_completed_values_by_hand():
    """p = (.5, .25, .05), rest .2; visits (2, 1, 0); q = (.2, .8, -); v = .4.

    v_mix = (.4 + 3 * (.5 * .2 + .25 * .8) / .75) / 4 = (.4 + 1.2) / 4 = .4; scale = (50 + 2) * .1.
    """
    log_p = jnp.log(jnp.array([0.5, 0.25, 0.05]))
    tree = small_tree(log_p, jnp.array([0.2, 0.8, 9.0]), jnp.array([2, 1, 0]), jnp.array(0.4))
    config = gumbel.SearchConfig(value_scale=0.1, maxvisit_init=50.0)
    sigma, sigma_rest, mixed = gumbel.completed_qvalues(tree, 0, config)
    np.testing.assert_allclose(mixed, 0.4, rtol=1e-6)
    np.testing.assert_allclose(sigma, 5.2 * np.array([0.2, 0.8, 0.4]), rtol=1e-6)
    np.testing.assert_allclose(sigma_rest, 5.2 * 0.4, rtol=1e-6)
    unnormalised = np.array([0.5, 0.25, 0.05, 0.2]) * np.exp(5.2 * np.array([0.2, 0.8, 0.4, 0.4]))
    weights = gumbel.improved_policy(tree, 0, config)
    np.testing.assert_allclose(weights, unnormalised / unnormalised.sum(), rtol=1e-5)


def test_terminal_reward_and_discount_by_hand():
    """Two moves to the end, one of four endings right: values are averages of visits, and nothing
    flows through a finished text.

    root -> 1 -> (3 right, 4 wrong); root -> 2 -> (5 wrong, 6 wrong); all priors 1/2, no values.
    With 6 simulations Sequential Halving visits both root actions 3 times: first the node itself
    (worth 0), then ending 3 (worth 1). Now sigma(1) - sigma(v_mix = 1/2) = 51 * .1 / 2 = 2.55, so
    pi'(3) - N(3) / (1 + 1) = .93 - .5 beats .07: ending 3 again. q(1) = (0 + 1 + 1) / 3; below 2
    all is 0; the root is worth (0 + 2) / 7.
    """
    half = np.log(np.full(2, 0.5, np.float32))
    table = TableModel(
        root_log_probs=half,
        log_probs=np.tile(half, (7, 1)),
        value=np.zeros(7, np.float32),
        outcome=np.array([0, 0, 0, 1, 0, 0, 0], np.float32),
        children=np.array([[0, 0], [3, 4], [5, 6]] + [[0, 0]] * 4, np.int32),
        root_children=np.array([1, 2], np.int32),
        finished=np.array([False] * 3 + [True] * 4),
        gumbel=np.zeros((1, 2), np.float32),
    )
    config = gumbel.SearchConfig(use_oracle=True, use_value=False, max_considered_actions=2)
    result = search(table, 1, num_simulations=6, config=config, verify=table.verify)
    np.testing.assert_array_equal(result.visits, [[3, 3]])
    np.testing.assert_allclose(result.qvalues, [[2 / 3, 0.0]], rtol=1e-6)
    assert int(result.action[0]) == 0 and int(result.child.tokens[0, 0]) == 1
    np.testing.assert_allclose(result.tree.node_values[0, 0], 2 / 7, rtol=1e-6)


def test_absent_candidates_are_never_visited():
    """A forbidden action, at the root or below, stays unvisited and has no weight; its mass is in
    the rest."""
    rng = np.random.default_rng(1)
    table = random_table(rng, batch=3, root_actions=5, k=5, depth=3)
    forbidden = np.array([False, True, False, False, True])

    class Cut(TableModel):
        def propose(self, params, state, rng_key=None):
            state = super().propose(params, state, rng_key)
            log_probs = jnp.where(forbidden, -jnp.inf, state.candidates.log_probs)
            candidates = dataclasses.replace(state.candidates, log_probs=log_probs)
            return dataclasses.replace(state, candidates=candidates)

    cut = Cut(**{field.name: getattr(table, field.name) for field in dataclasses.fields(table)})
    config = gumbel.SearchConfig(max_considered_actions=4)
    result = search(cut, 3, num_simulations=30, config=config)
    visits = np.asarray(result.tree.children_visits)
    assert visits[:, 0].sum() == 90 and not visits[..., forbidden].any()
    np.testing.assert_array_equal(result.weights[:, :-1][:, forbidden], 0.0)
    assert np.all(np.asarray(result.weights[:, -1]) > 0.01)
    assert not forbidden[np.asarray(result.action)].any()


def test_oracle_without_checker_is_refused():
    table = random_table(np.random.default_rng(0), batch=1, root_actions=4, k=2, depth=2)
    with pytest.raises(ValueError, match="asks for a checker"):
        engine.search(
            table,
            None,
            table.root(1),
            jax.random.key(0),
            num_simulations=2,
            config=gumbel.SearchConfig(use_oracle=True),
        )
