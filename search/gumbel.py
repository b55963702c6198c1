"""Gumbel MuZero (Danihelka et al., ICLR 2022) over k of all continuations: settings and formulas.

The root holds k candidates drawn with their Gumbel noise g, and the same g goes into the search,
so nothing is lost against a search over every continuation as long as k exceeds the considered
actions. What the k leave out is one more bucket, the *rest*: unvisited, so worth the mixed value.
(`search.engine` grows the trees.)
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from models.cache import Leaf
from search import token_model
from train.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """One search per move."""

    action: token_model.ActionConfig = token_model.ActionConfig()
    """What one action is."""
    algorithm: Literal["gumbel", "puct"] = "gumbel"
    """Gumbel MuZero, or MuZero's PUCT (no noise, the most visited action is played)."""
    mode: Literal["play", "plan"] = "play"
    """A search per move, of which one action is played; or one search per text, whose best
    finished text is the answer."""
    num_simulations: int | tuple[int, ...] = 50
    """Simulations per move; of several numbers, move i takes its own (the last one repeats)."""
    max_considered_actions: int | None = None
    """m, root actions that Sequential Halving starts with (m < k). None: a third of the
    simulations, at least 4 and less than k."""
    use_oracle: bool = False
    """A finished text is worth what the checker says. Without it, its value."""
    use_value: bool = True
    """Leaves are worth the estimate that `leaf_value` names. Without it, 0."""
    leaf_value: Literal["head", "prior", "rollout"] = "head"
    """What a leaf is worth: the value head's estimate; the probability of its last action; or a
    greedy rollout, judged by the oracle, or else by the value head at its end."""
    parallel_leaves: int = 1
    """W, leaves of one tree that a model call reads at most: Sequential Halving visits distinct
    root actions in a round. 1 is one after the other."""
    reuse_tree: bool = False
    """What a search found below the action that was played stays for the search of the next move,
    which adds its simulations. (Not with root_noise, which draws new candidates.)"""
    stop_at: float | None = None
    """A search ends early once it holds a finished text that is worth so much (1.0 with an oracle:
    solved), and plays towards it. None: never."""
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
        if self.algorithm == "puct" and (self.parallel_leaves > 1 or self.root_noise):
            raise ConfigError(
                "PUCT visits one leaf after the other and draws no noise; got "
                f"{self.parallel_leaves=}, {self.root_noise=}. Use algorithm=gumbel for these."
            )
        if self.mode == "plan" and self.reuse_tree:
            raise ConfigError(
                "a plan is one search, so there is no tree to reuse; got mode=plan and reuse_tree. "
                "Switch one of them off."
            )
        if self.parallel_leaves < 1:
            raise ConfigError(f"a call reads at least one leaf; got {self.parallel_leaves=}.")
        if self.reuse_tree and self.root_noise:
            raise ConfigError(
                "root noise draws new candidates, which the old tree does not have; got reuse_tree "
                "and root_noise. Switch one of them off."
            )
        if self.leaf_value == "rollout" and not (self.use_oracle or self.use_value):
            raise ConfigError(
                "a rollout is judged by the oracle or by the value head; got neither use_oracle "
                "nor use_value. Switch one on."
            )
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
        two, at least 64, so that searches of similar sizes share one program; twice that where the
        tree of the move before stays.
        """
        sizes = self.num_simulations
        largest = sizes if isinstance(sizes, int) else max(sizes)
        return max(64, 1 << (largest - 1).bit_length()) * (2 if self.reuse_tree else 1)

    @property
    def compiled(self) -> "SearchConfig":
        """The settings that a program is compiled for: all but those that a `Plan` holds."""
        return dataclasses.replace(
            self,
            num_simulations=self.capacity,
            max_considered_actions=None,
            use_value=True,
            stop_at=None,
            reuse_tree=False,
        )

    def plan(self, num_simulations: int, *, capacity: int) -> "Plan":
        """One search of so many simulations in a tree that has room for `capacity`."""
        shape = (self.action.num_candidates + 1, capacity)
        turns, leaves = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for num_valid in range(1, len(turns)):
            if self.algorithm == "puct":
                turns[num_valid, :num_simulations], leaves[num_valid, :num_simulations] = 0, 1
                continue
            considered = min(self.considered_with(num_simulations), num_valid)
            for i, (turn, count) in enumerate(
                rounds(considered, num_simulations, self.parallel_leaves)
            ):
                turns[num_valid, i], leaves[num_valid, i] = turn, count
        return Plan(
            num_simulations=np.int32(num_simulations),
            value_weight=np.float32(self.use_value),
            stop_at=np.float32(np.inf if self.stop_at is None else self.stop_at),
            turns=turns,
            leaves=leaves,
        )


@struct.dataclass
class Plan:
    """The settings of a search that are data, so that one compiled program serves many sizes.

    num_simulations: at most the capacity. value_weight: 1 with `use_value`, else 0. stop_at: what a
    finished text must be worth to end the search, inf for never. turns, leaves:
    `[k + 1, capacity]`: with n valid root actions, round i visits the `leaves[n, i]` best of those
    that were visited `turns[n, i]` times; 0 leaves after the last round.
    """

    num_simulations: Leaf
    value_weight: Leaf
    stop_at: Leaf
    turns: Leaf
    leaves: Leaf


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


def rounds(num_considered: int, num_simulations: int, width: int) -> list[tuple[int, int]]:
    """Sequential Halving in rounds of up to `width` simulations: (visits so far, simulations).

    Simulations that follow one another and choose among equally often visited actions choose
    distinct ones. As long as values do not change the order of those that wait, a round makes the
    visits that its simulations make one after the other.
    """
    found: list[tuple[int, int]] = []
    for turn in sequential_halving(num_considered, num_simulations):
        if found and found[-1][0] == turn and found[-1][1] < width:
            found[-1] = (turn, found[-1][1] + 1)
        else:
            found.append((turn, 1))
    return found


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


def root_scores(tree, config: SearchConfig) -> Float[Array, "k"]:
    """g + log p + sigma(q) of the root's actions: what Sequential Halving orders them by."""
    log_probs = tree.children_prior_logits[0]
    sigma, _, _ = completed_qvalues(tree, 0, config)
    return tree.extra_data.root_gumbel + (log_probs - jnp.max(log_probs)) + sigma


def puct_action(tree, node_index):
    """argmax_a q + c(s) p_a sqrt(N) / (1 + N_a), q stretched to [0, 1] (MuZero, appendix B)."""
    absent = tree.children_prior_logits[node_index] == -jnp.inf
    tree = tree.replace(root_invalid_actions=absent.astype(jnp.int32))
    # At depth 0 mctx leaves out the invalid actions; its key breaks ties.
    return mctx.muzero_action_selection(jax.random.key(0), tree, node_index, 0)


def interior_action(tree, node_index, config: SearchConfig):
    """argmax_a pi'(a) - N(a) / (1 + sum N) (equation 14), the rest in the normaliser."""
    weights = improved_policy(tree, node_index, config)[:-1]
    visits = tree.children_visits[node_index]
    score = weights - visits / (1 + jnp.sum(visits))
    is_present = tree.children_prior_logits[node_index] > -jnp.inf
    return jnp.argmax(jnp.where(is_present, score, -jnp.inf)).astype(jnp.int32)
