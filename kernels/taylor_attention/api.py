"""The public functions: validation, grouping of heads, choice of implementation.

Letters: B batch, T tokens, N query heads, K key/value heads (N a multiple of K), H width of a query
or key, E width of a value, P = C(H+p, p) features at order p, C chunk.
"""

import math
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np

from kernels.taylor_attention import features, mosaic_gpu, mosaic_tpu, reference, xla
from kernels.taylor_attention import state as states
from kernels.taylor_attention.state import TaylorState

# Each has the signature of `reference.taylor_attention`. One that is named runs or raises.
IMPLEMENTATIONS: typing.Mapping[str, typing.Callable] = types.MappingProxyType(
    {
        "reference": reference.taylor_attention,
        "xla": xla.taylor_attention,
        "mosaic_tpu": mosaic_tpu.taylor_attention,
        "mosaic_gpu": mosaic_gpu.taylor_attention,
    }
)
# By `jax.default_backend()`: the name that `None` takes instead of "xla", and the function of
# (query_BTKGH, key_BTKH, value_BTKE, coefficients) that says why it cannot (a sentence), or None.
PLATFORM_IMPLEMENTATIONS: typing.Mapping[str, tuple[str, typing.Callable[..., str | None]]] = (
    types.MappingProxyType(
        {"tpu": ("mosaic_tpu", mosaic_tpu.obstacle), "gpu": ("mosaic_gpu", mosaic_gpu.obstacle)}
    )
)
DEFAULT_CHUNK_SIZE = 128


def taylor_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    coefficients: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None = None,
    log_decay: jax.typing.ArrayLike | None = None,
    segment_ids: jax.Array | None = None,
    initial_state: TaylorState | None = None,
    return_state: bool = False,
    chunk_size: int | None = None,
    implementation: str | None = None,
) -> typing.Any:
    """Causal attention with exp replaced by a polynomial w of the scaled score.

    out_t = sum_{s<=t} d^(t-s) w(x_ts) v_s / sum_{s<=t} d^(t-s) w(x_ts),   x_ts = scale q_t . k_s
    w(x) = sum_n coefficients[n] x^n,   d = exp(log_decay), 1 if None
    Source: Based, arXiv:2402.18668 (order 2); the decay: RetNet, arXiv:2307.08621, eq. 5.

    Args:
      query: [B, T, N, H].
      key: [B, T, K, H]; query head n reads key head n // (N / K).
      value: [B, T, K, E].
      coefficients: [p+1] or one row per query head [N, p+1], p <= 8; from `taylor_coefficients` or
        `minimax_coefficients`, or learned. Nothing here keeps w positive: see `positive_radius`.
      scale: a scalar; 1/sqrt(H) if None.
      log_decay: [K], <= 0, per token; a constant (its gradient is zero).
      segment_ids: int [B, T]. A token sees only its own run of equal neighbouring ids (a document).
      initial_state: keys seen before the first token; they belong to the first segment.
      return_state: also return the state after the last token (of the last segment only).
      chunk_size: tokens treated at once by the linear forms; changes the time, not the result.
      implementation: one of `IMPLEMENTATIONS`: "reference" takes O(T^2), the others O(T). None
        takes the one with fewer operations (`crossover_length`) that suits the platform. A named
        one runs or raises; there is no fallback.

    Returns:
      [B, T, N, E] in the value's dtype; with return_state also a TaylorState (float32).

    Error: sums run in float32; agreement between implementations is fixed in tests/kernels. Against
      softmax attention the error is that of w against exp on the scores that occur.
    """
    numerator, denominator, *state = taylor_attention_sums(
        query,
        key,
        value,
        coefficients=coefficients,
        scale=scale,
        log_decay=log_decay,
        segment_ids=segment_ids,
        initial_state=initial_state,
        return_state=return_state,
        chunk_size=chunk_size,
        implementation=implementation,
    )
    output = _divide(numerator, denominator).astype(value.dtype)
    return (output, *state) if return_state else output


