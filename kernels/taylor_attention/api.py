"""The public functions: validation, grouping of heads, choice of implementation.

Letters: B batch, T tokens, N query heads, K key/value heads (N a multiple of K), H width of a query
or key, E width of a value, P = C(H+p, p) features at order p, C chunk.
"""

import math
import types
import typing

import jax
import jax.numpy as jnp

from kernels.taylor_attention import features, reference, xla
from kernels.taylor_attention import state as states
from kernels.taylor_attention.state import TaylorState

# Each has the signature of `reference.taylor_attention`. One that is named runs or raises.
IMPLEMENTATIONS: typing.Mapping[str, typing.Callable] = types.MappingProxyType(
    {"reference": reference.taylor_attention, "xla": xla.taylor_attention}
)
DEFAULT_CHUNK_SIZE = 128


def taylor_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    coefficients: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None = None,
    segment_ids: jax.Array | None = None,
    initial_state: TaylorState | None = None,
    return_state: bool = False,
    chunk_size: int | None = None,
    implementation: str | None = None,
) -> typing.Any:
    """Causal attention with exp replaced by a polynomial w of the scaled score.

    out_t = sum_{s<=t} w(x_ts) v_s / sum_{s<=t} w(x_ts),   x_ts = scale q_t . k_s
    w(x) = sum_n coefficients[n] x^n      Source: Based, arXiv:2402.18668 (order 2).

    Args:
      query: [B, T, N, H].
      key: [B, T, K, H]; query head n reads key head n // (N / K).
      value: [B, T, K, E].
      coefficients: [p+1] or one row per query head [N, p+1], p <= 8; from `taylor_coefficients` or
        `minimax_coefficients`, or learned. Nothing here keeps w positive: see `positive_radius`.
      scale: a scalar; 1/sqrt(H) if None.
      segment_ids: int [B, T]. A token sees only its own run of equal neighbouring ids (a document).
      initial_state: keys seen before the first token; they belong to the first segment.
      return_state: also return the state after the last token (of the last segment only).
      chunk_size: tokens treated at once by the linear forms; changes the time, not the result.
      implementation: "reference" O(T^2) or "xla" O(T); None takes the one with fewer operations
        (`crossover_length`). A named one runs or raises; there is no fallback.

    Returns:
      [B, T, N, E] in the value's dtype; with return_state also a TaylorState (float32).

    Error: sums run in float32; agreement between implementations is fixed in tests/kernels. Against
      softmax attention the error is that of w against exp on the scores that occur.
    """
    _check(query, key, value, coefficients, segment_ids, initial_state)
    length = query.shape[1]
    chunk_size = _checked_chunk_size(chunk_size, length)
    if implementation is None:
        num_coefficients = jnp.shape(coefficients)[-1]
        crossover = crossover_length(query.shape[-1], value.shape[-1], num_coefficients - 1)
        implementation = "reference" if length <= crossover else "xla"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {sorted(IMPLEMENTATIONS)} or None; "
            f"got {implementation!r}."
        )
    grouped_query, key_, value_, grouped_coefficients, precision = _prepare(
        query, key, value, coefficients, scale
    )
    if initial_state is not None:
        initial_state = jax.tree.map(lambda x: x.astype(key_.dtype), initial_state)
    output, state = IMPLEMENTATIONS[implementation](
        grouped_query,
        key_,
        value_,
        coefficients=grouped_coefficients,
        runs=None if segment_ids is None else _runs(segment_ids),
        initial_state=initial_state,
        return_state=return_state,
        chunk_size=chunk_size,
        precision=precision,
    )
    output = output.reshape(*query.shape[:-1], value.shape[-1]).astype(value.dtype)
    return (output, state) if return_state else output


