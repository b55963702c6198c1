"""Linear time on NVIDIA Hopper: chunks in parallel, in three phases, forward and backward.

    1. the state of every chunk alone                                       tensor cores
    2. the state before every chunk                                         bandwidth
    3. what tokens read from that state: `mosaic_gpu_state.recall`          tensor cores
       and the quadratic form inside the chunk: `mosaic_gpu_chunk.sums`     tensor cores

The kernels are Pallas (Mosaic GPU: wgmma, TMA copies by a warpgroup of their own) and carry their
gradients; everything between them is JAX, which differentiates itself: the monomials, masks and
decay (which ride on the left factor of phi), the coefficients (which ride on the state), and the
normaliser's share of the state, which has no value axis and is a plain matrix product.
Source: chunks as in GLA, arXiv:2312.06635, section 4; tiles of monomials: `mosaic_gpu_tiles`.

Z counts batch rows and query heads, Y batch rows and key heads, C chunks, A and W the left and
right monomials.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kernels.taylor_attention import features, mosaic_gpu_chunk, mosaic_gpu_state
from kernels.taylor_attention import state as states
from kernels.taylor_attention.mosaic_gpu_tiles import COLUMNS, ROWS, BlockSizes, Plan, plan
from kernels.taylor_attention.state import TaylorState

__all__ = ["BlockSizes", "obstacle", "taylor_attention"]

SHARED_MEMORY_BYTES = 227 * 1024  # that one block of threads may use on Hopper
MAX_WIDTH = 256  # of a value or a key, as of anything that one wgmma or one copy moves

f32, bf16 = jnp.float32, jnp.bfloat16


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
    blocks: BlockSizes | None = None,
) -> tuple[tuple[jax.Array, jax.Array], TaylorState | None]:
    """The sums in O(T); arguments and results as in `reference.taylor_attention`.

    Args:
      chunk_size: rounded up to whole blocks of tokens (128). None: 1024, or all tokens at once
        where that is faster.
      blocks: for tuning.
    """
    del precision  # products are bfloat16, sums float32
    reason = obstacle(query_BTKGH, key_BTKH, value_BTKE, coefficients)
    if reason is not None:
        raise NotImplementedError(f"mosaic_gpu {reason} Use implementation='xla'.")
    batch_size, length, num_kv_heads, group, head_dim = query_BTKGH.shape
    value_dim, order = value_BTKE.shape[-1], coefficients.shape[-1] - 1
    needs_state = initial_state is not None or return_state
    if blocks is None and chunk_size is None and not needs_state:
        chunk_size = _one_chunk(length, features.num_features(head_dim, order))
    blocks = _fitting(blocks or BlockSizes(), head_dim, value_dim, order)
    assert blocks is not None
    chunk = _up(min(chunk_size or blocks.chunk, length), blocks.tokens)
    blocks = dataclasses.replace(blocks, chunk=chunk)
    padded = _up(length, blocks.chunk)

    def pad(x, axis, size):
        return jnp.pad(x, [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)])

    # Heads first, whole chunks; float32, so that gradients add up in float32 (the kernels round).
    query_ZTH = pad(query_BTKGH, 1, padded).transpose(0, 2, 3, 1, 4).astype(f32)
    query_ZTH = query_ZTH.reshape(-1, padded, head_dim)
    key_YTH = pad(key_BTKH, 1, padded).transpose(0, 2, 1, 3).astype(f32)
    key_YTH = key_YTH.reshape(-1, padded, head_dim)
    value_YTE = pad(pad(value_BTKE, 1, padded), 3, _up(value_dim, ROWS)).transpose(0, 2, 1, 3)
    value_YTE = value_YTE.reshape(-1, padded, value_YTE.shape[-1]).astype(f32)
    marks = _Marks.of(batch_size, num_kv_heads, length, blocks.chunk, log_decay_K, runs)

    numerator, denominator = mosaic_gpu_chunk.sums(
        mosaic_gpu_chunk.Spec(blocks, order, group, log_decay_K is not None, runs is not None),
        pad(query_ZTH, 2, _up(head_dim, COLUMNS)),
        pad(key_YTH, 2, _up(head_dim, COLUMNS)),
        value_YTE,
        jnp.broadcast_to(coefficients, (batch_size, num_kv_heads, group, order + 1)).reshape(
            -1, order + 1
        ),
        jnp.repeat(marks.log_decay, group),
        jnp.repeat(marks.run_start, group, axis=0),
    )
    state = None
    if padded > blocks.chunk or needs_state:
        if initial_state is None:
            initial_state = states.empty_state(
                batch_size=batch_size,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                value_dim=value_dim,
                order=order,
            )
        past, past_weight, state = _through_states(
            query_ZTH, key_YTH, value_YTE, initial_state, coefficients, marks, blocks
        )
        numerator, denominator = numerator + past, denominator + past_weight

    heads = (batch_size, num_kv_heads, group, padded)
    numerator = numerator.reshape(*heads, -1).transpose(0, 3, 1, 2, 4)[:, :length, ..., :value_dim]
    denominator = denominator.reshape(heads).transpose(0, 3, 1, 2)[:, :length]
    return (numerator, denominator), state if return_state else None


def obstacle(query_BTKGH, key_BTKH, value_BTKE, coefficients) -> str | None:
    """Why these kernels cannot run (a sentence without its subject), or None."""
    platform = _platform()
    if platform is not None:
        return f"needs an NVIDIA Hopper GPU (compute capability 9.0); found {platform}."
    dtypes = [str(x.dtype) for x in (query_BTKGH, key_BTKH, value_BTKE)]
    if set(dtypes) != {"bfloat16"}:
        return f"multiplies bfloat16 query, key and value; got {', '.join(dtypes)}."
    head_dim, value_dim = key_BTKH.shape[-1], value_BTKE.shape[-1]
    order = coefficients.shape[-1] - 1
    if max(head_dim, value_dim) > MAX_WIDTH:
        return f"takes heads up to {MAX_WIDTH} wide; got {head_dim=}, {value_dim=}."
    if _fitting(BlockSizes(), head_dim, value_dim, order) is None:
        return f"cannot hold order {order} at {head_dim=}, {value_dim=} in shared memory."
    return None


def _platform() -> str | None:
    """What is here instead of a Hopper GPU. A device that is only described counts as one."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        kind = described.device_kind
        return None if any(name in kind for name in ("H100", "H200", "H800", "GH200")) else kind
    if jax.default_backend() != "gpu":
        return f"a {jax.default_backend()}"
    capability = str(getattr(jax.devices()[0], "compute_capability", "unknown"))
    return None if capability == "9.0" else f"compute capability {capability}"


