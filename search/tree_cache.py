"""Where the nodes of a search tree keep what the model remembers of their texts.

mctx shows a recurrent_fn one node and neither the tree nor the number of the simulation. What all
nodes share rides beside the tree through its public `loop_fn` (search.gumbel): one buffer of slots,
of which simulation i fills page i. A node holds the number of the slot of each of its tokens, so it
costs bytes, and a tree O(prefix + simulations), however deep it is and however long the prompt.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from models import cache as caches
from models import language_model
from search.state import State

Slots = Any  # what rides beside the tree: arrays of leading axis B


@runtime_checkable
class Memory(Protocol):
    """How a state becomes a node of a tree, and a state again."""

    def plant(self, root: State, num_simulations: int) -> tuple[State, Slots]:
        """The root as a node, and room for what so many simulations find."""
        ...

    def recall(self, root: State, node: State, slots: Slots) -> State:
        """The state of a node: from here the model can read on."""
        ...

    def store(
        self, root: State, parent: State, child: State, slots: Slots, simulation: Int[Array, ""]
    ) -> tuple[State, Slots]:
        """The node of a state, which is that of the node `parent` after one more action."""
        ...

    def commit(self, params, root: State, node: State, slots: Slots) -> State:
        """The state of a child of the root, which outlives the tree."""
        ...


@dataclasses.dataclass(frozen=True)
class NodeCaches:
    """Every node holds the whole cache of its text: the plain form of what `TreeCache` computes."""

    def plant(self, root: State, num_simulations: int) -> tuple[State, Slots]:
        del num_simulations
        return root, ()

    def recall(self, root: State, node: State, slots: Slots) -> State:
        del root, slots
        return node

    def store(
        self, root: State, parent: State, child: State, slots: Slots, simulation: Int[Array, ""]
    ) -> tuple[State, Slots]:
        del root, parent, simulation
        return child, slots

    def commit(self, params, root: State, node: State, slots: Slots) -> State:
        del params, root, slots
        return node


@dataclasses.dataclass(frozen=True)
class TreeCache:
    """The root's cache is the prefix of all nodes; their own tokens lie in the slots of the tree.

    In a node, `cache` is the table `[B, U]` of the slots of its tokens since the root (beyond them
    rubbish), and there are no logits: `hidden` says them again.

    page_tokens: the most that one action adds to a text.
    """

    model: language_model.LanguageModel
    page_tokens: int

    def plant(self, root: State, num_simulations: int) -> tuple[State, Slots]:
        """Slots are `[B, num_simulations * page_tokens, ...]` per layer, as those of a path."""
        batch, max_tokens = root.tokens.shape
        num_slots = num_simulations * self.page_tokens
        slots = self.model.empty_paths(root.cache, 1, num_slots).layers
        table = jnp.zeros((batch, min(max_tokens, num_slots)), jnp.int32)
        return dataclasses.replace(root, cache=table, logits=None), slots

    def recall(self, root: State, node: State, slots: Slots) -> State:
        """Gathers the path of each node: O(depth), the only copy that a simulation makes.

        (Rows with nothing to read, those of finished texts, get zeros for logits.)
        """
        path = caches.PathCache(
            prefix=root.cache,
            layers=_take(slots, node.cache),
            length=node.length - root.length,
        )
        return dataclasses.replace(node, cache=path, logits=jnp.zeros_like(root.logits))

    def store(
        self, root: State, parent: State, child: State, slots: Slots, simulation: Int[Array, ""]
    ) -> tuple[State, Slots]:
        """Copies the new tokens of the path to the page of this simulation."""
        page = simulation * self.page_tokens
        capacity = parent.cache.shape[1]
        start = (parent.length - root.length)[:, None]
        offset = jnp.arange(capacity) - start
        is_new = (offset >= 0) & (offset < self.page_tokens)
        table = jnp.where(is_new, page + offset, parent.cache)
        # A path that has no room for a whole page has fewer tokens too.
        where = jnp.minimum(start + jnp.arange(self.page_tokens), capacity - 1)
        new = _take(child.cache.layers, where)
        write = jax.lax.dynamic_update_slice_in_dim
        slots = jax.tree.map(lambda buffer, x: write(buffer, x, page, 1), slots, new)
        return dataclasses.replace(child, cache=table, logits=None), slots

    def commit(self, params, root: State, node: State, slots: Slots) -> State:
        """Folds the edge into the prefix; the model reads nothing."""
        edge = _take(slots, node.cache[:, : self.page_tokens])
        owns = jax.tree.map(lambda x: x[:, None], edge)
        cache = self.model.fold(root.cache, owns, node.length - root.length)
        logits = self.model.logits(params, node.hidden)
        return dataclasses.replace(node, cache=cache, logits=logits)


def _take(layers, index: Int[Array, "B U"]):
    """Tokens `index` of buffers `[B, S, ...]`."""

    def one(x):
        at = index.reshape(*index.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, at, axis=1, mode="clip")

    return jax.tree.map(one, layers)
