"""The formula, quadratic and plain: the oracle of every test, and the faster form for short texts.

out_t = (phi(q_t) S_0 + sum_{s<=t} w(x_ts) v_s) / (phi(q_t) z_0 + sum_{s<=t} w(x_ts))
x_ts = scale q_t . k_s;  S_0 and z_0 are the initial state, absent or of the first segment
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
    runs: jax.Array | None,
    initial_state: TaylorState | None,
    return_state: bool,
    chunk_size: int,
    precision: jax.lax.Precision | None,
) -> tuple[jax.Array, TaylorState | None]:
    """Attention in O(T^2). Arguments as `api` prepares them: float32, grouped, the query scaled."""
    del chunk_size  # the whole sequence is one chunk
    batch_size, length, num_kv_heads, _, head_dim = query_BTKGH.shape
    order = coefficients.shape[-1] - 1

    visible = jnp.tril(jnp.ones((length, length), bool))
    if runs is not None:
        visible = visible & (runs[:, :, None] == runs[:, None, :])
        visible = visible[:, None, None]
    score = jnp.einsum("btkgh,bskh->bkgts", query_BTKGH, key_BTKH, precision=precision)
    weight = features.polynomial(score, coefficients[..., None, None, :])
    weight = jnp.where(visible, weight, 0)
    numerator = jnp.einsum("bkgts,bske->btkge", weight, value_BTKE, precision=precision)
    denominator = jnp.einsum("bkgts->btkg", weight)

    if initial_state is not None:
        query_BKGHT = query_BTKGH.transpose(0, 2, 3, 4, 1)
        past, past_weight = states.read(initial_state, query_BKGHT, coefficients, precision)
        past, past_weight = past.transpose(0, 3, 1, 2, 4), past_weight.transpose(0, 3, 1, 2)
        if runs is not None:
            sees = (runs == 0)[:, :, None, None]
            past, past_weight = past * sees[..., None], past_weight * sees
        numerator, denominator = numerator + past, denominator + past_weight
    output = numerator / denominator[..., None]
    if not return_state:
        return output, None

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
            dtype=key_BTKH.dtype,
        )
    elif runs is not None:
        state = states.forget(state, runs[:, -1] != 0)
    key_BKHT, value_BKTE = key_BTKH.transpose(0, 2, 3, 1), value_BTKE.transpose(0, 2, 1, 3)
    return output, states.add(state, key_BKHT, value_BKTE, keep, order, precision)