def _one_chunk(length: int, num_features: int) -> int | None:
    """All tokens, where the quadratic form alone is faster than chunks: on an H200, with 153 to
    2,145 features, at 4,096 and 8,192 tokens (docs/experiments.md, 2026-11-27).
    """
    return length if length <= (4096 if num_features < 256 else 8192) else None


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _fitting(blocks: BlockSizes, head_dim: int, value_dim: int, order: int) -> BlockSizes | None:
    """`blocks` with as many features and keys at once as shared memory holds."""
    value_dim, padded_dim = _up(value_dim, ROWS), _up(head_dim, COLUMNS)
    for keys in (blocks.keys, ROWS):
        chunk_bytes = 2 * (blocks.tokens + blocks.stages * keys) * (padded_dim + value_dim)
        if chunk_bytes + 8192 <= SHARED_MEMORY_BYTES:
            break
    else:
        return None
    for width in range(blocks.features, COLUMNS, -COLUMNS):
        tiles = plan(head_dim, order, width, blocks.warpgroups)
        if tiles is None:
            return None  # a narrower one fits even less
        if tiles.num_lefts > MAX_WIDTH:  # rows of one copy
            return None
        own = 2 * tiles.num_lefts + 2 * tiles.right_width + 2 * value_dim  # bytes per token
        state_bytes = blocks.tokens * own + blocks.stages * 2 * value_dim * width
        if state_bytes + 8192 <= SHARED_MEMORY_BYTES:
            return dataclasses.replace(
                blocks, features=width, keys=keys, backward_keys=min(keys, blocks.backward_keys)
            )
    return None


