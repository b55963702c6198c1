"""Linear time in plain JAX: the quadratic form inside a chunk, the state across chunks.

    out_t = (phi(q_t) S + sum_{s<=t, s in the chunk} w(x_ts) v_s) / (the same with v = 1)

S is what the chunks before have left. A scan over chunks keeps one state alive; its body is
rematerialised in the backward pass, which therefore stores one state per chunk and no feature.
"""

import jax
import jax.numpy as jnp

from kernels.taylor_attention import features
from kernels.taylor_attention import state as states
from kernels.taylor_attention.state import TaylorState

CHUNK_SIZE = 128


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
    """The sums in O(T); arguments and results as in `reference.taylor_attention`."""
    dtype = coefficients.dtype
    query_BTKGH, key_BTKH, value_BTKE = (
        x.astype(dtype) for x in (query_BTKGH, key_BTKH, value_BTKE)
    )
    chunk_size = min(chunk_size or CHUNK_SIZE, query_BTKGH.shape[1])
    batch_size, length, num_kv_heads, num_groups, head_dim = query_BTKGH.shape
    value_dim = value_BTKE.shape[-1]
    order = coefficients.shape[-1] - 1
    if initial_state is None:
        initial_state = states.empty_state(
            batch_size=batch_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            order=order,
            dtype=dtype,
        )
    token = jnp.arange(chunk_size)
    age = token[:, None] - token[None, :]
    causal = age >= 0

    def one_chunk(carry, chunk):
        state, run = carry  # run [B]: the segment whose keys are in the state
        query, key, value, keep, chunk_runs = chunk
        score = jnp.einsum("bkght,bkhs->bkgts", query, key, precision=precision)
        weight = features.polynomial(score, coefficients[..., None, None, :])
        past, past_weight = states.read(state, query, coefficients, precision)
        if log_decay_K is not None:
            weight = weight * jnp.exp(log_decay_K[:, None, None, None] * jnp.maximum(age, 0))
            decay = jnp.exp(log_decay_K[:, None] * (token + 1))[:, None]  # [K, 1, C]
            past, past_weight = past * decay[..., None], past_weight * decay
        visible = causal
        if chunk_runs is not None:
            visible = causal & (chunk_runs[:, :, None] == chunk_runs[:, None, :])
            visible = visible[:, None, None]
            sees_state = (chunk_runs == run[:, None])[:, None, None]
            past, past_weight = past * sees_state[..., None], past_weight * sees_state
            run_after = chunk_runs[:, -1]
            keep = keep & (chunk_runs == run_after[:, None])
            state, run = states.forget(state, run_after != run), run_after
        weight = jnp.where(visible, weight, 0)
        numerator = past + jnp.einsum("bkgts,bkse->bkgte", weight, value, precision=precision)
        denominator = past_weight + weight.sum(-1)
        state = states.add(
            state, key, value, keep, order=order, log_decay_K=log_decay_K, precision=precision
        )
        return (state, run), (numerator, denominator)

    keep = jnp.ones((batch_size, length), bool)
    chunks = (
        _chunks(query_BTKGH, chunk_size).transpose(1, 0, 3, 4, 5, 2),
        _chunks(key_BTKH, chunk_size).transpose(1, 0, 3, 4, 2),
        _chunks(value_BTKE, chunk_size).transpose(1, 0, 3, 2, 4),
        _chunks(keep, chunk_size).transpose(1, 0, 2),
        None if runs is None else _chunks(runs, chunk_size, mode="edge").transpose(1, 0, 2),
    )
    carry = (initial_state, jnp.zeros(batch_size, jnp.int32))
    body = jax.checkpoint(one_chunk, prevent_cse=False)
    (state, _), (numerator, denominator) = jax.lax.scan(body, carry, chunks)

    numerator = numerator.transpose(1, 0, 4, 2, 3, 5)
    numerator = numerator.reshape(batch_size, -1, num_kv_heads, num_groups, value_dim)[:, :length]
    denominator = denominator.transpose(1, 0, 4, 2, 3)
    denominator = denominator.reshape(batch_size, -1, num_kv_heads, num_groups)[:, :length]
    return (numerator, denominator), state if return_state else None


def fold(
    state: TaylorState,
    key_BTKH: jax.Array,
    value_BTKE: jax.Array,
    keep_BT: jax.Array,
    *,
    order: int,
    log_decay_K: jax.Array | None,
    chunk_size: int | None,
    precision: jax.lax.Precision | None,
) -> TaylorState:
    """Adds keys to the state chunk by chunk, so that no more than a chunk of features exists."""
    chunk_size = min(chunk_size or CHUNK_SIZE, key_BTKH.shape[1])

    def one_chunk(state, chunk):
        key, value, keep = chunk
        state = states.add(
            state, key, value, keep, order=order, log_decay_K=log_decay_K, precision=precision
        )
        return state, None

    chunks = (
        _chunks(key_BTKH, chunk_size).transpose(1, 0, 3, 4, 2),
        _chunks(value_BTKE, chunk_size).transpose(1, 0, 3, 2, 4),
        _chunks(keep_BT, chunk_size).transpose(1, 0, 2),
    )
    state, _ = jax.lax.scan(jax.checkpoint(one_chunk, prevent_cse=False), state, chunks)
    return state


def _chunks(x: jax.Array, chunk_size: int, mode: str = "constant") -> jax.Array:
    """[B, T, ...] -> [B, ceil(T/C), C, ...], padded at the end with zeros (or the last entry)."""
    padding = [(0, 0), (0, -x.shape[1] % chunk_size)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding, mode=mode)
    return x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])
