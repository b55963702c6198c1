"""What a search has found: about its root, as an answer, and for the search of the next move."""

import dataclasses

import jax
import jax.numpy as jnp
import mctx
from flax import struct
from jaxtyping import Array, Int

from models.cache import Leaf
from search import gumbel, proposals, token_model
from search.growth import Growth
from search.gumbel import Plan, SearchConfig


@struct.dataclass
class SearchResult:
    """What a search says about the root, and where it went.

    root_candidates: the k candidates of the root. action: `[B]` the one to play.
    weights: `[B, k+1]` improved policy, the rest last.
    visits: `[B, k]`. qvalues: `[B, k]` (0 where unvisited). value: `[B]` of the root, mixed.
    child: the state after `action`. evaluations: `[B]` tokens read by the model in this search.
    calls: of the model, one after the other. tree: mctx's, with node embeddings reduced to their
    texts and outcomes.
    """

    root_candidates: proposals.Candidates
    action: Leaf
    weights: Leaf
    visits: Leaf
    qvalues: Leaf
    value: Leaf
    child: token_model.State | None
    evaluations: Leaf
    calls: Leaf
    tree: mctx.Tree


def summarise(
    model: token_model.Dynamics, params, growth: Growth, *, plan: Plan, config: SearchConfig
) -> SearchResult:
    """What the search says of the root, and the state after the action to play."""
    tree, root = growth.tree, growth.root
    rows = jnp.arange(root.length.shape[0])
    sigma, _, mixed = jax.vmap(lambda t: gumbel.completed_qvalues(t, 0, config))(tree)
    visits = tree.children_visits[:, 0]
    of_search = visits - growth.visits_before
    score = root.candidates.gumbel + root.candidates.log_probs + sigma
    most_visited = of_search == jnp.max(of_search, axis=-1, keepdims=True)
    action = jnp.argmax(jnp.where(most_visited, score, -jnp.inf), axis=-1).astype(jnp.int32)
    # An early end is played towards.
    by_rollout = growth.rollout.worth > jnp.max(growth.worth, axis=1)
    towards_end = _first_action(tree, best_end(growth))
    towards_end = jnp.where(by_rollout, growth.rollout.action, towards_end)
    action = jnp.where(growth.best_worth >= plan.stop_at, towards_end, action)
    if config.algorithm == "puct":
        weights = visits / jnp.maximum(jnp.sum(visits, axis=1, keepdims=True), 1)
        weights = jnp.pad(weights, ((0, 0), (0, 1)))
    else:
        weights = jax.vmap(lambda t: gumbel.improved_policy(t, 0, config))(tree)
    nodes = tree.embeddings
    child = jax.tree.map(lambda x: x[rows, _child(growth, action)], nodes)
    child = model.memory.commit(params, root, child, slots=growth.slots)
    texts = {
        "tokens": nodes.tokens,
        "length": nodes.length,
        "finished": nodes.finished,
        "outcome": nodes.outcome,
    }
    return SearchResult(
        root_candidates=root.candidates,
        action=action,
        weights=weights,
        visits=visits,
        qvalues=jnp.where(visits > 0, jax.vmap(lambda t: t.qvalues(0))(tree), 0.0),
        value=mixed,
        child=child,
        evaluations=growth.evaluations,
        calls=growth.calls,
        tree=tree.replace(embeddings=texts),
    )


def best_text(
    model: token_model.Dynamics,
    params,
    growth: Growth,
    *,
    verify: token_model.Verify | None = None,
) -> token_model.State:
    """The answer of a plan: the finished text that is worth most, of several the most visited.

    Where none was found, the most visited path, written on greedily (which `evaluations` counts).
    """
    rows = jnp.arange(growth.num_nodes.shape[0])
    found = best_end(growth)
    node = jnp.where(found >= 0, found, jax.vmap(_most_visited)(growth.tree))
    state = jax.tree.map(lambda x: x[rows, node], growth.tree.embeddings)
    state = dataclasses.replace(state, evaluations=jnp.zeros_like(state.evaluations))
    state = model.memory.recall(growth.root, state, growth.slots)
    written = model.finish(params, state)
    if verify is not None:
        asked = written.ended & ~state.finished
        written = token_model.judge(written, verify, asked=asked)
    best = growth.rollout
    is_better = (best.worth > jnp.max(growth.worth, axis=1)) & ~growth.root.finished
    return dataclasses.replace(
        written,
        tokens=jnp.where(is_better[:, None], best.tokens, written.tokens),
        length=jnp.where(is_better, best.length, written.length),
        finished=written.finished | is_better,
        ended=written.ended | is_better,
        outcome=jnp.where(is_better, best.worth, written.outcome),
    )


def _most_visited(tree: mctx.Tree) -> Int[Array, ""]:
    """The node that the most visited actions of one tree lead to."""

    def below(node):
        return tree.children_index[node, jnp.argmax(tree.children_visits[node])]

    return jax.lax.while_loop(lambda node: below(node) >= 0, below, jnp.zeros((), jnp.int32))