@dataclasses.dataclass(frozen=True)
class _Marks:
    """Decay, runs and padding, per batch row and key head; all constants.

    Attributes:
      log_decay: [Y], per token, <= 0.
      run_start: [Y, T], the first token of each token's run.
      query: [Y, T], what a query's read of the state before its chunk is multiplied with.
      key: [Y, T], the same for a key's share in the state after its chunk; 0 for padding.
      gates: [Y, C], what a whole chunk leaves of an older state: nothing if a new run begins in it.
    """

    log_decay: jax.Array
    run_start: jax.Array
    query: jax.Array
    key: jax.Array
    gates: jax.Array

    @classmethod
    def of(cls, batch_size, num_kv_heads, length, chunk, log_decay_K, runs) -> "_Marks":
        padded = _up(length, chunk)
        if log_decay_K is None:
            log_decay_K = jnp.zeros(num_kv_heads, f32)
        has_runs = runs is not None
        if runs is None:
            runs = jnp.zeros((batch_size, length), jnp.int32)
        # Everything once per batch row and key head, in the order of Y.
        log_decay_Y = jnp.tile(log_decay_K, batch_size)
        runs = jnp.pad(runs, ((0, 0), (0, padded - length)), mode="edge")
        runs_YT = jnp.repeat(runs, num_kv_heads, axis=0)
        runs_YCT = runs_YT.reshape(len(runs_YT), -1, chunk)

        token = np.arange(padded)
        chunk_start = token // chunk * chunk
        chunk_end = np.minimum(chunk_start + chunk, length)
        run_after_YC = runs_YCT[:, :, -1]
        run_before_YC = jnp.pad(run_after_YC[:, :-1], ((0, 0), (1, 0)))  # the initial state: run 0
        sees = (runs_YCT == run_before_YC[..., None]).reshape(runs_YT.shape)
        kept = (runs_YCT == run_after_YC[..., None]).reshape(runs_YT.shape) & (token < length)
        decay = lambda tokens: jnp.exp(log_decay_Y[:, None] * tokens)  # noqa: E731
        run_start = jnp.zeros(runs_YT.shape, jnp.int32)
        if has_runs:
            begins = jnp.pad(runs_YT[:, 1:] != runs_YT[:, :-1], ((0, 0), (1, 0)))
            run_start = jnp.where(begins, token.astype(np.int32), 0)
            run_start = jax.lax.cummax(run_start, axis=1)
        return cls(
            log_decay=log_decay_Y,
            run_start=run_start,
            query=sees * decay(token - chunk_start + 1),
            key=kept * decay(np.maximum(chunk_end - 1 - token, 0)),
            gates=decay((chunk_end - chunk_start)[::chunk]) * (run_after_YC == run_before_YC),
        )


