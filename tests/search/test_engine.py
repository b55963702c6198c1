"""The engine beyond stock mctx: rounds of leaves, ends, slices, reuse, rollouts, PUCT."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from search import engine, gumbel, outcome
from tests.search.table_model import TableModel, random_table

BATCH, SIMULATIONS = 20, 40


@functools.cache
def table(seed=0, depth=4):
    rng = np.random.default_rng(seed)
    return random_table(rng, batch=BATCH, root_actions=12, k=8, depth=depth)


@functools.cache
def programs(model, config):
    """`plant` and `advance`, compiled once."""
    verify = model.verify if config.use_oracle else None
    plant = functools.partial(engine.plant, model, None, config=config)
    advance = functools.partial(engine.advance, model, None, config=config, verify=verify)
    return jax.jit(plant), jax.jit(advance)


@functools.cache
def summaries(model, config):
    """`summarise` and `move_on`, compiled once."""
    summarise = functools.partial(outcome.summarise, model, None, config=config)
    return jax.jit(summarise), jax.jit(functools.partial(outcome.move_on, model))


def best_text(model, growth):
    best = functools.partial(outcome.best_text, model, None, verify=model.verify)
    return jax.device_get(jax.jit(best)(growth))


def grow(model, config, *, num_simulations=SIMULATIONS, capacity=None, until=1_000):
    """The plan, and the search it made."""
    plan = config.plan(num_simulations, capacity=capacity or num_simulations)
    plant, advance = programs(model, config)
    growth = plant(model.root(BATCH), jax.random.key(0), plan=plan)
    return plan, jax.device_get(advance(growth, plan=plan, until=until))


def assert_same(one, other, exact=True):
    def check(path, a, b):
        check_equal = np.testing.assert_array_equal if exact else np.testing.assert_allclose
        options = {} if exact else {"atol": 1e-6}
        check_equal(a, b, err_msg=jax.tree_util.keystr(path), **options)

    jax.tree_util.tree_map_with_path(check, one, other)


@pytest.mark.parametrize("num_simulations", [1, 2, 7, 50, 200, 400])
@pytest.mark.parametrize("width", [1, 3, 8, 32])
def test_rounds_are_the_simulations_of_sequential_halving(num_simulations, width):
    for considered in (1, 2, 5, 16, 32):
        one_by_one = [
            turn
            for turn, count in gumbel.rounds(considered, num_simulations, width)
            for _ in range(count)
        ]
        assert one_by_one == gumbel.sequential_halving(considered, num_simulations)
        assert max(n for _, n in gumbel.rounds(considered, num_simulations, width)) <= width


def test_a_quarter_of_the_calls_of_200_simulations():
    assert len(gumbel.rounds(32, 200, 32)) * 4 <= 200
    assert len(gumbel.rounds(32, 200, 16)) * 4 <= 200


@pytest.mark.parametrize("width", [3, pytest.param(8, marks=pytest.mark.soak)])
def test_leaves_in_parallel_are_the_leaves_one_after_the_other(width):
    """Where values do not change the order: the same trees but for the numbers of their nodes."""
    config = gumbel.SearchConfig(value_scale=0.0, max_considered_actions=7)
    wide = dataclasses.replace(config, parallel_leaves=width)
    (_, one), (_, many) = grow(table(), config), grow(table(), wide)
    np.testing.assert_array_equal(one.tree.children_visits[:, 0], many.tree.children_visits[:, 0])
    np.testing.assert_array_equal(one.num_nodes, many.num_nodes)
    np.testing.assert_allclose(one.tree.node_values[:, 0], many.tree.node_values[:, 0], atol=1e-6)
    for row in range(BATCH):
        assert statistics(one, row) == pytest.approx(statistics(many, row))
    # As many calls as the tree of the most rounds that have a new leaf.
    assert many.calls < 0.6 * one.calls
    assert one.evaluations.sum() == many.evaluations.sum()


def statistics(growth, row):
    """text -> (visits, value) of every node (the number of the text of a table is unique)."""
    tree, count = growth.tree, int(growth.num_nodes[row])
    texts = np.asarray(tree.embeddings.tokens[row, :count, 0]).tolist()
    visits, values = (np.asarray(x[row, :count]) for x in (tree.node_visits, tree.node_values))
    found = dict(zip(texts, zip(visits.tolist(), values.tolist(), strict=True), strict=True))
    assert len(found) == count
    return {f"{text}{which}": x for text, both in found.items() for which, x in enumerate(both)}


def test_values_are_means_over_a_tree_of_parallel_leaves():
    """Every node's value is that of itself and of all that is below it, by definition."""
    config = gumbel.SearchConfig(use_oracle=True, parallel_leaves=8)
    _, growth = grow(table(), config)
    tree = jax.tree.map(np.asarray, growth.tree)
    for row in range(BATCH):
        for node in range(int(growth.num_nodes[row])):
            there = tree.children_index[row, node] >= 0
            visits, children = tree.children_visits[row, node], tree.children_index[row, node]
            if tree.embeddings.finished[row, node]:
                assert not visits.any() and tree.node_values[row, node] == 0
                continue
            assert tree.node_visits[row, node] == 1 + visits.sum()
            np.testing.assert_array_equal(visits[there], tree.node_visits[row, children[there]])
            q = (
                tree.children_rewards[row, node]
                + tree.children_discounts[row, node] * (tree.node_values[row, children])
            )
            total = tree.raw_values[row, node] + (visits * q)[there].sum()
            assert tree.node_values[row, node] == pytest.approx(
                total / (1 + visits.sum()), abs=1e-6
            )


