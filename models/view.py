"""What the new tokens see: the same in every layer of a model."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

from models.cache import Leaf


@struct.dataclass
class View:
    """Where the T new tokens of R lanes stand among all others.

    The age of a key is the number of tokens from it to the query, 0 for the query's own; a negative
    age hides it (it comes later, is another branch's or another document's, or holds nothing).
    Windows, decay and convolutions go by age, so the slots of a lane may be in any order.

    positions: `[B, R, T]` tokens before each new one in its text.
    age: `[#B, #R, T, U]` of the keys of the own lane.
    prefix_length: `[B]` tokens in the prefix; None without one.
    path_length: `[B, W]` tokens in the path between the prefix and the lanes, the same for R / W
        lanes that follow one another; None without paths.
    filled: slot of the lanes' buffers that takes the first new token, of all lanes or `[B, R]`;
        None: lanes begin here.
    segment_ids: `[B, T]` of packed documents, where R = 1 and there is no prefix.
    """

    positions: Leaf
    age: Leaf
    prefix_length: Leaf = None
    path_length: Leaf = None
    filled: Leaf = None
    segment_ids: Leaf = None

    def age_in_prefix(self, position: Int[Array, "#B S"]) -> Int[Array, "B R T S"]:
        """Ages of the keys at these positions of the prefix, hidden where it has no such token."""
        exists = (position >= 0) & (position < self.prefix_length[:, None])
        age = self.positions[..., None] - position[:, None, None]
        return jnp.where(exists[:, None, None], age, -1)

    def age_of_latest(self, count: int) -> Int[Array, "B R T count"]:
        """Ages of the last `count` tokens of the prefix, oldest first."""
        return self.age_in_prefix(self.prefix_length[:, None] - count + jnp.arange(count))

    def age_in_path(self, capacity: int) -> Int[Array, "B R T capacity"]:
        """Ages of the tokens of the path before each lane, hidden where it has no such token."""
        token = jnp.arange(capacity)
        age = self.positions[..., None] - self.prefix_length[:, None, None, None] - token
        exists = token < self._of_lanes(self.path_length)[..., None]
        return jnp.where(exists[:, :, None], age, -1)

    def age_before_lanes(self, count: int) -> Int[Array, "B R T count"]:
        """Ages of the last `count` tokens of prefix and path together, oldest first."""
        if self.path_length is None:
            return self.age_of_latest(count)
        first = self.prefix_length[:, None] + self._of_lanes(self.path_length) - count
        position = (first[..., None] + jnp.arange(count))[:, :, None]
        return jnp.where(position >= 0, self.positions[..., None] - position, -1)

    def _of_lanes(self, x: Int[Array, "B W"]) -> Int[Array, "B R"]:
        return jnp.repeat(x, self.positions.shape[1] // x.shape[1], axis=1)


def age_in_lane(filled: Int[Array, "#B #R"], length: int, capacity: int) -> Int[Array, "#B #R T U"]:
    """Ages of the keys in lanes that hold `filled` tokens and then the T new ones, in order."""
    new = filled[..., None, None] + jnp.arange(length)[:, None]
    return jnp.maximum(new - jnp.arange(capacity), -1)


def causal_age(length: int) -> Int[Array, "1 1 T T"]:
    """Ages within one stretch of tokens: 0 on the diagonal, later keys hidden."""
    token = jnp.arange(length)
    return jnp.maximum(token[:, None] - token, -1)[None, None]