def taylor_attention_step(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: TaylorState,
    *,
    coefficients: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None = None,
) -> tuple[jax.Array, TaylorState]:
    """One token: adds its key to the state, then reads it. Constant time and memory per token.

    Args:
      query: [B, N, H]; key [B, K, H]; value [B, K, E]; the rest as in `taylor_attention`.

    Returns:
      ([B, N, E] in the value's dtype, the state after this token).
    """
    if query.ndim != 3 or key.ndim != 3 or value.ndim != 3:
        raise ValueError(
            "a step takes one token: query [B,N,H], key [B,K,H], value [B,K,E]; got "
            f"{query.shape}, {key.shape}, {value.shape}. For more use taylor_attention."
        )
    query, key, value = query[:, None], key[:, None], value[:, None]
    _check(query, key, value, coefficients, None, state)
    grouped_query, key_, value_, coefficients_, precision = _prepare(
        query, key, value, coefficients, scale
    )
    order = coefficients_.shape[-1] - 1
    keep = jnp.ones(key.shape[:2], bool)
    key_BKHT, value_BKTE = key_.transpose(0, 2, 3, 1), value_.transpose(0, 2, 1, 3)
    state = states.add(state, key_BKHT, value_BKTE, keep, order, precision)
    numerator, denominator = states.read(
        state, grouped_query.transpose(0, 2, 3, 4, 1), coefficients_, precision
    )
    output = (numerator / denominator[..., None]).reshape(*query.shape[:1], *query.shape[2:3], -1)
    return output.astype(value.dtype), state


