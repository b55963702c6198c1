"""Gumbel MuZero search (Danihelka et al., ICLR 2022): the one place that calls mctx.

The root holds k candidates drawn with their Gumbel noise g, and the same g goes into the search,
so nothing is lost against a search over every continuation as long as k exceeds the considered
actions. What the k leave out is one more bucket, the *rest*: unvisited, so worth the mixed value.
"""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from models.cache import Leaf
from search import proposals, token_model
from train.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """One search per move."""

    action: token_model.ActionConfig = token_model.ActionConfig()
    """What one action is."""
    num_simulations: int | tuple[int, ...] = 50
    """Simulations per move; of several numbers, move i takes its own (the last one repeats)."""
    max_considered_actions: int | None = None
    """m, root actions that Sequential Halving starts with (m < k). None: a third of the
    simulations, at least 4 and less than k."""
    use_oracle: bool = False
    """A finished text is worth what the checker says. Without it, its value."""
    use_value: bool = True
    """Leaves are worth the value head's estimate. Without it, 0."""
    value_scale: float = 0.1
    """How far values move the policy: log p + sigma(q), where
    sigma(q) = (maxvisit_init + max visits) * value_scale * q."""
    maxvisit_init: float = 50.0
    """Weight of values in sigma before there are visits."""
    rescale_values: bool = False
    """Stretch q to [0, 1] per node before sigma."""
    root_noise: bool = False
    """Root actions are sampled with Gumbel noise (training games), else the k likeliest."""

    def __post_init__(self):
        sizes = self.num_simulations
        sizes = (sizes,) if isinstance(sizes, int) else sizes
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"a search has at least one simulation; got {self.num_simulations=}.")
        considered, k = self.max_considered_actions, self.action.num_candidates
        if considered is not None and not 1 <= considered < k:
            raise ConfigError(
                "a search considers at least one and fewer actions than it has candidates (the "
                f"rest must stay unvisited); got max_considered_actions={considered} of {k}."
            )

    def simulations_at(self, move: int) -> int:
        if isinstance(self.num_simulations, int):
            return self.num_simulations
        return self.num_simulations[min(move, len(self.num_simulations) - 1)]

    def considered_with(self, num_simulations: int) -> int:
        """Root actions that a search of this size considers."""
        if self.max_considered_actions is not None:
            return self.max_considered_actions
        return min(max(4, num_simulations // 3), self.action.num_candidates - 1)

    @property
    def capacity(self) -> int:
        """Simulations that a tree has room for: those of the largest search, and up to a power of
        two, at least 64, so that searches of similar sizes share one program.
        """
        sizes = self.num_simulations
        largest = sizes if isinstance(sizes, int) else max(sizes)
        return max(64, 1 << (largest - 1).bit_length())

    @property
    def compiled(self) -> "SearchConfig":
        """The settings that a program is compiled for: all but those that a `Plan` holds."""
        return dataclasses.replace(
            self, num_simulations=self.capacity, max_considered_actions=None, use_value=True
        )

    def plan(self, num_simulations: int, *, capacity: int) -> "Plan":
        """One search of so many simulations in a tree that has room for `capacity`."""
        visits = np.zeros((self.action.num_candidates + 1, capacity), np.int32)
        for num_valid in range(len(visits)):
            considered = min(self.considered_with(num_simulations), num_valid)
            visits[num_valid, :num_simulations] = sequential_halving(considered, num_simulations)
        return Plan(
            num_simulations=np.int32(num_simulations),
            value_weight=np.float32(self.use_value),
            considered_visits=visits,
        )


@struct.dataclass
class Plan:
    """The settings of a search that are data, so that one compiled program serves many sizes.

    num_simulations: at most the capacity. value_weight: 1 with `use_value`, else 0.
    considered_visits: `[k + 1, capacity]`: with n valid root actions, simulation i chooses among
    those that were visited `considered_visits[n, i]` times.
    """

    num_simulations: Leaf
    value_weight: Leaf
    considered_visits: Leaf


def sequential_halving(num_considered: int, num_simulations: int) -> list[int]:
    """For each simulation, how often the actions have been visited of which it takes the best.

    All considered actions are visited equally often, then the better half of them, and so on; about
    the same number of simulations goes to each of the log2 rounds.
    Source: Karnin, Koren and Somekh, ICML 2013; Gumbel MuZero (ICLR 2022), algorithm 2.
    """
    if num_considered <= 1:
        return list(range(num_simulations))
    rounds = math.ceil(math.log2(num_considered))
    visits, sequence = [0] * num_considered, list[int]()
    while len(sequence) < num_simulations:
        for _ in range(max(1, num_simulations // (rounds * num_considered))):
            sequence += visits[:num_considered]
            visits[:num_considered] = [n + 1 for n in visits[:num_considered]]
        num_considered = max(2, num_considered // 2)
    return sequence[:num_simulations]


@struct.dataclass
class SearchResult:
    """What a search says about the root, and where it went.

    root_candidates: the k candidates of the root. action: `[B]` the one to play.
    weights: `[B, k+1]` improved policy, the rest last.
    visits: `[B, k]`. qvalues: `[B, k]` (0 where unvisited). value: `[B]` of the root, mixed.
    child: the state after `action`. evaluations: `[B]` tokens read by the model in this search.
    tree: mctx's, with node embeddings reduced to their texts and outcomes.
    """

    root_candidates: proposals.Candidates
    action: Leaf
    weights: Leaf
    visits: Leaf
    qvalues: Leaf
    value: Leaf
    child: token_model.State | None
    evaluations: Leaf
    tree: mctx.Tree


def completed_qvalues(tree, node_index, config: SearchConfig):
    """sigma of the completed q-values of one node: of its k actions, and of its rest bucket.

    Unvisited actions and the rest get v_mix = (v + N * sum_b p_b q_b / sum_b p_b) / (1 + N) over
    visited b (Gumbel MuZero, appendix D, equation 33). Returns (`[k]`, scalar, v_mix).
    """
    visits = tree.children_visits[node_index]
    visited = visits > 0
    qvalues = tree.qvalues(node_index)
    probs = jnp.exp(tree.children_prior_logits[node_index])
    probs = jnp.where(visited, jnp.maximum(probs, jnp.finfo(probs.dtype).tiny), 0.0)
    weighted = jnp.sum(probs * jnp.where(visited, qvalues, 0.0))
    weighted = weighted / jnp.where(jnp.any(visited), jnp.sum(probs), 1.0)
    total = jnp.sum(visits)
    mixed = (tree.raw_values[node_index] + total * weighted) / (total + 1)
    completed = jnp.where(visited, qvalues, mixed)
    rest = mixed
    if config.rescale_values:
        low = jnp.minimum(jnp.min(completed), mixed)
        high = jnp.maximum(jnp.max(completed), mixed)
        span = jnp.maximum(high - low, 1e-8)
        completed, rest = (completed - low) / span, (mixed - low) / span
    scale = (config.maxvisit_init + jnp.max(visits)) * config.value_scale
    return scale * completed, scale * rest, mixed


def log_rest(log_probs: Float[Array, "*B k"]) -> Float[Array, "*B"]:
    """log(1 - sum p): the probability that k candidates leave to all others (at least 1e-9)."""
    return jnp.log(jnp.maximum(1.0 - jnp.sum(jnp.exp(log_probs), axis=-1), 1e-9))


def improved_policy(tree, node_index, config: SearchConfig) -> Float[Array, "k1"]:
    """softmax(log p + sigma(completed q)) over k actions and the rest (equation 11)."""
    log_probs = tree.children_prior_logits[node_index]
    sigma, sigma_rest, _ = completed_qvalues(tree, node_index, config)
    rest = log_rest(log_probs) + sigma_rest
    return jax.nn.softmax(jnp.append(log_probs + sigma, rest))


def _root_action(rng_key, tree, node_index, *, plan, config):
    """The best g + log p + sigma(q) of the actions whose turn it is (Sequential Halving)."""
    del rng_key
    visits = tree.children_visits[node_index]
    log_probs = tree.children_prior_logits[node_index]
    sigma, _, _ = completed_qvalues(tree, node_index, config)
    is_valid = tree.root_invalid_actions == 0
    turn = plan.considered_visits[jnp.sum(is_valid), jnp.sum(visits)]
    score = tree.extra_data.root_gumbel + (log_probs - jnp.max(log_probs)) + sigma
    return jnp.argmax(jnp.where(is_valid & (visits == turn), score, -jnp.inf)).astype(jnp.int32)


def _interior_action(rng_key, tree, node_index, depth, *, config):
    """argmax_a pi'(a) - N(a) / (1 + sum N) (equation 14), the rest in the normaliser."""
    del rng_key, depth
    weights = improved_policy(tree, node_index, config)[:-1]
    visits = tree.children_visits[node_index]
    score = weights - visits / (1 + jnp.sum(visits))
    is_present = tree.children_prior_logits[node_index] > -jnp.inf
    return jnp.argmax(jnp.where(is_present, score, -jnp.inf)).astype(jnp.int32)


def search(
    model: token_model.Dynamics,
    params,
    root: token_model.State,
    rng_key: Array,
    *,
    num_simulations: int,
    config: SearchConfig,
    verify: token_model.Verify | None = None,
) -> SearchResult:
    """`planned_search` in a tree of just this size."""
    plan = config.plan(num_simulations, capacity=num_simulations)
    return planned_search(model, params, root, rng_key, plan=plan, config=config, verify=verify)


def planned_search(
    model: token_model.Dynamics,
    params,
    root: token_model.State,
    rng_key: Array,
    *,
    plan: Plan,
    config: SearchConfig,
    verify: token_model.Verify | None = None,
) -> SearchResult:
    """Searches B texts at once. `root` needs no candidates; they are proposed here.

    What `plan` holds comes from there, everything else from `config`.

    A finished edge has reward r and discount 0: r is the oracle's outcome, or else the value head's
    estimate of the finished text (a text that ran out of room is a failure). Simulations that reach
    a finished text again only count visits.
    """
    if config.use_oracle and verify is None:
        raise ValueError(
            "use_oracle asks for a checker; got verify=None. Pass one, or switch it off."
        )
    noise_key, search_key = jax.random.split(rng_key)
    root = model.propose(params, root, noise_key if config.root_noise else None)
    plan = jax.tree.map(jnp.asarray, plan)
    value_on = plan.value_weight
    oracle = verify if config.use_oracle else None
    capacity = plan.considered_visits.shape[1]
    memory = model.memory
    root_node, slots = memory.plant(root, capacity)
    # While a simulation is traced, its number and the slots stand here for recurrent_fn to see.
    beside = types.SimpleNamespace(simulation=None, slots=slots)

    def recurrent_fn(params, rng_key, action, node):
        del rng_key
        was_finished = node.finished
        child = model.act(params, memory.recall(root, node, beside.slots), action)
        if oracle is not None:
            child = token_model.judge(child, oracle, asked=child.ended & ~was_finished)
            final = child.outcome
        else:
            final = jnp.where(child.ended, value_on * child.value, 0.0)
        child = model.propose(params, child)
        # Below a finished text there is only that text again.
        kept = jax.tree.map(
            lambda old, new: jax.vmap(jnp.where)(was_finished, old, new),
            node.candidates,
            child.candidates,
        )
        child = dataclasses.replace(
            child, candidates=kept, outcome=jnp.where(child.finished, final, 0.0)
        )
        output = mctx.RecurrentFnOutput(
            reward=jnp.where(child.finished & ~was_finished, final, 0.0),
            discount=jnp.where(child.finished, 0.0, 1.0),
            prior_logits=child.candidates.log_probs,
            value=jnp.where(child.finished, 0.0, value_on * child.value),
        )
        child, beside.slots = memory.store(root, node, child, beside.slots, beside.simulation)
        return output, child

    def simulate(start, capacity, one_simulation, loop_state):
        del capacity  # the tree has room for it

        def with_slots(simulation, carry):
            loop_state, beside.slots = carry
            beside.simulation = simulation
            return one_simulation(simulation, loop_state), beside.slots

        loop_state, beside.slots = jax.lax.fori_loop(
            start, plan.num_simulations, with_slots, (loop_state, beside.slots)
        )
        return loop_state

    tree = mctx.search(
        params=params,
        rng_key=search_key,
        root=mctx.RootFnOutput(
            prior_logits=root.candidates.log_probs,
            value=value_on * root.value,
            embedding=root_node,
        ),
        recurrent_fn=recurrent_fn,
        root_action_selection_fn=functools.partial(_root_action, plan=plan, config=config),
        interior_action_selection_fn=functools.partial(_interior_action, config=config),
        num_simulations=capacity,
        loop_fn=simulate,
        invalid_actions=1 - root.candidates.is_present.astype(jnp.int32),
        extra_data=mctx.GumbelMuZeroExtraData(root_gumbel=root.candidates.gumbel),
    )
    commit = functools.partial(memory.commit, params, root, slots=beside.slots)
    return _summarise(root, tree, config, commit)


def _summarise(root, tree, config, commit) -> SearchResult:
    rows = jnp.arange(root.length.shape[0])
    sigma, _, mixed = jax.vmap(lambda t: completed_qvalues(t, 0, config))(tree)
    visits = tree.children_visits[:, 0]
    score = root.candidates.gumbel + root.candidates.log_probs + sigma
    most_visited = visits == jnp.max(visits, axis=-1, keepdims=True)
    action = jnp.argmax(jnp.where(most_visited, score, -jnp.inf), axis=-1).astype(jnp.int32)
    child_index = tree.children_index[rows, 0, action]
    nodes = tree.embeddings
    # A node below a finished one is that text again: it cost nothing that a real search would pay.
    evaluations = jnp.where(tree.node_visits[:, 1:] > 0, nodes.evaluations[:, 1:], 0).sum(axis=1)
    child = commit(jax.tree.map(lambda x: x[rows, child_index], nodes))
    texts = {
        "tokens": nodes.tokens,
        "length": nodes.length,
        "finished": nodes.finished,
        "outcome": nodes.outcome,
    }
    return SearchResult(
        root_candidates=root.candidates,
        action=action,
        weights=jax.vmap(lambda t: improved_policy(t, 0, config))(tree),
        visits=visits,
        qvalues=jnp.where(visits > 0, jax.vmap(lambda t: t.qvalues(0))(tree), 0.0),
        value=mixed,
        child=child,
        evaluations=evaluations + root.evaluations,
        tree=tree.replace(embeddings=texts),
    )