def test_ends_cost_no_call_and_no_node():
    """All that can be found at depth 2 are 1 + 8 + 64 nodes, and 200 simulations make no more."""
    config = gumbel.SearchConfig(use_oracle=True, max_considered_actions=7)
    shallow = table(depth=2)
    _, growth = grow(shallow, config, num_simulations=200)
    assert int(growth.tree.node_visits[:, 0].min()) == 201  # the root's and all simulations
    assert int(growth.num_nodes.max()) <= 73
    assert int(growth.calls) <= 73
    np.testing.assert_array_equal(growth.evaluations, growth.num_nodes - 1)


@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.soak), 4])
def test_a_search_in_slices_is_the_search(width):
    config = gumbel.SearchConfig(use_oracle=True, parallel_leaves=width)
    plan, whole = grow(table(), config)
    _, growth = grow(table(), config, until=0)
    slices = 0
    _, advance = programs(table(), config)
    is_done = jax.jit(engine.is_done)
    while not is_done(growth, plan):
        growth = advance(growth, plan=plan, until=growth.calls + 3)
        slices += 1
    assert slices > 3
    assert_same(whole, growth)


def test_a_search_ends_once_it_holds_what_is_asked_for():
    config = gumbel.SearchConfig(use_oracle=True, stop_at=1.0)
    _, growth = grow(table(), config)
    solved = np.asarray(growth.best_worth) == 1.0
    visits = np.asarray(growth.tree.node_visits[:, 0])
    assert solved.any() and not solved.all()
    assert (visits[~solved] == 1 + SIMULATIONS).all()
    assert (visits[solved] < 1 + SIMULATIONS).any()
    plan = config.plan(SIMULATIONS, capacity=SIMULATIONS)
    summarise, _ = summaries(table(), config)
    result = summarise(growth, plan=plan)
    # What is played leads to the solution: it is below the child.
    children = {int(n): set(row.tolist()) for n, row in enumerate(table().children)}
    ends = np.flatnonzero(table().outcome * table().finished)

    def reaches(node):
        return node in ends or any(map(reaches, children[node] - {0}))

    for row in np.flatnonzero(solved):
        assert reaches(int(result.child.tokens[row, 0]))


def test_a_plan_answers_with_the_best_end_or_writes_on():
    config = gumbel.SearchConfig(use_oracle=True, mode="plan")
    few, many = (grow(table(), config, num_simulations=n)[1] for n in (2, 60))
    for growth in (few, many):
        state = best_text(table(), growth)
        assert np.asarray(state.finished).all()
        node = np.asarray(state.tokens[:, 0])
        np.testing.assert_array_equal(state.outcome, table().outcome[node])
        found = np.asarray(growth.worth).max(axis=1)
        np.testing.assert_array_equal(np.asarray(state.outcome)[found >= 0], found[found >= 0])
        assert (np.asarray(state.evaluations)[found >= 0] == 0).all()
        assert (np.asarray(state.evaluations)[found < 0] > 0).all()
    assert (np.asarray(few.worth).max(axis=1) < 0).all()
    assert (np.asarray(many.worth).max(axis=1) >= 0).any()