def query_state(
    query: jax.Array,
    state: TaylorState,
    *,
    coefficients: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The unnormalised parts of attention over the keys in a state, for a shared normaliser.

    Add them to sum_s w(x_ts) v_s and sum_s w(x_ts) over explicit keys (`polynomial`), then divide.

    Args:
      query: [B, T, N, H]; no order among the T: each sees the whole state.

    Returns:
      numerator [B, T, N, E] and denominator [B, T, N], in the state's dtype.
    """
    batch_size, length, num_heads, head_dim = query.shape
    _check_coefficients(coefficients, num_heads)
    _check_state(
        state,
        batch_size,
        state.numerator.shape[1],
        head_dim,
        state.numerator.shape[-1],
        coefficients,
    )
    num_kv_heads = state.numerator.shape[1]
    _check_heads(num_heads, num_kv_heads)
    dtype = state.numerator.dtype
    grouped_query = _scaled_and_grouped(query, num_kv_heads, scale, dtype).transpose(0, 2, 3, 4, 1)
    numerator, denominator = states.read(
        state,
        grouped_query,
        _grouped_coefficients(coefficients, num_kv_heads, dtype),
        _precision(query.dtype),
    )
    numerator = numerator.transpose(0, 3, 1, 2, 4).reshape(batch_size, length, num_heads, -1)
    denominator = denominator.transpose(0, 3, 1, 2).reshape(batch_size, length, num_heads)
    return numerator, denominator


def fold(
    state: TaylorState,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    chunk_size: int | None = None,
) -> TaylorState:
    """The state with more keys in it.

    Args:
      key: [B, T, K, H].
      value: [B, T, K, E].
      mask: [B, T], 1 = the key is added; all of them if None. Ragged rows end in zeros.
    """
    if key.ndim != 4 or value.ndim != 4 or key.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"fold takes key [B,T,K,H] and value [B,T,K,E]; got {key.shape} and {value.shape}."
        )
    if mask is not None and mask.shape != key.shape[:2]:
        raise ValueError(f"the mask must be [B,T] = {key.shape[:2]}; got {mask.shape}.")
    order = _order_of(state, key.shape[-1])
    dtype = state.numerator.dtype
    return xla.fold(
        state,
        key.astype(dtype),
        value.astype(dtype),
        jnp.ones(key.shape[:2], bool) if mask is None else mask.astype(bool),
        order=order,
        chunk_size=_checked_chunk_size(chunk_size, key.shape[1]),
        precision=_precision(key.dtype),
    )


def crossover_length(
    head_dim: int, value_dim: int, order: int, chunk_size: int = DEFAULT_CHUNK_SIZE
) -> float:
    """T* = C + (4P(E+1) + 2P) / (H + E + p): the length from which the linear form costs less.

    Causal operations per head: T^2 (H+E+p) for the quadratic form, T [4P(E+1) + 2P + C(H+E+p)] for
    the linear one. The backward pass is 2.5 times the forward pass in both.
    """
    num_features = features.num_features(head_dim, order)
    linear = 4 * num_features * (value_dim + 1) + 2 * num_features
    return chunk_size + linear / (head_dim + value_dim + order)


def _prepare(query, key, value, coefficients, scale):
    """Float32 (or wider) arrays, the query scaled and grouped; the precision of the products."""
    dtype = jnp.promote_types(jnp.result_type(query, key, value), jnp.float32)
    num_kv_heads = key.shape[2]
    return (
        _scaled_and_grouped(query, num_kv_heads, scale, dtype),
        key.astype(dtype),
        value.astype(dtype),
        _grouped_coefficients(coefficients, num_kv_heads, dtype),
        _precision(jnp.result_type(query, key, value)),
    )


def _scaled_and_grouped(query, num_kv_heads, scale, dtype):
    batch_size, length, num_heads, head_dim = query.shape
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    query = query.astype(dtype) * jnp.asarray(scale, dtype)
    return query.reshape(batch_size, length, num_kv_heads, num_heads // num_kv_heads, head_dim)


def _grouped_coefficients(coefficients, num_kv_heads, dtype):
    coefficients = jnp.asarray(coefficients, dtype)
    if coefficients.ndim == 1:
        return coefficients
    return coefficients.reshape(num_kv_heads, -1, coefficients.shape[-1])


def _precision(dtype) -> jax.lax.Precision | None:
    """Exact products for float32 input; what the hardware does fastest for narrower input."""
    return jax.lax.Precision.HIGHEST if jnp.finfo(dtype).bits >= 32 else None


def _runs(segment_ids: jax.Array) -> jax.Array:
    """[B, T] -> [B, T]: 0 for the first run of equal ids, 1 for the next, and so on."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


def _checked_chunk_size(chunk_size: int | None, length: int) -> int:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token; got {chunk_size=}.")
    return min(DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size, length)


def _check(query, key, value, coefficients, segment_ids, initial_state):
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4 or query.shape[1] < 1:
        raise ValueError(
            "taylor_attention takes query [B,T,N,H], key [B,T,K,H], value [B,T,K,E] with T >= 1; "
            f"got {query.shape}, {key.shape}, {value.shape}."
        )
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3]:
        raise ValueError(
            "query, key and value must agree in [B,T], key and value in [B,T,K]; got "
            f"{query.shape}, {key.shape}, {value.shape}."
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query and key must have one width H; got {query.shape[-1]} and {key.shape[-1]}."
        )
    for name, array in (("query", query), ("key", key), ("value", value)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point; got {array.dtype}. Cast it first.")
    _check_heads(query.shape[2], key.shape[2])
    _check_coefficients(coefficients, query.shape[2])
    if segment_ids is not None and segment_ids.shape != query.shape[:2]:
        raise ValueError(f"segment_ids must be [B,T] = {query.shape[:2]}; got {segment_ids.shape}.")
    if initial_state is not None:
        batch_size, _, num_kv_heads, head_dim = key.shape
        _check_state(
            initial_state, batch_size, num_kv_heads, head_dim, value.shape[-1], coefficients
        )


def _check_heads(num_heads: int, num_kv_heads: int):
    if num_heads % num_kv_heads:
        raise ValueError(
            "the number of query heads must be a multiple of that of key heads; got "
            f"{num_heads} and {num_kv_heads}."
        )


def _check_coefficients(coefficients, num_heads: int):
    shape = jnp.shape(coefficients)
    if len(shape) not in (1, 2) or not 1 <= shape[-1] <= features.MAX_ORDER + 1:
        raise ValueError(
            f"coefficients must be [p+1] or [N,p+1] with p in 0..{features.MAX_ORDER}; "
            f"got {shape}. Take them from taylor_coefficients(order)."
        )
    if len(shape) == 2 and shape[0] != num_heads:
        raise ValueError(
            f"coefficients per head must have one row per query head ({num_heads}); got {shape}."
        )


def _check_state(state, batch_size, num_kv_heads, head_dim, value_dim, coefficients):
    order = jnp.shape(coefficients)[-1] - 1
    want = (batch_size, num_kv_heads, features.num_features(head_dim, order), value_dim)
    if state.numerator.shape != want or state.denominator.shape != want[:-1]:
        raise ValueError(
            f"the state must be [B,K,P,E] = {want} at order {order} and H = {head_dim}; got "
            f"{state.numerator.shape} and {state.denominator.shape}. Build it with "
            "empty_state(...) or take it from a call with the same shapes and order."
        )


def _order_of(state: TaylorState, head_dim: int) -> int:
    num_features = state.numerator.shape[2]
    for order in range(features.MAX_ORDER + 1):
        if features.num_features(head_dim, order) == num_features:
            return order
    raise ValueError(
        f"a state of P = {num_features} features belongs to no order for keys of width {head_dim}; "
        "the state and the keys are of different heads."
    )