def _through_states(
    query_ZTH, key_YTH, value_YTE, initial_state, coefficients, marks: _Marks, blocks: BlockSizes
):
    """The sums over all keys before each query's chunk, and the state after the last token."""
    num_query_heads, length, head_dim = query_ZTH.shape
    num_key_heads = len(key_YTH)
    group = num_query_heads // num_key_heads
    order = coefficients.shape[-1] - 1
    tiles = plan(head_dim, order, blocks.features, blocks.warpgroups)
    assert tiles is not None

    # phi = left x right; marks ride on the left factor
    num_chunks = length // blocks.chunk

    def factors(x_ZTH, mark_ZT):
        x = x_ZTH.reshape(-1, num_chunks, blocks.chunk, head_dim).swapaxes(2, 3)
        x = jax.lax.optimization_barrier(x)  # transposed once, and by itself
        left = tiles.left(x) * mark_ZT.reshape(-1, num_chunks, 1, blocks.chunk)
        return left, tiles.right(x_ZTH.swapaxes(1, 2))

    key_left, key_right = factors(key_YTH, marks.key)
    query_left, query_right = factors(query_ZTH, jnp.repeat(marks.query, group, axis=0))

    # Coefficients and multinomials ride on the state, once per query head if they differ among
    # the heads that share it; slots that repeat a monomial get weight 0.
    ways, degrees = features.multinomials(head_dim, order)
    weights = coefficients[..., degrees] * jnp.asarray(ways, f32)
    weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, 1)])
    weights = weights.reshape(-1, weights.shape[-1])  # [1 or K * group, P + 1]
    if coefficients.ndim == 3:
        weights = jnp.tile(weights, (num_query_heads // len(weights), 1))
    else:
        weights = jnp.broadcast_to(weights, (num_key_heads, weights.shape[-1]))
    tile_weights = weights[:, tiles.slot_feature].reshape(-1, tiles.num_tiles, 1, tiles.tile)
    pair_weights = weights[:, tiles.pair_feature]
    pair_weights = pair_weights.reshape(num_key_heads, -1, 1, tiles.num_lefts, tiles.right_width)

    first, first_weight = _tiled(initial_state, tiles, value_YTE.shape[-1])
    spec = mosaic_gpu_state.Spec(tiles, blocks, group)
    numerator, last = mosaic_gpu_state.recall(
        spec, query_left, query_right, key_left, key_right, value_YTE, first, tile_weights,
        marks.gates,
    )  # fmt: skip

    # The normaliser has no value axis: plain matrix products.
    added_weight = jnp.einsum(
        "ycat,yctw->ycaw",
        key_left.astype(bf16),
        key_right.astype(bf16).reshape(num_key_heads, num_chunks, blocks.chunk, -1),
        preferred_element_type=f32,
    )
    before_weight, last_weight = mosaic_gpu_state.prefix(added_weight, first_weight, marks.gates)
    along_right = jnp.einsum(
        "ygctw,ygcaw->ygcat",
        query_right.astype(bf16).reshape(num_key_heads, group, num_chunks, blocks.chunk, -1),
        (before_weight[:, None] * pair_weights).astype(bf16),
        preferred_element_type=f32,
    )
    denominator = (along_right.reshape(query_left.shape) * query_left).sum(2)
    denominator = denominator.reshape(num_query_heads, length)
    return numerator, denominator, _untiled(last, last_weight, tiles, initial_state)


def _tiled(state: TaylorState, tiles: Plan, value_dim: int) -> tuple[jax.Array, jax.Array]:
    """[B,K,P,E], [B,K,P] -> [Y, tiles, E, F] and [Y, A, W]; E is padded to `value_dim`."""
    numerator = state.numerator.reshape(-1, *state.numerator.shape[2:])
    padding = value_dim - numerator.shape[-1]
    numerator = jnp.pad(numerator, ((0, 0), (0, 1), (0, padding)))[:, tiles.slot_feature]
    numerator = numerator.reshape(len(numerator), tiles.num_tiles, tiles.tile, -1).swapaxes(2, 3)
    denominator = state.denominator.reshape(len(numerator), -1)
    denominator = jnp.pad(denominator, ((0, 0), (0, 1)))[:, tiles.pair_feature]
    return numerator, denominator.reshape(len(numerator), tiles.num_lefts, tiles.right_width)


def _untiled(numerator, denominator, tiles: Plan, like: TaylorState) -> TaylorState:
    """The inverse of `_tiled`, in the shape of another state."""
    value_dim = like.numerator.shape[-1]
    numerator = numerator.swapaxes(2, 3).reshape(len(numerator), -1, numerator.shape[2])
    numerator = numerator[:, tiles.feature_slot, :value_dim]
    denominator = denominator.reshape(len(denominator), -1)[:, tiles.feature_pair]
    return TaylorState(
        numerator=numerator.reshape(like.numerator.shape),
        denominator=denominator.reshape(like.denominator.shape),
    )