def test_rollouts_are_worth_what_their_ends_are():
    config = gumbel.SearchConfig(use_oracle=True, use_value=False, leaf_value="rollout")
    model = table()
    _, growth = grow(model, config)
    best = np.asarray(model.log_probs).argmax(axis=1)

    def end(node):
        return node if model.finished[node] else end(model.children[node, best[node]])

    tree = growth.tree
    for row in range(BATCH):
        for n in range(1, int(growth.num_nodes[row])):
            node = int(tree.embeddings.tokens[row, n, 0])
            want = 0.0 if model.finished[node] else model.outcome[end(node)]
            assert float(tree.raw_values[row, n]) == want
    assert int(growth.evaluations.sum()) > int((growth.num_nodes - 1).sum())
    np.testing.assert_array_equal(
        growth.rollout.worth, model.outcome[np.asarray(growth.rollout.tokens[:, 0])]
    )
    state = best_text(model, growth)
    assert (np.asarray(state.outcome) >= np.asarray(growth.rollout.worth)).all()


def test_a_leaf_can_be_worth_its_prior():
    _, growth = grow(table(), gumbel.SearchConfig(leaf_value="prior"))
    tree = jax.tree.map(np.asarray, growth.tree)
    for node in range(1, int(growth.num_nodes[0])):
        if not tree.embeddings.finished[0, node]:
            parent, action = tree.parents[0, node], tree.action_from_parent[0, node]
            prior = np.exp(tree.children_prior_logits[0, parent, action])
            assert tree.raw_values[0, node] == pytest.approx(prior, rel=1e-6)


@pytest.mark.parametrize("width", [pytest.param(1, marks=pytest.mark.soak), 4])
def test_a_tree_stays_below_the_action_that_is_played(width):
    """Against a search of the same tree in place: nothing below the action changes; then the next
    search adds exactly its simulations, as Sequential Halving deals them out."""
    config = gumbel.SearchConfig(
        use_oracle=True, reuse_tree=True, parallel_leaves=width, max_considered_actions=6
    )
    model, capacity = table(depth=5), 3 * SIMULATIONS
    plan, growth = grow(model, config, capacity=capacity)
    summarise, move_on = summaries(model, config)
    result = jax.device_get(summarise(growth, plan=plan))
    moved = jax.device_get(move_on(growth, result, plan=plan))
    for row in range(BATCH):
        before, after = statistics(growth, row), statistics(moved, row)
        assert set(after) <= set(before)
        parents, texts = growth.tree.parents[row], growth.tree.embeddings.tokens[row, :, 0]

        def is_below(node, parents=parents, texts=texts, root=int(result.child.tokens[row, 0])):
            return node >= 0 and (int(texts[node]) == root or is_below(int(parents[node])))

        below = [int(texts[n]) for n in range(int(growth.num_nodes[row])) if is_below(n)]
        assert set(after) == {f"{text}{which}" for text in below for which in range(2)}
        assert after == {name: before[name] for name in after}
        parents = np.asarray(moved.tree.parents[row, : moved.num_nodes[row]])
        assert parents[0] == -1 and (parents[1:] < np.arange(1, len(parents))).all()
    visits_before = np.asarray(moved.tree.children_visits[:, 0])
    np.testing.assert_array_equal(moved.visits_before, visits_before)
    _, advance = programs(model, config)
    more = advance(moved, plan=plan, until=1_000)
    new = np.asarray(more.tree.children_visits[:, 0]) - visits_before
    wanted = np.bincount(np.bincount(choices(6, SIMULATIONS), minlength=8), minlength=SIMULATIONS)
    for row in np.flatnonzero(~np.asarray(moved.root.finished)):
        np.testing.assert_array_equal(np.bincount(new[row], minlength=SIMULATIONS), wanted)
    # And a third move.
    assert int(move_on(more, summarise(more, plan=plan), plan=plan).num_nodes.max()) > 1


