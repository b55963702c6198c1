"""Growing search trees: many texts at once, up to W leaves of each tree in one model call.

A search is a pytree, `growth.Growth`, that `advance` takes on by so many model calls: it can stop
after any of them, be written down, and go on elsewhere. The trees are mctx's, with every leaf of a
round evaluated at once and with ends: a simulation that reaches a finished text again backs its
value up and costs no model call, no node and no slot. Every tree goes at its own pace.

With W = 1 the visits are those of `mctx.search` (tests/search/test_gumbel.py).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mctx
from flax import struct
from jaxtyping import Array, Bool, Int

from models.cache import Leaf
from search import gumbel, outcome, token_model
from search.growth import Growth, Rollout
from search.gumbel import Plan, SearchConfig


def search(
    model: token_model.Dynamics,
    params,
    root: token_model.State,
    rng_key: Array,
    *,
    num_simulations: int,
    config: SearchConfig,
    verify: token_model.Verify | None = None,
) -> outcome.SearchResult:
    """A whole search in a tree of just this size. `root` needs no candidates."""
    plan = config.plan(num_simulations, capacity=num_simulations)
    growth = plant(model, params, root, rng_key, plan=plan, config=config)
    growth = advance(model, params, growth, plan=plan, config=config, verify=verify)
    return outcome.summarise(model, params, growth, plan=plan, config=config)


def plant(
    model: token_model.Dynamics,
    params,
    root: token_model.State,
    rng_key: Array,
    *,
    plan: Plan,
    config: SearchConfig,
) -> Growth:
    """Trees of B texts with nothing but their roots, whose candidates are proposed here."""
    root = model.propose(params, root, rng_key if config.root_noise else None)
    capacity = plan.turns.shape[1]
    writes_on = config.leaf_value == "rollout" or config.mode == "plan"
    room = root.tokens.shape[1] if writes_on else None
    node, slots = model.memory.plant(root, capacity, room)
    tree = mctx.search(
        params=params,
        rng_key=rng_key,
        root=mctx.RootFnOutput(
            prior_logits=root.candidates.log_probs,
            value=plan.value_weight * root.value,
            embedding=node,
        ),
        recurrent_fn=None,
        root_action_selection_fn=None,
        interior_action_selection_fn=None,
        num_simulations=capacity,
        loop_fn=lambda start, stop, simulate, state: state,  # only makes room
        invalid_actions=1 - root.candidates.is_present.astype(jnp.int32),
        extra_data=mctx.GumbelMuZeroExtraData(root_gumbel=root.candidates.gumbel),
    )
    return Growth.begin(
        root,
        tree,
        slots,
        num_nodes=jnp.ones_like(root.length),
        evaluations=root.evaluations,
        visits_before=jnp.zeros_like(tree.children_visits[:, 0]),
    )


def advance(
    model: token_model.Dynamics,
    params,
    growth: Growth,
    *,
    plan: Plan,
    config: SearchConfig,
    verify: token_model.Verify | None = None,
    until: Int[Array, ""] | int | None = None,
) -> Growth:
    """Searches on, until the plan is done or the model has been called `until` times in all.

    What `plan` holds comes from there, everything else from `config`.

    A finished edge has reward r and discount 0: r is the oracle's outcome, or else the value head's
    estimate of the finished text (a text that ran out of room is a failure).
    """
    if config.use_oracle and verify is None:
        raise ValueError(
            "use_oracle asks for a checker; got verify=None. Pass one, or switch it off."
        )
    plan = jax.tree.map(jnp.asarray, plan)
    oracle = verify if config.use_oracle else None

    def goes_on(growth):
        left = jnp.any(_leaves_left(growth, plan) > 0)
        return left if until is None else left & (growth.calls < until)

    def one_call(growth):
        growth, leaves = _visit_ends(growth, plan, config)
        growth, nodes = _expand(model, params, growth, leaves, plan, config, oracle)
        tree = _back_up(growth.tree, nodes, leaves.action, leaves.is_active)
        active = jnp.any(leaves.is_active, axis=1)
        return dataclasses.replace(
            growth, tree=tree, rounds=growth.rounds + active, calls=growth.calls + 1
        )

    return jax.lax.while_loop(goes_on, one_call, growth)


def is_done(growth: Growth, plan: Plan) -> Bool[Array, ""]:
    """Whether `advance` has nothing left to do."""
    return ~jnp.any(_leaves_left(growth, jax.tree.map(jnp.asarray, plan)) > 0)


def _leaves_left(growth: Growth, plan: Plan) -> Int[Array, "B"]:
    """Simulations of the next round of each tree; 0 once its search has ended."""
    num_valid = jnp.sum(growth.root.candidates.is_present, axis=1)
    last = plan.leaves.shape[1] - 1
    count = plan.leaves[num_valid, jnp.minimum(growth.rounds, last)]
    is_over = growth.root.finished | (growth.rounds > last)
    is_over |= growth.best_worth >= plan.stop_at
    return jnp.where(is_over, 0, count)


@struct.dataclass
class _Leaves:
    """Where the next round goes, `[B, W]`: from `parent` by an action that was not taken before
    (`is_new`), or to the finished text `end`. `action` is that of the root.
    """

    action: Leaf
    parent: Leaf
    last_action: Leaf
    end: Leaf
    is_active: Leaf

    @property
    def is_new(self) -> Bool[Array, "B W"]:
        return self.is_active & (self.end < 0)


def _select(growth: Growth, plan: Plan, config: SearchConfig) -> _Leaves:
    """Walks down every tree, from up to W actions of its root."""
    count = _leaves_left(growth, plan)
    width = config.parallel_leaves

    def of_tree(tree, visits_before, count, turn):
        if config.algorithm == "puct":
            choose = gumbel.puct_action
            action, is_active = choose(tree, 0)[None], count[None] > 0
        else:
            choose = functools.partial(gumbel.interior_action, config=config)
            is_turn = tree.children_visits[0] - visits_before == turn
            is_turn &= tree.root_invalid_actions == 0
            score = jnp.where(is_turn, gumbel.root_scores(tree, config), -jnp.inf)
            score, action = jax.lax.top_k(score, width)
            is_active = (jnp.arange(width) < count) & (score > -jnp.inf)

        def walk(action, is_active):
            def is_inside(place):
                child = tree.children_index[place]
                return is_active & (child >= 0) & ~tree.embeddings.finished[child]

            def down(place):
                node = tree.children_index[place]
                return node, choose(tree, node).astype(jnp.int32)

            root = jnp.zeros((), jnp.int32)
            place = jax.lax.while_loop(is_inside, down, (root, action.astype(jnp.int32)))
            return *place, tree.children_index[place]

        parent, last_action, end = jax.vmap(walk)(action, is_active)
        return _Leaves(action, parent, last_action, end, is_active)

    num_valid = jnp.sum(growth.root.candidates.is_present, axis=1)
    turn = plan.turns[num_valid, jnp.minimum(growth.rounds, plan.turns.shape[1] - 1)]
    return jax.vmap(of_tree)(growth.tree, growth.visits_before, count, turn)


def _visit_ends(growth: Growth, plan: Plan, config: SearchConfig) -> tuple[Growth, _Leaves]:
    """Does the rounds that meet ends alone; then every tree has a new leaf, or is done."""

    def meets_ends_alone(leaves):
        return jnp.any(leaves.is_active, axis=1) & ~jnp.any(leaves.is_new, axis=1)

    def goes_on(carry):
        _, leaves, is_first = carry
        return is_first | jnp.any(meets_ends_alone(leaves))

    def one_round(carry):
        growth, leaves, _ = carry
        now = meets_ends_alone(leaves)
        tree = _back_up(growth.tree, leaves.end, leaves.action, leaves.is_active & now[:, None])
        growth = dataclasses.replace(growth, tree=tree, rounds=growth.rounds + now)
        return growth, _select(growth, plan, config), jnp.zeros((), bool)

    # Selecting is much to compile, so it stands in one place.
    shape = (growth.num_nodes.shape[0], config.parallel_leaves)
    nowhere = jnp.zeros(shape, jnp.int32)
    none = _Leaves(nowhere, nowhere, nowhere, nowhere, jnp.zeros(shape, bool))
    growth, leaves, _ = jax.lax.while_loop(goes_on, one_round, (growth, none, jnp.ones((), bool)))
    return growth, leaves


def _expand(model, params, growth, leaves, plan, config, oracle) -> tuple[Growth, Array]:
    """The model reads the new leaves; also returns the node `[B, W]` where each simulation ends."""
    tree, memory = growth.tree, model.memory
    batch, width = leaves.parent.shape
    rows = jnp.arange(batch)[:, None]
    is_new = leaves.is_new
    nowhere = tree.num_simulations + 1  # out of bounds: dropped
    number = growth.num_nodes[:, None] + jnp.cumsum(is_new, axis=1) - 1
    number = jnp.where(is_new, number, nowhere)

    def flat(x):
        return x.reshape(batch * width, *x.shape[2:])

    parent = jax.tree.map(lambda x: flat(x[rows, leaves.parent]), tree.embeddings)
    # A leaf that is not asked for does not move, and so costs nothing.
    asked = dataclasses.replace(parent, finished=parent.finished | ~flat(is_new))
    action = flat(leaves.last_action)
    child = model.act(params, memory.recall(growth.root, asked, growth.slots), action)
    if oracle is not None:
        child = token_model.judge(child, oracle, asked=child.ended & flat(is_new))
        final = child.outcome
    else:
        final = jnp.where(child.ended, plan.value_weight * child.value, 0.0)
    child = model.propose(params, child)
    value, spent, rollout = child.value, child.evaluations, growth.rollout
    if config.leaf_value == "prior":
        value = jnp.exp(parent.candidates.log_probs[jnp.arange(len(action)), action])
    elif config.leaf_value == "rollout":
        end = model.finish(params, child)
        spent = end.evaluations
        if oracle is not None:
            end = token_model.judge(end, oracle, asked=end.ended & ~child.finished & flat(is_new))
            value = jnp.where(end.ended, end.outcome, 0.0)
        else:
            value = jnp.where(end.ended, plan.value_weight * end.value, 0.0)
        is_end = (end.ended & flat(is_new)).reshape(batch, width)
        rollout = _better_rollout(rollout, end, value, leaves.action, is_end)
    if config.leaf_value != "rollout":
        value = plan.value_weight * value
    child = dataclasses.replace(child, outcome=jnp.where(child.finished, final, 0.0))
    node, slots = memory.store(growth.root, parent, child, growth.slots, number)

    def put(x, new, *index):
        new = new.reshape(batch, width, *new.shape[1:])
        return x.at[(rows, *index)].set(new.astype(x.dtype), mode="drop")

    at_edge = jnp.where(is_new, leaves.parent, nowhere), leaves.last_action
    value = jnp.where(child.finished, 0.0, value)
    tree = tree.replace(
        node_visits=put(tree.node_visits, jnp.zeros_like(child.length), number),
        raw_values=put(tree.raw_values, value, number),
        node_values=put(tree.node_values, value, number),
        parents=put(tree.parents, flat(leaves.parent), number),
        action_from_parent=put(tree.action_from_parent, action, number),
        children_prior_logits=put(tree.children_prior_logits, child.candidates.log_probs, number),
        children_index=put(tree.children_index, flat(number), *at_edge),
        children_rewards=put(
            tree.children_rewards, jnp.where(child.finished, final, 0.0), *at_edge
        ),
        children_discounts=put(
            tree.children_discounts, jnp.where(child.finished, 0.0, 1.0), *at_edge
        ),
        embeddings=jax.tree.map(lambda x, new: put(x, new, number), tree.embeddings, node),
    )
    spent = jnp.where(flat(is_new), spent, 0).reshape(batch, width)
    growth = dataclasses.replace(
        growth,
        tree=tree,
        slots=slots,
        num_nodes=growth.num_nodes + jnp.sum(is_new, axis=1),
        evaluations=growth.evaluations + jnp.sum(spent, axis=1),
        rollout=rollout,
    )
    return growth, jnp.where(is_new, number, leaves.end)


def _better_rollout(rollout: Rollout, end, worth, action, is_end) -> Rollout:
    """The better of the best rollout so far and those of new leaves (`[B W]`; action `[B, W]`)."""
    worth = jnp.where(is_end, worth.reshape(is_end.shape), -jnp.inf)
    rows, best = jnp.arange(len(worth)), jnp.argmax(worth, axis=1)
    new = Rollout(
        tokens=end.tokens.reshape(*is_end.shape, -1)[rows, best],
        length=end.length.reshape(is_end.shape)[rows, best],
        worth=worth[rows, best],
        action=action[rows, best],
    )
    is_better = new.worth > rollout.worth
    return jax.tree.map(lambda old, new: jax.vmap(jnp.where)(is_better, new, old), rollout, new)


def _back_up(tree: mctx.Tree, node: Array, action: Array, is_active: Array) -> mctx.Tree:
    """One more visit of the nodes `[B, W]` and of all on their ways, which share only the root.

    action: `[B, W]` of the root, by which each way begins. The mean of a node takes its leaves up
    one after the other, as in `mctx.search`.
    """
    rows = jnp.arange(len(node))[:, None]
    nowhere = tree.num_simulations + 1

    def bump(x, at, new=None):
        spot = x.at[(rows, *at)]
        return spot.add(1, mode="drop") if new is None else spot.set(new, mode="drop")

    def edge_value(tree, parent, action, value):
        reward = tree.children_rewards[rows, parent, action]
        return reward + tree.children_discounts[rows, parent, action] * value

    node = jnp.where(is_active, node, 0)
    tree = tree.replace(node_visits=bump(tree.node_visits, (jnp.where(is_active, node, nowhere),)))
    value = jnp.where(is_active, tree.node_values[rows, node], 0.0)

    def is_below(tree, node):
        return (node > 0) & (tree.parents[rows, node] > 0)

    def up(carry):
        tree, value, node = carry
        moves = is_below(tree, node)
        parent = tree.parents[rows, node]
        at = jnp.where(moves, parent, nowhere)
        took = tree.action_from_parent[rows, node]
        count = tree.node_visits[rows, parent]
        above = edge_value(tree, parent, took, value)
        mean = (tree.node_values[rows, parent] * count + above) / (count + 1.0)
        tree = tree.replace(
            children_values=bump(tree.children_values, (at, took), tree.node_values[rows, node]),
            children_visits=bump(tree.children_visits, (at, took)),
            node_values=bump(tree.node_values, (at,), mean),
            node_visits=bump(tree.node_visits, (at,)),
        )
        return tree, jnp.where(moves, above, value), jnp.where(moves, parent, node)

    tree, value, node = jax.lax.while_loop(
        lambda carry: jnp.any(is_below(carry[0], carry[2])), up, (tree, value, node)
    )
    took = jnp.where(is_active, action, tree.num_actions)  # out of bounds: dropped
    above = jnp.where(is_active, edge_value(tree, 0, action, value), 0.0)
    root_visits, count = tree.node_visits[:, 0], jnp.sum(is_active, axis=1)
    mean = tree.node_values[:, 0] * root_visits + jnp.sum(above, axis=1)
    mean = jnp.where(count > 0, mean / (root_visits + count), tree.node_values[:, 0])
    return tree.replace(
        children_values=bump(tree.children_values, (0, took), tree.node_values[rows, node]),
        children_visits=bump(tree.children_visits, (0, took)),
        node_values=tree.node_values.at[:, 0].set(mean),
        node_visits=tree.node_visits.at[:, 0].add(count),
    )
