"""Linear time on NVIDIA Hopper: chunks in parallel, in three phases, forward and backward.

    1. the state of every chunk alone            `mosaic_gpu_state.sums`    tensor cores
    2. the state before every chunk              `_prefix`                  plain XLA: bandwidth
    3. what tokens read from that state          `mosaic_gpu_state.read`    tensor cores
       and the quadratic form inside the chunk   `mosaic_gpu_chunk.sums`    tensor cores

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
PREFIX_CHUNKS = 64  # whose states one matrix product sums

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
      chunk_size: rounded up to whole blocks of tokens (128); 1024 if None.
      blocks: for tuning.
    """
    del precision  # products are bfloat16, sums float32
    reason = obstacle(query_BTKGH, key_BTKH, value_BTKE, coefficients)
    if reason is not None:
        raise NotImplementedError(f"mosaic_gpu {reason} Use implementation='xla'.")
    batch_size, length, num_kv_heads, group, head_dim = query_BTKGH.shape
    value_dim, order = value_BTKE.shape[-1], coefficients.shape[-1] - 1
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
    if padded > blocks.chunk or initial_state is not None or return_state:
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
        own = 4 * tiles.num_lefts + 2 * tiles.right_width + 2 * value_dim  # bytes per token
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
      log_gate: [Y, C], log of what a whole chunk leaves of an older state, were it kept.
      forgets: [Y, C], whether a new run begins in a chunk: it keeps nothing older.
    """

    log_decay: jax.Array
    run_start: jax.Array
    query: jax.Array
    key: jax.Array
    log_gate: jax.Array
    forgets: jax.Array

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
            log_gate=log_decay_Y[:, None] * (chunk_end - chunk_start)[::chunk],
            forgets=run_after_YC != run_before_YC,
        )


def _through_states(
    query_ZTH, key_YTH, value_YTE, initial_state, coefficients, marks: _Marks, blocks: BlockSizes
):
    """The sums over all keys before each query's chunk, and the state after the last token."""
    num_query_heads, length, head_dim = query_ZTH.shape
    num_key_heads = len(key_YTH)
    group, num_chunks = num_query_heads // num_key_heads, length // blocks.chunk
    order = coefficients.shape[-1] - 1
    tiles = plan(head_dim, order, blocks.features, blocks.warpgroups)
    assert tiles is not None

    # phi = left x right; marks ride on the left factor
    key_left = tiles.left(key_YTH.swapaxes(1, 2)) * marks.key[:, None]
    key_right = tiles.right(key_YTH.swapaxes(1, 2))
    query_left = tiles.left(query_ZTH.swapaxes(1, 2))
    query_left = query_left * jnp.repeat(marks.query, group, axis=0)[:, None]
    query_right = tiles.right(query_ZTH.swapaxes(1, 2))

    # 1. what each chunk adds; 2. the state before each chunk and after the last
    spec = mosaic_gpu_state.Spec(tiles, blocks, 1)
    added = mosaic_gpu_state.sums(spec, key_left, key_right, value_YTE)
    added_weight = jnp.einsum(
        "yact,yctw->ycaw",
        key_left.astype(bf16).reshape(num_key_heads, -1, num_chunks, blocks.chunk),
        key_right.astype(bf16).reshape(num_key_heads, num_chunks, blocks.chunk, -1),
        preferred_element_type=f32,
    )
    first, first_weight = _tiled(initial_state, tiles, value_YTE.shape[-1])
    before, last = _prefix(added, first, marks)
    before_weight, last_weight = _prefix(added_weight, first_weight, marks)

    # 3. what queries read. Coefficients and multinomials ride on the state, once per query head
    # if they differ among the heads that share it; slots that repeat a monomial get weight 0.
    ways, degrees = features.multinomials(head_dim, order)
    weights = coefficients[..., degrees] * jnp.asarray(ways, f32)
    weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, 1)])
    tile_weights = weights[..., tiles.slot_feature].reshape(
        *weights.shape[:-1], 1, tiles.num_tiles, 1, tiles.tile
    )
    pair_weights = weights[..., tiles.pair_feature].reshape(
        *weights.shape[:-1], 1, tiles.num_lefts, tiles.right_width
    )
    if coefficients.ndim == 3:
        batch_size = initial_state.numerator.shape[0]

        def per_query_head(state, weights):
            state = state.reshape(batch_size, -1, 1, *state.shape[1:])
            return (state * weights).reshape(num_query_heads, *state.shape[3:])

        before = per_query_head(before, tile_weights)
        before_weight = per_query_head(before_weight, pair_weights)
        group = 1
    else:
        before, before_weight = before * tile_weights, before_weight * pair_weights

    spec = mosaic_gpu_state.Spec(tiles, blocks, group)
    numerator = mosaic_gpu_state.read(spec, query_left, query_right, before)
    along_right = jnp.einsum(
        "ygctw,ycaw->ygact",
        query_right.astype(bf16).reshape(-1, group, num_chunks, blocks.chunk, tiles.right_width),
        before_weight.astype(bf16),
        preferred_element_type=f32,
    )
    denominator = (along_right.reshape(query_left.shape) * query_left).sum(1)
    return numerator, denominator, _untiled(last, last_weight, tiles, initial_state)


def _prefix(added, first, marks: _Marks):
    """S_{c+1} = gate_c S_c + added_c: all S_c [Y, C, ...], and the one after the last chunk.

    A lower triangular matrix product; over more than `PREFIX_CHUNKS` chunks a scan of them, so
    that the operations stay linear in the length.
    """
    num_heads, num_chunks = added.shape[:2]
    size = min(num_chunks, PREFIX_CHUNKS)
    padding = ((0, 0), (0, -num_chunks % size))  # a chunk that adds nothing and keeps everything
    log_gate, forgets = (
        jnp.pad(x, padding).reshape(num_heads, -1, size).swapaxes(0, 1)
        for x in (marks.log_gate, marks.forgets.astype(jnp.int32))
    )
    inner = added.shape[2:]
    blocks = jnp.pad(added, (*padding, *[(0, 0)] * len(inner)))
    blocks = blocks.reshape(num_heads, -1, size, *inner).swapaxes(0, 1)

    def one_block(state, block):
        added, log_gate, forgets = block
        age = jnp.pad(jnp.cumsum(log_gate, 1), ((0, 0), (1, 0)))  # [Y, size + 1]
        era = jnp.pad(jnp.cumsum(forgets, 1), ((0, 0), (1, 0)))
        causal = np.tril(np.ones((size + 1, size + 1), bool))
        same = causal & (era[:, :, None] == era[:, None, :])
        gates = jnp.where(same, jnp.exp(jnp.minimum(age[:, :, None] - age[:, None, :], 0)), 0)
        scale = gates[:, :, 0].reshape(num_heads, size + 1, *[1] * len(inner))
        states = scale * state[:, None] + jnp.einsum(
            "ycj,yj...->yc...", gates[:, :, 1:], added, precision=jax.lax.Precision.HIGHEST
        )
        return states[:, -1], states[:, :-1]

    last, before = jax.lax.scan(one_block, first, (blocks, log_gate, forgets))
    before = before.swapaxes(0, 1).reshape(num_heads, -1, *inner)[:, :num_chunks]
    return before, last


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
