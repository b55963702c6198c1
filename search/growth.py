"""A search under way: trees of many texts and all that is beside them, as one pytree."""

import jax.numpy as jnp
import mctx
from flax import struct
from jaxtyping import Array

from models.cache import Leaf
from search import token_model, tree_cache


@struct.dataclass
class Rollout:
    """The best text that a rollout ended. tokens: `[B, M]`. length: `[B]`. worth: `[B]`, -inf where
    there is none. action: `[B]` of the root, which it began with.
    """

    tokens: Leaf
    length: Leaf
    worth: Leaf
    action: Leaf


@struct.dataclass
class Growth:
    """A search under way.

    root: the state at the root, with its candidates. tree: mctx's, with states as embeddings.
    slots: what the nodes share, see `search.tree_cache`. num_nodes: `[B]` of the tree that are in
    use. rounds: `[B]` done of every tree. calls: of the model. evaluations: `[B]` tokens that the
    model read. visits_before: `[B, k]` of the root's actions, in the searches of earlier moves.
    rollout: the best one so far.
    """

    root: token_model.State
    tree: mctx.Tree
    slots: tree_cache.Slots
    num_nodes: Leaf
    rounds: Leaf
    calls: Leaf
    evaluations: Leaf
    visits_before: Leaf
    rollout: Rollout

    @property
    def worth(self) -> Array:
        """`[B, nodes]`: what each finished text is worth, -inf elsewhere."""
        nodes = self.tree.embeddings
        number = jnp.arange(nodes.finished.shape[1])
        is_end = nodes.finished & (number < self.num_nodes[:, None]) & (number > 0)
        return jnp.where(is_end, nodes.outcome, -jnp.inf)

    @property
    def best_worth(self) -> Array:
        """`[B]`: of the best text that was found, by the tree or by a rollout."""
        return jnp.maximum(jnp.max(self.worth, axis=1), self.rollout.worth)

    @classmethod
    def begin(cls, root, tree, slots, num_nodes, evaluations, visits_before) -> "Growth":
        """Before the first round."""
        zeros = jnp.zeros_like(root.length)
        return cls(
            root=root,
            tree=tree,
            slots=slots,
            num_nodes=num_nodes,
            rounds=zeros,
            calls=jnp.zeros((), jnp.int32),
            evaluations=evaluations,
            visits_before=visits_before,
            rollout=Rollout(
                tokens=jnp.zeros_like(root.tokens),
                length=zeros,
                worth=jnp.full(zeros.shape, -jnp.inf),
                action=zeros,
            ),
        )
