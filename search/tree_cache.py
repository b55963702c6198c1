"""Where the nodes of a search tree keep what the model remembers of their texts.

What all nodes share rides beside the tree (`search.engine`): one buffer of slots, of which node
n + 1 fills page n. A node holds the number of the slot of each of its tokens, so it costs bytes,
and a tree O(prefix + simulations), however deep it is and however long the prompt.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from models import cache as caches
from models import language_model
from search.state import State

Slots = Any  # arrays of leading axis B


@runtime_checkable
class Memory(Protocol):
    """How a state becomes a node of a tree, and a state again.

    A search has B roots and works on W nodes of each at once: `[B * W]`, those of a root together.
    """

    def plant(
        self, root: State, num_nodes: int, path_tokens: int | None = None
    ) -> tuple[State, Slots]:
        """The root as a node, and room for what so many more nodes add.

        path_tokens: how many tokens may follow the root in a state that is recalled. None: as many
            as the deepest node has.
        """
        ...

    def recall(self, root: State, node: State, slots: Slots) -> State:
        """The states of nodes: from here the model can read on."""
        ...

    def store(
        self, root: State, parent: State, child: State, slots: Slots, number: Int[Array, "B W"]
    ) -> tuple[State, Slots]:
        """The nodes of states, which are those of the nodes `parent` after one more action.

        number: of the new nodes, 1 or more; those beyond the room of the tree are not stored.
        """
        ...

    def commit(self, params, root: State, node: State, slots: Slots) -> State:
        """The states of children of the roots, which outlive the tree."""
        ...

    def keep(
        self,
        nodes: State,
        slots: Slots,
        order: Int[Array, "B N"],
        position: Int[Array, "B N"],
        num_tokens: Int[Array, "B"],
    ) -> tuple[State, Slots]:
        """Nodes `[B, N]` and slots below a child of the root, `num_tokens` after it.

        order: what is node n now was node `order[n]`; `nodes` are in the new order already.
        position: the inverse.
        """
        ...


@dataclasses.dataclass(frozen=True)
class NodeCaches:
    """Every node holds the whole cache of its text: the plain form of what `TreeCache` computes."""

    def plant(
        self, root: State, num_nodes: int, path_tokens: int | None = None
    ) -> tuple[State, Slots]:
        del num_nodes, path_tokens
        return root, ()

    def recall(self, root: State, node: State, slots: Slots) -> State:
        del root, slots
        return node

    def store(
        self, root: State, parent: State, child: State, slots: Slots, number: Int[Array, "B W"]
    ) -> tuple[State, Slots]:
        del root, parent, number
        return child, slots

    def commit(self, params, root: State, node: State, slots: Slots) -> State:
        del params, root, slots
        return node

    def keep(self, nodes: State, slots: Slots, order, position, num_tokens) -> tuple[State, Slots]:
        del order, position, num_tokens
        return nodes, slots


@dataclasses.dataclass(frozen=True)
class TreeCache:
    """The root's cache is the prefix of all nodes; their own tokens lie in the slots of the tree.

    In a node, `cache` is the table `[B, U]` of the slots of its tokens since the root (beyond them
    rubbish), and there are no logits: `hidden` says them again.

    page_tokens: the most that one action adds to a text.
    """

    model: language_model.LanguageModel
    page_tokens: int

    def plant(
        self, root: State, num_nodes: int, path_tokens: int | None = None
    ) -> tuple[State, Slots]:
        """Slots are `[B, num_nodes * page_tokens, ...]` per layer, as those of a path."""
        batch, max_tokens = root.tokens.shape
        num_slots = num_nodes * self.page_tokens
        slots = self.model.empty_paths(root.cache, 1, num_slots).layers
        width = min(max_tokens, num_slots) if path_tokens is None else path_tokens
        table = jnp.zeros((batch, width), jnp.int32)
        return dataclasses.replace(root, cache=table, logits=None), slots

    def recall(self, root: State, node: State, slots: Slots) -> State:
        """Gathers the path of each node: O(depth), the only copy that a simulation makes.

        (Rows with nothing to read, those of finished texts, get zeros for logits.)
        """
        batch, width = len(root.length), len(node.length) // len(root.length)
        path = _take(slots, node.cache.reshape(batch, -1))
        path_cache = caches.PathCache(
            prefix=root.cache,
            layers=jax.tree.map(lambda x: x.reshape(batch * width, -1, *x.shape[2:]), path),
            length=node.length - jnp.repeat(root.length, width),
        )
        logits = jnp.zeros((batch * width, root.logits.shape[1]), root.logits.dtype)
        return dataclasses.replace(node, cache=path_cache, logits=logits)

    def store(
        self, root: State, parent: State, child: State, slots: Slots, number: Int[Array, "B W"]
    ) -> tuple[State, Slots]:
        """Copies the new tokens of each path to the page of its node; node 1 has the first."""
        batch, width = number.shape
        first = ((number - 1) * self.page_tokens).reshape(-1, 1)
        room = parent.cache.shape[1]
        start = (parent.length - jnp.repeat(root.length, width))[:, None]
        offset = jnp.arange(room) - start
        is_new = (offset >= 0) & (offset < self.page_tokens)
        table = jnp.where(is_new, first + offset, parent.cache)
        # A path that has no room for a whole page has fewer tokens too.
        new = _take(child.cache.layers, jnp.minimum(start + jnp.arange(self.page_tokens), room - 1))
        page = (first + jnp.arange(self.page_tokens)).reshape(batch, -1)

        def write(buffer, x):
            x = x.reshape(batch, -1, *x.shape[2:])
            return buffer.at[jnp.arange(batch)[:, None], page].set(x, mode="drop")

        slots = jax.tree.map(write, slots, new)
        return dataclasses.replace(child, cache=table, logits=None), slots

    def commit(self, params, root: State, node: State, slots: Slots) -> State:
        """Folds the edge into the prefix; the model reads nothing."""
        edge = _take(slots, node.cache[:, : self.page_tokens])
        owns = jax.tree.map(lambda x: x[:, None], edge)
        cache = self.model.fold(root.cache, owns, node.length - root.length)
        logits = self.model.logits(params, node.hidden)
        return dataclasses.replace(node, cache=cache, logits=logits)

    def keep(self, nodes: State, slots: Slots, order, position, num_tokens) -> tuple[State, Slots]:
        """Moves the pages as the nodes move, and tells the tables; the root's page is free now."""
        size = self.page_tokens

        def move(x):
            pages = x.reshape(len(x), -1, size, *x.shape[2:])
            # Node n + 1 has page n. (A page that no node needs may be any.)
            return _take(pages, jnp.maximum(order[:, 1:] - 1, 0)).reshape(x.shape)

        table = nodes.cache  # [B, N, U]
        at = jnp.arange(table.shape[2]) + num_tokens[:, None]
        at = jnp.broadcast_to(at[:, None], table.shape)
        table = jnp.take_along_axis(table, at, axis=2, mode="clip")
        page = jax.vmap(lambda position, page: position[page])(position, table // size + 1) - 1
        table = jnp.maximum(page * size + table % size, 0)
        return dataclasses.replace(nodes, cache=table), jax.tree.map(move, slots)


def _take(layers, index: Int[Array, "B U"]):
    """Tokens `index` of buffers `[B, S, ...]`."""

    def one(x):
        at = index.reshape(*index.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, at, axis=1, mode="clip")

    return jax.tree.map(one, layers)
