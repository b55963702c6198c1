"""One sequence on several devices: each holds a stretch of it and is handed the state before."""

import jax
import jax.numpy as jnp

from kernels.taylor_attention import api
from kernels.taylor_attention import state as states
from kernels.taylor_attention.state import TaylorState


def state_before(
    key: jax.Array,
    value: jax.Array,
    axis_name: str,
    *,
    order: int,
    log_decay: jax.typing.ArrayLike | None = None,
) -> TaylorState:
    """The state of all keys on the devices before this one, for use inside `jax.shard_map`.

    Pass it as the `initial_state` of `taylor_attention` on the device's own stretch. Each device
    folds its keys; the folded states, which do not grow with the stretch, are gathered and added:
    S_i = sum_{j<i} d^(T (i-1-j)) fold_j.

    Args:
      key: [B, T, K, H], the stretch of this device; all have the same length T.
      value: [B, T, K, E].
      axis_name: the mesh axis that the sequence lies along.
      order: p.
      log_decay: [K], as in `taylor_attention`.
    """
    batch_size, length, num_kv_heads, head_dim = key.shape
    empty = states.empty_state(
        batch_size=batch_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        value_dim=value.shape[-1],
        order=order,
        dtype=jnp.promote_types(jnp.result_type(key, value), jnp.float32),
    )
    # Derived from a local array, so that shard_map sees that it differs between devices.
    empty = jax.tree.map(lambda x: jnp.zeros_like(key, x.dtype, shape=x.shape), empty)
    own = api.fold(empty, key, value, log_decay=log_decay)
    devices_ago = jax.lax.axis_index(axis_name) - 1 - jnp.arange(jax.lax.axis_size(axis_name))
    is_before = devices_ago >= 0
    rate_K = jnp.zeros(num_kv_heads) if log_decay is None else jnp.asarray(log_decay)
    factor = jnp.exp(length * jnp.maximum(devices_ago, 0)[:, None] * rate_K) * is_before[:, None]

    def combine(leaf):  # [B, K, ...]
        gathered = jax.lax.all_gather(leaf, axis_name)
        return jnp.einsum(
            "dk,dbk...->bk...",
            factor.astype(leaf.dtype),
            gathered,
            precision=jax.lax.Precision.HIGHEST,
        )

    return jax.tree.map(combine, own)
