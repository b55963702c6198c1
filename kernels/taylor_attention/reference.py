"""The formula, quadratic and plain: the oracle of every test, and the faster form for short texts.

numerator_t   = d^(t+1) phi(q_t) S_0 + sum_{s<=t} d^(t-s) w(x_ts) v_s
denominator_t = d^(t+1) phi(q_t) z_0 + sum_{s<=t} d^(t-s) w(x_ts)
x_ts = q_t . k_s;  S_0 and z_0 are the initial state, absent or of the first segment;  d = exp(log
decay) of the key head, 1 without one
"""

import jax
import jax.numpy as jnp

from kernels.taylor_attention import features
from kernels.taylor_attention import state as states
from kernels.taylor_attention.state import TaylorState


def taylor_attention(
    query_BTKGH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKE: jax.Array,
    *,
    coefficients: jax.Array,
    log_decay_K: jax.Array | None,
    runs: jax.Array | None,
    initial_state: TaylorState | None,
    return_state: bool,
    chunk_size: int | None,
    precision: jax.lax.Precision | None,
) -> tuple[tuple[jax.Array, jax.Array], TaylorState | None]:
    """The sums in O(T^2). Every implementation takes these arguments, prepared by `api`.

    Args:
      query_BTKGH: any floating dtype, as key and value; G query heads for each of K key heads.
      coefficients: [p+1] or [K, G, p+1], with the scale of the score in them (a_n scale^n).
      log_decay_K: <= 0 per token, or None.
      runs: int [B, T], non-decreasing from 0, or None; a token sees its own run only.
      initial_state: the state after the token before the first; it belongs to run 0.
      return_state: whether to return the state after the last token, of the last run only.
      chunk_size: None for the implementation's own choice.
      precision: of the products.

    Returns:
      (numerator [B,T,K,G,E], denominator [B,T,K,G]) and the state or None, in the dtype of the
      coefficients.
    """
    del chunk_size  # the whole sequence is one chunk
    dtype = coefficients.dtype
    query_BTKGH, key_BTKH, value_BTKE = (
        x.astype(dtype) for x in (query_BTKGH, key_BTKH, value_BTKE)
    )
    batch_size, length, num_kv_heads, _, head_dim = query_BTKGH.shape
    order = coefficients.shape[-1] - 1

    token = jnp.arange(length)
    age = token[:, None] - token[None, :]
    visible = age >= 0
    if runs is not None:
        visible = visible & (runs[:, :, None] == runs[:, None, :])
        visible = visible[:, None, None]
    score = jnp.einsum("btkgh,bskh->bkgts", query_BTKGH, key_BTKH, precision=precision)
    weight = features.polynomial(score, coefficients[..., None, None, :])
    if log_decay_K is not None:
        weight = weight * jnp.exp(log_decay_K[:, None, None, None] * jnp.maximum(age, 0))
    weight = jnp.where(visible, weight, 0)
    numerator = jnp.einsum("bkgts,bske->btkge", weight, value_BTKE, precision=precision)
    denominator = jnp.einsum("bkgts->btkg", weight)

    if initial_state is not None:
        query_BKGHT = query_BTKGH.transpose(0, 2, 3, 4, 1)
        past, past_weight = states.read(initial_state, query_BKGHT, coefficients, precision)
        past, past_weight = past.transpose(0, 3, 1, 2, 4), past_weight.transpose(0, 3, 1, 2)
        if log_decay_K is not None:
            decay = jnp.exp((token + 1)[:, None, None] * log_decay_K[:, None])  # [T, K, 1]
            past, past_weight = past * decay[..., None], past_weight * decay
        if runs is not None:
            sees = (runs == 0)[:, :, None, None]
            past, past_weight = past * sees[..., None], past_weight * sees
        numerator, denominator = numerator + past, denominator + past_weight
    if not return_state:
        return (numerator, denominator), None

    state = initial_state
    keep = jnp.ones((batch_size, length), bool)
    if runs is not None:
        keep = runs == runs[:, -1:]
    if state is None:
        state = states.empty_state(
            batch_size=batch_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            value_dim=value_BTKE.shape[-1],
            order=order,
            dtype=dtype,
        )
    elif runs is not None:
        state = states.forget(state, runs[:, -1] != 0)
    state = states.add(
        state,
        key_BTKH.transpose(0, 2, 3, 1),
        value_BTKE.transpose(0, 2, 1, 3),
        keep,
        order=order,
        log_decay_K=log_decay_K,
        precision=precision,
    )
    return (numerator, denominator), state
