"""TaylorState: everything that past keys and values can still say, in a fixed number of floats.

    S = sum_j phi_key(k_j) v_j^T,   z = sum_j phi_key(k_j);   sum_j w(q . k_j) v_j = phi_query(q) S

Here and in `xla.py` heads are grouped (K key heads of G = N / K query heads) and tokens come last.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from kernels.taylor_attention import features

# An array, or what stands for one inside JAX's transformations (a shape, a sharding, None).
Leaf = typing.Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TaylorState:
    """Sums over the keys j seen so far; free of coefficients and scale, so any query may read them.

    Attributes:
      numerator: [B, K, P, E], sum_j phi_key(k_j) v_j.
      denominator: [B, K, P], sum_j phi_key(k_j); its first entry (degree 0) counts the keys.
    """

    numerator: Leaf
    denominator: Leaf


def empty_state(
    *,
    batch_size: int,
    num_kv_heads: int,
    head_dim: int,
    value_dim: int,
    order: int,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> TaylorState:
    """The state before the first key: zeros."""
    shape = (batch_size, num_kv_heads, features.num_features(head_dim, order))
    return TaylorState(
        numerator=jnp.zeros((*shape, value_dim), dtype), denominator=jnp.zeros(shape, dtype)
    )


def read(
    state: TaylorState,
    query_BKGHT: jax.Array,
    coefficients: jax.Array,
    precision: jax.lax.Precision | None,
) -> tuple[jax.Array, jax.Array]:
    """sum_j w(q . k_j) v_j [B,K,G,T,E] and sum_j w(q . k_j) [B,K,G,T]; the query is scaled."""
    phi = features.query_features(query_BKGHT, coefficients)
    numerator = jnp.einsum("bkgpt,bkpe->bkgte", phi, state.numerator, precision=precision)
    denominator = jnp.einsum("bkgpt,bkp->bkgt", phi, state.denominator, precision=precision)
    return numerator, denominator


def add(
    state: TaylorState,
    key_BKHT: jax.Array,
    value_BKTE: jax.Array,
    keep_BT: jax.Array,
    *,
    order: int,
    log_decay_K: jax.Array | None,
    precision: jax.lax.Precision | None,
) -> TaylorState:
    """The state with more keys in it; those with keep = 0 add nothing and age nothing."""
    phi = features.key_features(key_BKHT, order)
    before, weight = ages(keep_BT, log_decay_K, phi.dtype)
    values = value_BKTE * weight[..., None]
    numerator = jnp.einsum("bkpt,bkte->bkpe", phi, values, precision=precision)
    weight = jnp.broadcast_to(weight, values.shape[:-1])
    denominator = jnp.einsum("bkpt,bkt->bkp", phi, weight, precision=precision)
    return TaylorState(
        numerator=state.numerator * before[..., None, None] + numerator,
        denominator=state.denominator * before[..., None] + denominator,
    )


def ages(
    keep_BT: jax.Array, log_decay_K: jax.Array | None, dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """What is left after T tokens of the state before them [B,K] and of each of them [B,K,T].

    Without decay K is 1: the factors are 1 and keep.
    """
    keep = keep_BT.astype(dtype)[:, None]  # [B, 1, T]
    if log_decay_K is None:
        return jnp.ones((keep.shape[0], 1), dtype), keep
    seen = jnp.cumsum(keep, axis=-1)
    weight = keep * jnp.exp(log_decay_K[:, None] * (seen[..., -1:] - seen))
    return jnp.exp(log_decay_K * seen[..., -1]), weight


def forget(state: TaylorState, rows: jax.Array) -> TaylorState:
    """Empties the state of the rows [B] that are True."""
    return jax.tree.map(
        lambda leaf: jnp.where(rows.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf), state
    )