def taylor_attention_sums(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    coefficients: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None = None,
    log_decay: jax.typing.ArrayLike | None = None,
    segment_ids: jax.Array | None = None,
    initial_state: TaylorState | None = None,
    return_state: bool = False,
    chunk_size: int | None = None,
    implementation: str | None = None,
) -> typing.Any:
    """The two sums that `taylor_attention` divides, for branches that share one normaliser.

    Returns:
      numerator [B, T, N, E] and denominator [B, T, N] in float32 (float64 if an input is that
      wide); with return_state also a TaylorState.
    """
    _check(query, key, value, coefficients, segment_ids, initial_state)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token; got {chunk_size=}.")
    dtype = _sum_dtype(query, key, value)
    num_kv_heads = key.shape[2]
    grouped_query = _grouped(query, num_kv_heads)
    grouped_coefficients = _grouped_coefficients(coefficients, scale, query, num_kv_heads, dtype)
    if implementation is None:
        implementation = _choose(grouped_query, key, value, grouped_coefficients)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {sorted(IMPLEMENTATIONS)} or None; "
            f"got {implementation!r}."
        )
    if implementation != "reference" or initial_state is not None or return_state:
        features.check_size(query.shape[-1], grouped_coefficients.shape[-1] - 1)
    if initial_state is not None:
        initial_state = jax.tree.map(lambda x: x.astype(dtype), initial_state)
    (numerator, denominator), state = IMPLEMENTATIONS[implementation](
        grouped_query,
        key,
        value,
        coefficients=grouped_coefficients,
        log_decay_K=_checked_log_decay(log_decay, num_kv_heads, dtype),
        runs=None if segment_ids is None else _runs(segment_ids),
        initial_state=initial_state,
        return_state=return_state,
        chunk_size=chunk_size,
        precision=_precision(jnp.result_type(query, key, value)),
    )
    numerator = numerator.reshape(*query.shape[:-1], value.shape[-1])
    denominator = denominator.reshape(query.shape[:-1])
    return (numerator, denominator, state) if return_state else (numerator, denominator)