def choices(considered, num_simulations):
    """Which of the considered actions Sequential Halving visits if the first are the best."""
    visits, found = [0] * considered, []
    for turn in gumbel.sequential_halving(considered, num_simulations):
        found.append(visits.index(turn))
        visits[found[-1]] += 1
    return found


def test_a_tree_without_room_begins_anew():
    config = gumbel.SearchConfig(use_oracle=True, reuse_tree=True)
    plan, growth = grow(table(), config)  # room for these simulations and no more
    summarise, move_on = summaries(table(), config)
    result = summarise(growth, plan=plan)
    moved = move_on(growth, result, plan=plan)
    assert (np.asarray(moved.num_nodes) == 1).all()
    root = dataclasses.replace(result.child, evaluations=jnp.zeros_like(result.child.length))
    plant, advance = programs(table(), config)
    fresh = plant(root, jax.random.key(0), plan=plan)
    fields = ("node_visits", "node_values", "children_visits", "children_prior_logits", "parents")
    for name in fields:
        np.testing.assert_allclose(
            getattr(moved.tree, name)[:, 0], getattr(fresh.tree, name)[:, 0], err_msg=name
        )
    after = (advance(growth, plan=plan, until=1_000).tree for growth in (moved, fresh))
    assert_same(*(tree.children_visits for tree in after))


def test_puct_is_that_of_mctx():
    """Against stock mctx, in whose trees ends go on for ever."""
    model = table()

    def recurrent_fn(params, rng_key, action, node):
        was_finished = jnp.asarray(model.finished)[node]
        child = jnp.where(was_finished, node, jnp.asarray(model.children)[node, action])
        finished = jnp.asarray(model.finished)[child]
        return mctx.RecurrentFnOutput(
            reward=jnp.where(finished & ~was_finished, jnp.asarray(model.outcome)[child], 0.0),
            discount=jnp.where(finished, 0.0, 1.0),
            prior_logits=jnp.asarray(model.log_probs)[child],
            value=jnp.where(finished, 0.0, jnp.asarray(model.value)[child]),
        ), child

    class InnerRoot(TableModel):
        """The search begins at the first child of the root, whose k actions are all."""

        def root(self, batch):
            return (
                super()
                .root(batch)
                .replace(
                    tokens=jnp.ones((batch, 1), jnp.int32), value=jnp.full((batch,), self.value[1])
                )
            )

    inner = InnerRoot(
        **{field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    )
    config = gumbel.SearchConfig(algorithm="puct", use_oracle=True)
    plan, growth = grow(inner, config)

    @jax.jit
    def stock(rng_key):
        return mctx.search(
            params=None,
            rng_key=rng_key,
            root=mctx.RootFnOutput(
                prior_logits=jnp.broadcast_to(model.log_probs[1], (BATCH, model.k)),
                value=jnp.full((BATCH,), model.value[1]),
                embedding=jnp.ones((BATCH,), jnp.int32),
            ),
            recurrent_fn=recurrent_fn,
            root_action_selection_fn=lambda key, tree, node: mctx.muzero_action_selection(
                key, tree, node, 0
            ),
            interior_action_selection_fn=mctx.muzero_action_selection,
            num_simulations=SIMULATIONS,
        )

    tree = stock(jax.random.key(0))
    np.testing.assert_array_equal(growth.tree.children_visits[:, 0], tree.children_visits[:, 0])
    np.testing.assert_allclose(growth.tree.node_values[:, 0], tree.node_values[:, 0], atol=1e-6)
    summarise, _ = summaries(inner, config)
    result = summarise(growth, plan=plan)
    np.testing.assert_array_equal(result.action, np.asarray(result.visits).argmax(axis=1))
    np.testing.assert_allclose(result.weights[:, :-1] * SIMULATIONS, result.visits, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorithm": "puct", "parallel_leaves": 4}, "one leaf after the other"),
        ({"parallel_leaves": 0}, "at least one leaf"),
        ({"reuse_tree": True, "root_noise": True}, "new candidates"),
        ({"reuse_tree": True, "mode": "plan"}, "no tree to reuse"),
        ({"leaf_value": "rollout", "use_value": False}, "judged by the oracle"),
    ],
)
def test_impossible_searches_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        gumbel.SearchConfig(**fields)
