"""Linear time in plain JAX: the quadratic form inside a chunk, the state across chunks.

    sums_t = f_t phi(q_t) S + sum_{s<=t, s in the chunk} d^(t-s) w(x_ts) [v_s, 1]
    S'     = b S + sum_{s in the chunk} a_s phi(k_s) [v_s, 1]

S is what the chunks before have left; the factors f, a, b hold the decay and forget other runs. A
scan over the chunks of all heads carries S. The backward pass is by hand: the forward scan saves S
before every chunk (and no feature), one reversed scan carries the cotangent of S and gives the
cotangents of query, key and value chunk by chunk.

Layout: rows are tokens, as in the arguments, so that a chunk is copied and not transposed; features
alone have tokens last. A column of ones stands beside the values, so that numerator and denominator
share their products. Letters: m lanes worked on side by side, c chunks, g = G C the queries of a
chunk, s its keys, F = E + 1. The G query heads of a key head follow one another.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from kernels.taylor_attention import features
from kernels.taylor_attention import state as states
from kernels.taylor_attention.state import TaylorState

CHUNK_SIZE = 128
# On a CPU, where a state is small, the work inside a chunk weighs more than passes over the state.
SMALL_CHUNK_SIZE, SMALL_FEATURES = 64, 512
GROUP_FLOATS = 1 << 15  # features of one group of lanes: a few such arrays fit a core's cache


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
    batch_size, length, num_kv_heads, num_groups, head_dim = query_BTKGH.shape
    value_dim = value_BTKE.shape[-1]
    order = coefficients.shape[-1] - 1
    if coefficients.ndim == 3 and num_groups > 1:
        # Query heads of one key head differ: give each a copy of the key head.
        repeat = functools.partial(jnp.repeat, repeats=num_groups)
        sums, state = taylor_attention(
            query_BTKGH.reshape(batch_size, length, -1, 1, head_dim),
            repeat(key_BTKH, axis=2),
            repeat(value_BTKE, axis=2),
            coefficients=coefficients.reshape(-1, 1, order + 1),
            log_decay_K=None if log_decay_K is None else repeat(log_decay_K, axis=0),
            runs=runs,
            initial_state=jax.tree.map(functools.partial(repeat, axis=1), initial_state),
            return_state=return_state,
            chunk_size=chunk_size,
            precision=precision,
        )
        groups = (batch_size, length, num_kv_heads, num_groups)
        numerator, denominator = (x.reshape(*groups, *x.shape[4:]) for x in sums)
        return (numerator, denominator), jax.tree.map(lambda x: x[:, ::num_groups], state)

    # Inside shard_map: let what is the same on all devices differ, as the keys do; its cotangent is
    # then summed over devices.
    one = jnp.ones_like(key_BTKH, coefficients.dtype, shape=())
    coefficients = coefficients * one
    if initial_state is None:
        num_features = features.num_features(head_dim, order)
        shape = (batch_size, num_kv_heads, num_features, value_dim + 1)
        state_BKPF = jnp.zeros_like(key_BTKH, coefficients.dtype, shape=shape)
    else:
        state_BKPF = _stacked(initial_state) * one
    if chunk_size is None:
        chunk_size = CHUNK_SIZE
        if jax.default_backend() == "cpu" and state_BKPF.shape[-2] <= SMALL_FEATURES:
            chunk_size = SMALL_CHUNK_SIZE
    sums_BTKGF, state_BKPF = _sums(
        (min(chunk_size, length), precision),
        query_BTKGH,
        key_BTKH,
        value_BTKE,
        jnp.broadcast_to(coefficients.reshape(-1, order + 1), (num_kv_heads, order + 1)),
        state_BKPF,
        log_decay_K,
        runs,
    )
    numerator, denominator = sums_BTKGF[..., :-1], sums_BTKGF[..., -1]
    return (numerator, denominator), _unstacked(state_BKPF) if return_state else None


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
        _chunks(keep_BT, chunk_size).swapaxes(0, 1),
    )
    state, _ = jax.lax.scan(jax.checkpoint(one_chunk, prevent_cse=False), state, chunks)
    return state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(static, query_BTKGH, key_BTKH, value_BTKE, coefficients_K, state_BKPF, log_decay_K, runs):
    """(sums [B, T, K, G, F], the state after the last token [B, K, P, F])."""
    sums, state, _ = _forward(
        static,
        query_BTKGH,
        key_BTKH,
        value_BTKE,
        coefficients_K,
        state_BKPF,
        log_decay_K,
        runs,
        save=False,
    )
    return sums, state


def _sums_fwd(static, *arguments):
    sums, state, saved = _forward(static, *arguments, save=True)
    query, key, value, coefficients_K, _, log_decay_K, runs = arguments
    return (sums, state), (query, key, value, coefficients_K, log_decay_K, runs, saved)


def _forward(static, query, key, value, coefficients_K, state, log_decay_K, runs, *, save):
    chunk_size, precision = static
    dtype = coefficients_K.dtype
    einsum = functools.partial(jnp.einsum, precision=precision)
    order, head_dim = coefficients_K.shape[-1] - 1, query.shape[-1]
    lanes = _Lanes(query.shape, chunk_size, state.shape[-2])
    coefficients = lanes.split_heads(coefficients_K)
    log_decay = lanes.split_heads(log_decay_K)
    initial = lanes.split(state)

    def one_chunk(carry, step):
        state, last = carry
        lane, chunk, count, query, key, value, runs = step
        query, key, value = query.astype(dtype), key.astype(dtype), value.astype(dtype)
        state = jnp.where(chunk == 0, initial[lane], state)
        factors = lanes.factors(_at(log_decay, lane), runs, count, dtype)
        score = einsum("mgh,msh->mgs", query, key)
        weight = features.polynomial(score, coefficients[lane][:, None, None])
        weight = _times(jnp.where(factors.visible, weight, 0), factors.pair)
        weights = features.weights(coefficients[lane], head_dim)[..., None]  # [m, P, 1]
        phi_query = features.products(query.mT, order)
        past = einsum("mpf,mpg->mfg", state * weights, phi_query).mT
        sums = einsum("mgs,msf->mgf", weight, value) + _times(past, factors.query)
        phi_key = features.products(key.mT, order)
        after = einsum("mps,msf->mpf", phi_key, _times(value, factors.key))
        after = after + _times(state, factors.state)
        # The state of a lane is overwritten until its last chunk.
        last = jax.lax.dynamic_update_index_in_dim(last, after, lane, axis=0)
        return (after, last), (sums, state if save else None)

    steps = (
        lanes.lane,
        lanes.chunk,
        lanes.count,
        lanes.split_queries(query),
        lanes.split_keys(key),
        lanes.split_keys(_with_ones(value)),
        lanes.split_runs(runs),
    )
    (_, last), (sums, saved) = jax.lax.scan(one_chunk, (initial[0], initial), steps)
    return lanes.join_queries(sums), lanes.join(last), saved


def _sums_bwd(static, residuals, cotangents):
    query, key, value, coefficients_K, log_decay_K, runs, saved = residuals
    sums_bar, state_bar = cotangents
    chunk_size, precision = static
    dtype = coefficients_K.dtype
    einsum = functools.partial(jnp.einsum, precision=precision)
    order, head_dim = coefficients_K.shape[-1] - 1, query.shape[-1]
    lanes = _Lanes(query.shape, chunk_size, state_bar.shape[-2])
    coefficients = lanes.split_heads(coefficients_K)
    slopes = coefficients[..., 1:] * np.arange(1, order + 1, dtype=dtype)  # of w'
    log_decay = lanes.split_heads(log_decay_K)
    last_bar = lanes.split(state_bar)

    def one_chunk(carry, step):
        after_bar, initial_bar = carry
        lane, chunk, count, query, key, value, sums_bar, before, runs = step
        query, key, value = query.astype(dtype), key.astype(dtype), value.astype(dtype)
        after_bar = jnp.where(chunk == lanes.num_chunks - 1, last_bar[lane], after_bar)
        weights = features.weights(coefficients[lane], head_dim)[..., None]
        factors = lanes.factors(_at(log_decay, lane), runs, count, dtype)
        # The queries read the state before the chunk.
        query_, key_ = (features.away_from_zero(x.mT) for x in (query, key))  # [m, H, g]
        phi_query, phi_key = features.products(query_, order), features.products(key_, order)
        past_bar = _times(sums_bar, factors.query)
        phi_query_bar = einsum("mpf,mgf->mpg", before * weights, past_bar)
        read_bar = einsum("mpg,mgf->mpf", phi_query, past_bar)
        before_bar = _times(after_bar, factors.state) + weights * read_bar
        # The keys write the state after it.
        phi_key_bar = einsum("mpf,msf->mps", after_bar, _times(value, factors.key))
        value_bar = _times(einsum("mpf,mps->mfs", after_bar, phi_key).mT, factors.key)
        # The weights inside the chunk.
        score = einsum("mgh,msh->mgs", query, key)
        weight = features.polynomial(score, coefficients[lane][:, None, None])
        weight = _times(jnp.where(factors.visible, weight, 0), factors.pair)
        value_bar = value_bar + einsum("mgs,mgf->msf", weight, sums_bar)
        weight_bar = _times(einsum("mgf,msf->mgs", sums_bar, value), factors.pair)
        weight_bar = jnp.where(factors.visible, weight_bar, 0)
        query_bar, key_bar = jnp.zeros_like(query), jnp.zeros_like(key)
        if order:
            score_bar = weight_bar * features.polynomial(score, slopes[lane][:, None, None])
            query_bar = einsum("mgs,msh->mgh", score_bar, key)
            query_bar += features.pull_back(query_, phi_query, phi_query_bar, order).mT
            key_bar = einsum("mgs,mgh->msh", score_bar, query)
            key_bar += features.pull_back(key_, phi_key, phi_key_bar, order).mT
        monomial_bar = (before * read_bar).sum(-1)
        coefficients_bar = features.weights_transpose(monomial_bar, head_dim, order)
        power_bars = [weight_bar.sum((1, 2))]
        for _ in range(order):
            weight_bar = weight_bar * score
            power_bars.append(weight_bar.sum((1, 2)))
        coefficients_bar += jnp.stack(power_bars, -1)
        # The cotangent of a lane's state is overwritten until its first chunk.
        initial_bar = jax.lax.dynamic_update_index_in_dim(initial_bar, before_bar, lane, axis=0)
        bars = query_bar, key_bar, value_bar[..., :-1], coefficients_bar
        return (before_bar, initial_bar), bars

    steps = (
        lanes.lane,
        lanes.chunk,
        lanes.count,
        lanes.split_queries(query),
        lanes.split_keys(key),
        lanes.split_keys(_with_ones(value)),
        lanes.split_queries(sums_bar),
        saved,
        lanes.split_runs(runs),
    )
    (_, initial_bar), (*bars, coefficients_bar) = jax.lax.scan(
        one_chunk, (last_bar[0], last_bar), steps, reverse=True
    )
    coefficients_bar = coefficients_bar.reshape(-1, lanes.num_chunks, lanes.size, order + 1)
    query_bar, key_bar, value_bar = (lanes.join_queries(x) for x in bars)
    return (
        query_bar.astype(query.dtype),
        key_bar[:, :, :, 0].astype(key.dtype),
        value_bar[:, :, :, 0].astype(value.dtype),
        lanes.join(coefficients_bar.sum(1)).sum(0),
        lanes.join(initial_bar),
        None,  # decay and runs are constants
        None,
    )


_sums.defvjp(_sums_fwd, _sums_bwd)


class _Factors(typing.NamedTuple):
    """What decay and runs multiply in a chunk; None where neither is given.

    Attributes:
      visible: bool [m or 1, G C, C], whether the query (row) sees the key (column).
      pair: [m, G C, C], the decay from key to query.
      query: [m, G C, 1], of what a token reads from the state; 0 for one of a later run.
      key: [m, C, 1], of what a token adds to the state; 0 if its run ends in the chunk.
      state: [m, 1, 1], of the state before the chunk in the state after it.
    """

    visible: jax.Array
    pair: jax.Array | None = None
    query: jax.Array | None = None
    key: jax.Array | None = None
    state: jax.Array | None = None


class _Lanes:
    """The B K pairs of row and key head, cut into L groups of m that are worked on side by side.

    The steps of a scan are the chunks of the first group, then those of the second, and so on. On a
    CPU a group is small enough for its features to stay near the core; elsewhere there is one.
    """

    def __init__(self, query_shape, chunk_size: int, num_features: int):
        self.batch_size, self.length, self.num_kv_heads, self.num_groups, _ = query_shape
        self.chunk_size = chunk_size
        self.num_chunks = -(-self.length // chunk_size)
        lanes = self.batch_size * self.num_kv_heads
        room = lanes
        if jax.default_backend() == "cpu":
            room = max(1, GROUP_FLOATS // (num_features * chunk_size * self.num_groups))
        self.size = max(m for m in range(1, lanes + 1) if lanes % m == 0 and m <= room)
        # Of each step: the group, the chunk, and how many tokens of it are no padding.
        self.lane = np.repeat(np.arange(lanes // self.size, dtype=np.int32), self.num_chunks)
        self.chunk = np.tile(np.arange(self.num_chunks, dtype=np.int32), lanes // self.size)
        self.count = np.minimum(self.length - chunk_size * self.chunk, chunk_size)

    def split(self, x):
        """[B, K, ...] -> [L, m, ...]."""
        return x.reshape(-1, self.size, *x.shape[2:])

    def join(self, x):
        """[L, m, ...] -> [B, K, ...]."""
        return x.reshape(self.batch_size, self.num_kv_heads, *x.shape[2:])

    def split_heads(self, x_K):
        """[K, ...] -> [L, m, ...]."""
        if x_K is None:
            return None
        return self.split(jnp.broadcast_to(x_K, (self.batch_size, *x_K.shape)))

    def split_queries(self, x_BTKGH):
        """[B, T, K, G, H] -> [L c, m, G C, H]; zeros as padding."""
        x = _chunks(x_BTKGH, self.chunk_size).transpose(0, 3, 1, 4, 2, 5)  # [B, K, c, G, C, H]
        return self._steps(x.reshape(*x.shape[:3], -1, x.shape[-1]))

    def join_queries(self, x):
        """[L c, m, G C, H] -> [B, T, K, G, H]."""
        x = self.join(x.reshape(-1, self.num_chunks, *x.shape[1:]).swapaxes(1, 2))
        x = x.reshape(*x.shape[:3], -1, self.chunk_size, x.shape[-1]).transpose(0, 2, 4, 1, 3, 5)
        return x.reshape(self.batch_size, -1, *x.shape[3:])[:, : self.length]

    def split_keys(self, x_BTKH):
        """[B, T, K, H] -> [L c, m, C, H]; zeros as padding."""
        return self.split_queries(x_BTKH[:, :, :, None])

    def split_runs(self, runs):
        """[B, T] -> [L c, m, C]; and of the token before each chunk [L c, m]."""
        if runs is None:
            return None
        runs = _chunks(runs, self.chunk_size, mode="edge")  # [B, c, C]
        before = jnp.pad(runs[:, :-1, -1], ((0, 0), (1, 0)))
        return tuple(
            self._steps(jnp.repeat(x[:, None], self.num_kv_heads, axis=1)) for x in (runs, before)
        )

    def factors(self, log_decay, runs, count, dtype):
        """The factors of a chunk of so many tokens, given its decay [m] and runs, or None."""
        token = jnp.arange(self.chunk_size)
        query_token = jnp.tile(token, self.num_groups)
        age = query_token[:, None] - token
        visible, pair = (age >= 0)[None], None
        if runs is None and log_decay is None:
            return _Factors(visible)
        reads = jnp.ones((1, query_token.size, 1), dtype)
        keeps = (token < count).astype(dtype)[None, :, None]
        lasts = jnp.ones((1, 1, 1), dtype)
        if log_decay is not None:
            log_decay = log_decay[:, None, None]
            pair = jnp.exp(log_decay * jnp.maximum(age, 0))
            reads = reads * jnp.exp(log_decay * (query_token + 1)[:, None])
            keeps = keeps * jnp.exp(log_decay * jnp.maximum(count - 1 - token, 0)[:, None])
            lasts = lasts * jnp.exp(log_decay * count)
        if runs is not None:
            run, before = runs
            after = run[:, -1:]
            query_run = jnp.tile(run, self.num_groups)
            visible = visible & (query_run[:, :, None] == run[:, None])
            reads = reads * (query_run == before[:, None])[..., None]
            keeps = keeps * (run == after)[..., None]
            lasts = lasts * (before[:, None] == after)[..., None]
        return _Factors(visible, pair, reads, keeps, lasts)

    def _steps(self, x):
        """[B, K, c, ...] -> [L c, m, ...]."""
        x = self.split(x).swapaxes(1, 2)
        return x.reshape(-1, *x.shape[2:])


def _at(x, index):
    return None if x is None else x[index]


def _times(x, factor):
    return x if factor is None else x * factor


def _with_ones(value_BTKE):
    return jnp.concatenate([value_BTKE, jnp.ones_like(value_BTKE[..., :1])], axis=-1)


def _chunks(x: jax.Array, chunk_size: int, mode: str = "constant") -> jax.Array:
    """[B, T, ...] -> [B, c, C, ...], padded at the end with zeros (or, "edge", the last entry)."""
    padding = [(0, 0), (0, -x.shape[1] % chunk_size)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding, mode=mode)
    return x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])


def _stacked(state: TaylorState) -> jax.Array:
    """[B, K, P, F]: the denominator beside the numerator."""
    return jnp.concatenate([state.numerator, state.denominator[..., None]], axis=-1)


def _unstacked(state_BKPF: jax.Array) -> TaylorState:
    return TaylorState(numerator=state_BKPF[..., :-1], denominator=state_BKPF[..., -1])