def taylor_attention_step(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    state: TaylorState,
    *,
    coefficients: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None = None,
    log_decay: jax.typing.ArrayLike | None = None,
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
    dtype = _sum_dtype(query, key, value)
    num_kv_heads = key.shape[2]
    grouped_coefficients = _grouped_coefficients(coefficients, scale, query, num_kv_heads, dtype)
    precision = _precision(jnp.result_type(query, key, value))
    state = states.add(
        state,
        key.astype(dtype).transpose(0, 2, 3, 1),
        value.astype(dtype).transpose(0, 2, 1, 3),
        jnp.ones(key.shape[:2], bool),
        order=grouped_coefficients.shape[-1] - 1,
        log_decay_K=_checked_log_decay(log_decay, num_kv_heads, dtype),
        precision=precision,
    )
    query_BKGHT = _grouped(query, num_kv_heads).astype(dtype).transpose(0, 2, 3, 4, 1)
    numerator, denominator = states.read(state, query_BKGHT, grouped_coefficients, precision)
    output = numerator / denominator[..., None]
    return output.reshape(query.shape[0], query.shape[2], -1).astype(value.dtype), state


def query_state(
    query: jax.Array,
    state: TaylorState,
    *,
    coefficients: jax.typing.ArrayLike,
    scale: jax.typing.ArrayLike | None = None,
    log_decay: jax.typing.ArrayLike | None = None,
    distance: jax.typing.ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The unnormalised parts of attention over the keys in a state, for a shared normaliser.

    Add them to sum_s w(x_ts) v_s and sum_s w(x_ts) over explicit keys (`polynomial`), then divide.

    Args:
      query: [B, T, N, H]; no order among the T: each sees the whole state.
      log_decay: [K]; needs a distance, int [B, T] or a scalar: tokens from the last key in the
        state to the query (1 for the query that follows it).

    Returns:
      numerator [B, T, N, E] and denominator [B, T, N], in the state's dtype.
    """
    batch_size, length, num_heads, head_dim = query.shape
    num_kv_heads = state.numerator.shape[1]
    _check_coefficients(coefficients, num_heads)
    _check_state(state, batch_size, num_kv_heads, head_dim, state.numerator.shape[-1], coefficients)
    _check_heads(num_heads, num_kv_heads)
    if (log_decay is None) != (distance is None):
        raise ValueError(
            f"log_decay and distance go together; got {log_decay=} and {distance=}. Pass both, or "
            "neither for a state that does not decay."
        )
    dtype = state.numerator.dtype
    numerator, denominator = states.read(
        state,
        _grouped(query, num_kv_heads).astype(dtype).transpose(0, 2, 3, 4, 1),
        _grouped_coefficients(coefficients, scale, query, num_kv_heads, dtype),
        _precision(query.dtype),
    )
    log_decay_K = _checked_log_decay(log_decay, num_kv_heads, dtype)
    if log_decay_K is not None:
        distance_BT = jnp.broadcast_to(jnp.asarray(distance, dtype), (batch_size, length))
        decay = jnp.exp(log_decay_K[:, None] * distance_BT[:, None])[:, :, None]  # [B, K, 1, T]
        numerator, denominator = numerator * decay[..., None], denominator * decay
    numerator = numerator.transpose(0, 3, 1, 2, 4).reshape(batch_size, length, num_heads, -1)
    denominator = denominator.transpose(0, 3, 1, 2).reshape(batch_size, length, num_heads)
    return numerator, denominator


def fold(
    state: TaylorState,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    log_decay: jax.typing.ArrayLike | None = None,
    chunk_size: int | None = None,
) -> TaylorState:
    """The state with more keys in it.

    Args:
      key: [B, T, K, H].
      value: [B, T, K, E].
      mask: [B, T], 1 = the key is added; all of them if None. Ragged rows end in zeros.
      log_decay: [K]; every key added ages those before it, a masked one ages nothing.
    """
    if key.ndim != 4 or value.ndim != 4 or key.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"fold takes key [B,T,K,H] and value [B,T,K,E]; got {key.shape} and {value.shape}."
        )
    if mask is not None and mask.shape != key.shape[:2]:
        raise ValueError(f"the mask must be [B,T] = {key.shape[:2]}; got {mask.shape}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 token; got {chunk_size=}.")
    dtype = state.numerator.dtype
    return xla.fold(
        state,
        key.astype(dtype),
        value.astype(dtype),
        jnp.ones(key.shape[:2], bool) if mask is None else mask.astype(bool),
        order=_order_of(state, key.shape[-1]),
        log_decay_K=_checked_log_decay(log_decay, key.shape[2], dtype),
        chunk_size=chunk_size,
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


def _choose(query_BTKGH, key, value, coefficients) -> str:
    """The implementation that `None` stands for."""
    order, value_dim = coefficients.shape[-1] - 1, value.shape[-1]
    if query_BTKGH.shape[1] <= crossover_length(query_BTKGH.shape[-1], value_dim, order):
        return "reference"
    platform = PLATFORM_IMPLEMENTATIONS.get(jax.default_backend())
    if platform is not None:
        name, obstacle = platform
        if obstacle(query_BTKGH, key, value, coefficients) is None:
            return name
    return "xla"


@jax.custom_jvp
def _divide(numerator, denominator):
    return numerator / denominator[..., None]


@_divide.defjvp
def _divide_jvp(primals, tangents):
    """Spreads the denominator's tangent by a product, so that its cotangent is summed by one.

    XLA adds up the last axis one number at a time on a CPU.
    """
    (numerator, denominator), (numerator_dot, denominator_dot) = primals, tangents
    output = _divide(numerator, denominator)
    ones = jnp.ones((1, numerator.shape[-1]), numerator.dtype)
    spread = jnp.matmul(denominator_dot[..., None], ones, precision=jax.lax.Precision.HIGHEST)
    return output, (numerator_dot - output * spread) / denominator[..., None]


def _sum_dtype(*arrays):
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _grouped(query, num_kv_heads):
    """[B, T, N, H] -> [B, T, K, G, H]."""
    batch_size, length, num_heads, head_dim = query.shape
    return query.reshape(batch_size, length, num_kv_heads, num_heads // num_kv_heads, head_dim)


def _grouped_coefficients(coefficients, scale, query, num_kv_heads, dtype):
    """[p+1] or [K, G, p+1], those of a polynomial of the unscaled score: a_n scale^n."""
    scale = jnp.asarray(1 / math.sqrt(query.shape[-1]) if scale is None else scale, dtype)
    coefficients = jnp.asarray(coefficients, dtype)
    coefficients = coefficients * jnp.stack([scale**n for n in range(coefficients.shape[-1])])
    if coefficients.ndim == 1:
        return coefficients
    return coefficients.reshape(num_kv_heads, -1, coefficients.shape[-1])


def _checked_log_decay(log_decay, num_kv_heads: int, dtype) -> jax.Array | None:
    if log_decay is None:
        return None
    if jnp.shape(log_decay) != (num_kv_heads,):
        raise ValueError(
            f"log_decay must be [K], one number per key head ({num_kv_heads}); got "
            f"{jnp.shape(log_decay)}. Repeat it if all heads decay alike."
        )
    if not isinstance(log_decay, jax.core.Tracer) and np.any(np.asarray(log_decay) > 0):
        raise ValueError(
            f"log_decay must not be positive, or old keys would grow; got {log_decay}. "
            "Pass log(decay) with 0 < decay <= 1."
        )
    return jax.lax.stop_gradient(jnp.asarray(log_decay, dtype))


def _precision(dtype) -> jax.lax.Precision | None:
    """Exact products for float32 input; what the hardware does fastest for narrower input."""
    return jax.lax.Precision.HIGHEST if jnp.finfo(dtype).bits >= 32 else None


def _runs(segment_ids: jax.Array) -> jax.Array:
    """[B, T] -> [B, T]: 0 for the first run of equal ids, 1 for the next, and so on."""
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changes, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


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