def _child(growth: Growth, action: Int[Array, "B"]) -> Int[Array, "B"]:
    """The node below the root; the root itself where it is finished."""
    return jnp.maximum(growth.tree.children_index[jnp.arange(len(action)), 0, action], 0)


def best_end(growth: Growth) -> Int[Array, "B"]:
    """The finished text that is worth most, of several the most visited; -1 where there is none."""
    worth = growth.worth
    is_best = worth == jnp.max(worth, axis=1, keepdims=True)
    visits = jnp.where(is_best & (worth > -jnp.inf), growth.tree.node_visits, -1)
    return jnp.where(jnp.max(visits, axis=1) < 0, -1, jnp.argmax(visits, axis=1)).astype(jnp.int32)


def _first_action(tree: mctx.Tree, node: Int[Array, "B"]) -> Int[Array, "B"]:
    """The root's action on the way to a node (0 for the root and for none)."""
    rows = jnp.arange(len(node))

    def is_deep(node):
        return (node > 0) & (tree.parents[rows, node] > 0)

    node = jax.lax.while_loop(
        lambda node: jnp.any(is_deep(node)),
        lambda node: jnp.where(is_deep(node), tree.parents[rows, node], node),
        node,
    )
    return jnp.where(node > 0, tree.action_from_parent[rows, node], 0)


def move_on(
    model: token_model.Dynamics, growth: Growth, result: SearchResult, *, plan: Plan
) -> Growth:
    """The search of the next move: below the action that was played, all found so far stays.

    The visits that are there already count in all means, but not in Sequential Halving, which is
    about this search alone (`Growth.visits_before`).

    A tree that would leave no room for the simulations of `plan` begins anew.
    """
    assert result.child is not None
    tree = growth.tree
    batch, num_nodes = tree.parents.shape
    rows = jnp.arange(batch)

    def below(node, kept):
        parent = tree.parents[:, node]
        return kept.at[:, node].set(kept[:, node] | (kept[rows, parent] & (parent >= 0)))

    is_new_root = jnp.arange(num_nodes) == _child(growth, result.action)[:, None]
    kept = jax.lax.fori_loop(1, num_nodes, below, is_new_root)
    kept &= jnp.arange(num_nodes) < growth.num_nodes[:, None]
    has_room = jnp.sum(kept, axis=1) + plan.num_simulations <= num_nodes
    order = jnp.argsort(~kept, axis=1, stable=True)  # the new root first
    position = jnp.argsort(order, axis=1)
    count = jnp.where(has_room, jnp.sum(kept, axis=1), 1)
    is_used = jnp.arange(num_nodes) < count[:, None]
    is_inner = is_used & has_room[:, None]  # whether a node has children that stay

    def gather(x, is_kept=is_used, empty=0):
        x = jax.vmap(lambda x, order: x[order])(x, order)
        return jnp.where(is_kept.reshape(*is_kept.shape, *[1] * (x.ndim - 2)), x, empty)

    def renumber(x, empty):
        new = jax.vmap(lambda position, x: position[jnp.maximum(x, 0)])(position, x)
        return jnp.where(x < 0, empty, new)

    nodes = jax.tree.map(lambda x: jax.vmap(lambda x, order: x[order])(x, order), tree.embeddings)
    nodes, slots = model.memory.keep(
        nodes, growth.slots, order, position, result.child.length - growth.root.length
    )
    raw_values = gather(tree.raw_values)
    children_index = renumber(gather(tree.children_index, is_inner, -1), -1)
    node_visits, node_values = gather(tree.node_visits), gather(tree.node_values)
    children_visits = gather(tree.children_visits, is_inner)
    candidates = jax.tree.map(lambda x: x[:, 0], nodes.candidates)
    tree = tree.replace(
        raw_values=raw_values,
        node_visits=node_visits.at[:, 0].set(jnp.where(has_room, node_visits[:, 0], 1)),
        node_values=jnp.where(is_inner, node_values, raw_values),
        parents=renumber(gather(tree.parents, empty=-1), -1).at[:, 0].set(-1),
        action_from_parent=gather(tree.action_from_parent, empty=-1).at[:, 0].set(-1),
        children_index=children_index,
        children_prior_logits=gather(tree.children_prior_logits),
        children_values=gather(tree.children_values, is_inner),
        children_visits=children_visits,
        children_rewards=gather(tree.children_rewards, is_inner),
        children_discounts=gather(tree.children_discounts, is_inner),
        embeddings=nodes,
        root_invalid_actions=1 - candidates.is_present.astype(jnp.int32),
        extra_data=mctx.GumbelMuZeroExtraData(root_gumbel=candidates.gumbel),
    )
    return Growth.begin(
        dataclasses.replace(result.child, candidates=candidates),
        tree,
        slots,
        num_nodes=count,
        evaluations=jnp.zeros((batch,), jnp.int32),
        visits_before=children_visits[:, 0],
    )
