"""Linear time in plain JAX: the quadratic form inside a chunk, the state across chunks.

    sums_t = f_t phi(q_t) S + sum_{s<=t, s in the chunk} d^(t-s) w(x_ts) [v_s, 1]
    S'     = b S + sum_{s in the chunk} a_s phi(k_s) [v_s, 1]

S is what the chunks before have left; the factors f, a, b hold the decay and forget other runs. A
scan over chunks carries S. The backward pass is by hand: the forward scan saves S before every
chunk (and no feature), one reversed scan carries the cotangent of S and gives the cotangents of
query, key and value chunk by chunk.

Layout: tokens come last and a row of ones stands below the values, so that numerator and
denominator share their products. Letters: c chunks, g = G C the queries of a chunk, s its keys,
F = E + 1. The G query heads of a key head lie side by side.
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
GROUP_FLOATS = 1 << 19  # features of one group of lanes: what a second-level cache holds


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
        shape = (batch_size, num_kv_heads, value_dim + 1, num_features)
        state_BKFP = jnp.zeros_like(key_BTKH, coefficients.dtype, shape=shape)
    else:
        state_BKFP = _stacked(initial_state) * one
    sums_BTKGF, state_BKFP = _sums(
        (min(chunk_size or CHUNK_SIZE, length), precision),
        query_BTKGH,
        key_BTKH,
        value_BTKE,
        jnp.broadcast_to(coefficients.reshape(-1, order + 1), (num_kv_heads, order + 1)),
        state_BKFP,
        log_decay_K,
        runs,
    )
    numerator, denominator = sums_BTKGF[..., :-1], sums_BTKGF[..., -1]
    return (numerator, denominator), _unstacked(state_BKFP) if return_state else None


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
def _sums(static, query_BTKGH, key_BTKH, value_BTKE, coefficients_K, state_BKFP, log_decay_K, runs):
    """(sums [B, T, K, G, F], the state after the last token [B, K, F, P])."""
    sums, state, _ = _forward(
        static,
        query_BTKGH,
        key_BTKH,
        value_BTKE,
        coefficients_K,
        state_BKFP,
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
    order = coefficients_K.shape[-1] - 1
    lanes = _Lanes(query.shape, chunk_size, state.shape[-1])

    def one_group(group):
        query, key, value, coefficients, state, log_decay, runs = group
        weights = features.weights(coefficients, query.shape[-2])[:, None]  # [m, 1, P]
        factors_of = lanes.factors(log_decay, dtype)

        def one_chunk(state, chunk):
            query, key, value, runs, count = chunk
            query, key, value = query.astype(dtype), key.astype(dtype), value.astype(dtype)
            factors = factors_of(runs, count)
            score = einsum("mhs,mhg->msg", key, query)
            weight = features.polynomial(score, coefficients[:, None, None])
            weight = jnp.where(factors.visible, weight, 0)
            past = einsum("mfp,mpg->mfg", state * weights, features.products(query, order))
            sums = einsum("mfs,msg->mfg", value, _times(weight, factors.pair))
            sums = sums + _times(past, factors.query)
            after = _times(state, factors.state) + einsum(
                "mfs,mps->mfp", _times(value, factors.key), features.products(key, order)
            )
            return after, (sums, state if save else None)

        return jax.lax.scan(one_chunk, state, (query, key, value, runs, lanes.counts))

    state, (sums, saved) = jax.lax.map(
        one_group,
        (
            lanes.split_queries(query),
            lanes.split_keys(key),
            lanes.split_keys(_with_ones(value)),
            lanes.split(jnp.broadcast_to(coefficients_K, (query.shape[0], *coefficients_K.shape))),
            lanes.split(state),
            lanes.split_decay(log_decay_K),
            lanes.split_runs(runs),
        ),
    )
    return lanes.join_queries(sums), lanes.join(state), saved


def _sums_bwd(static, residuals, cotangents):
    query, key, value, coefficients_K, log_decay_K, runs, saved = residuals
    sums_bar, state_bar = cotangents
    chunk_size, precision = static
    dtype = coefficients_K.dtype
    einsum = functools.partial(jnp.einsum, precision=precision)
    order = coefficients_K.shape[-1] - 1
    lanes = _Lanes(query.shape, chunk_size, state_bar.shape[-1])

    def one_group(group):
        query, key, value, sums_bar, saved, coefficients, state_bar, log_decay, runs = group
        weights = features.weights(coefficients, query.shape[-2])[:, None]
        slope = coefficients[:, 1:] * np.arange(1, order + 1, dtype=dtype)  # of w'
        factors_of = lanes.factors(log_decay, dtype)

        def one_chunk(carry, chunk):
            after_bar, inner_bar, monomial_bar = carry
            query, key, value, sums_bar, before, runs, count = chunk
            query, key, value = query.astype(dtype), key.astype(dtype), value.astype(dtype)
            factors = factors_of(runs, count)
            # The queries read the state before the chunk.
            query_, key_ = features.away_from_zero(query), features.away_from_zero(key)
            phi_query, phi_key = features.products(query_, order), features.products(key_, order)
            past_bar = _times(sums_bar, factors.query)
            phi_query_bar = einsum("mfp,mfg->mpg", before * weights, past_bar)
            read_bar = einsum("mfg,mpg->mfp", past_bar, phi_query)
            before_bar = _times(after_bar, factors.state) + weights * read_bar
            # The keys write the state after it.
            phi_key_bar = einsum("mfp,mfs->mps", after_bar, _times(value, factors.key))
            value_bar = _times(einsum("mfp,mps->mfs", after_bar, phi_key), factors.key)
            # The weights inside the chunk.
            score = einsum("mhs,mhg->msg", key, query)
            weight = features.polynomial(score, coefficients[:, None, None])
            weight = _times(jnp.where(factors.visible, weight, 0), factors.pair)
            value_bar = value_bar + einsum("mfg,msg->mfs", sums_bar, weight)
            weight_bar = _times(einsum("mfs,mfg->msg", value, sums_bar), factors.pair)
            weight_bar = jnp.where(factors.visible, weight_bar, 0)
            query_bar, key_bar = jnp.zeros_like(query), jnp.zeros_like(key)
            if order:
                score_bar = weight_bar * features.polynomial(score, slope[:, None, None])
                query_bar = einsum("mhs,msg->mhg", key, score_bar)
                query_bar += features.pull_back(query_, phi_query, phi_query_bar, order)
                key_bar = einsum("mhg,msg->mhs", query, score_bar)
                key_bar += features.pull_back(key_, phi_key, phi_key_bar, order)
            power_bars = [weight_bar.sum((1, 2))]
            for _ in range(order):
                weight_bar = weight_bar * score
                power_bars.append(weight_bar.sum((1, 2)))
            inner_bar += jnp.stack(power_bars, -1)
            monomial_bar += (before * read_bar).sum(1)
            return (before_bar, inner_bar, monomial_bar), (
                query_bar,
                key_bar,
                value_bar[:, :-1],
            )

        zeros = (
            jnp.zeros_like(sums_bar, dtype, shape=coefficients.shape),
            jnp.zeros_like(sums_bar, dtype, shape=state_bar[:, 0].shape),
        )
        chunks = query, key, value, sums_bar, saved, runs, lanes.counts
        carry, bars = jax.lax.scan(one_chunk, (state_bar, *zeros), chunks, reverse=True)
        before_bar, inner_bar, monomial_bar = carry
        inner_bar += features.weights_transpose(monomial_bar, query.shape[-2], order)
        return before_bar, inner_bar, *bars

    state_bar, coefficients_bar, query_bar, key_bar, value_bar = jax.lax.map(
        one_group,
        (
            lanes.split_queries(query),
            lanes.split_keys(key),
            lanes.split_keys(_with_ones(value)),
            lanes.split_queries(sums_bar),
            saved,
            lanes.split(jnp.broadcast_to(coefficients_K, (query.shape[0], *coefficients_K.shape))),
            lanes.split(state_bar),
            lanes.split_decay(log_decay_K),
            lanes.split_runs(runs),
        ),
    )
    return (
        lanes.join_queries(query_bar).astype(query.dtype),
        lanes.join_queries(key_bar)[:, :, :, 0].astype(key.dtype),
        lanes.join_queries(value_bar)[:, :, :, 0].astype(value.dtype),
        lanes.join(coefficients_bar).sum(0),
        lanes.join(state_bar),
        None,  # decay and runs are constants
        None,
    )


_sums.defvjp(_sums_fwd, _sums_bwd)


class _Factors(typing.NamedTuple):
    """What decay and runs multiply in a chunk; None where neither is given.

    Attributes:
      visible: bool [m or 1, C, G C], whether the key (row) is seen by the query (column).
      pair: [m, C, G C], the decay from key to query.
      query: [m, 1, G C], of what a token reads from the state; 0 for one of a later run.
      key: [m, 1, C], of what a token adds to the state; 0 if its run ends in the chunk.
      state: [m, 1, 1], of the state before the chunk in the state after it.
    """

    visible: jax.Array
    pair: jax.Array | None = None
    query: jax.Array | None = None
    key: jax.Array | None = None
    state: jax.Array | None = None


class _Lanes:
    """The B K pairs of row and key head, cut into groups of m that are worked on side by side.

    A group is small enough for its features to stay near the processor.
    """

    def __init__(self, query_shape, chunk_size: int, num_features: int):
        self.batch_size, self.length, self.num_kv_heads, self.num_groups, _ = query_shape
        self.chunk_size = chunk_size
        self.num_chunks = -(-self.length // chunk_size)
        lanes = self.batch_size * self.num_kv_heads
        room = GROUP_FLOATS // (num_features * chunk_size * self.num_groups)
        self.size = max(m for m in range(1, lanes + 1) if lanes % m == 0 and m <= max(2, room))
        # Tokens that are no padding, of each chunk.
        first = chunk_size * np.arange(self.num_chunks)
        self.counts = np.minimum(self.length - first, chunk_size).astype(np.int32)

    def split(self, x):
        """[B, K, ...] -> [L / m, m, ...]."""
        return x.reshape(-1, self.size, *x.shape[2:])

    def join(self, x):
        """[L / m, m, ...] -> [B, K, ...]."""
        return x.reshape(self.batch_size, self.num_kv_heads, *x.shape[2:])

    def split_queries(self, x_BTKGH):
        """[B, T, K, G, H] -> [L / m, c, m, H, G C]; zeros as padding."""
        x = self._chunks(x_BTKGH).transpose(0, 3, 1, 5, 4, 2)  # [B, K, c, H, G, C]
        return self.split(x.reshape(*x.shape[:4], -1)).swapaxes(1, 2)

    def join_queries(self, x):
        """[L / m, c, m, H, G C] -> [B, T, K, G, H]."""
        x = self.join(x.swapaxes(1, 2))
        x = x.reshape(*x.shape[:4], -1, self.chunk_size).transpose(0, 2, 5, 1, 4, 3)
        return x.reshape(self.batch_size, -1, *x.shape[3:])[:, : self.length]

    def split_keys(self, x_BTKH):
        """[B, T, K, H] -> [L / m, c, m, H, C]; zeros as padding."""
        return self.split_queries(x_BTKH[:, :, :, None])

    def split_decay(self, log_decay_K):
        """[K] -> [L / m, m]."""
        if log_decay_K is None:
            return None
        return self.split(jnp.broadcast_to(log_decay_K, (self.batch_size, self.num_kv_heads)))

    def split_runs(self, runs):
        """[B, T] -> [L / m, c, m, C]; and of the token before each chunk [L / m, c, m]."""
        if runs is None:
            return None
        runs = self._chunks(runs, mode="edge")  # [B, c, C]
        before = jnp.pad(runs[:, :-1, -1], ((0, 0), (1, 0)))
        return tuple(
            self.split(jnp.repeat(x[:, None], self.num_kv_heads, axis=1)).swapaxes(1, 2)
            for x in (runs, before)
        )

    def factors(self, log_decay, dtype):
        """A function of the runs of a chunk and its number of tokens; decay is [m] or None."""
        token = jnp.arange(self.chunk_size)
        query_token = jnp.tile(token, self.num_groups)
        age = query_token - token[:, None]
        pair = None
        if log_decay is not None:
            log_decay = log_decay[:, None, None]
            pair = jnp.exp(log_decay * jnp.maximum(age, 0))

        def factors_of(runs, count):
            visible = (age >= 0)[None]
            if runs is None and log_decay is None:
                return _Factors(visible)
            reads = jnp.ones((1, 1, query_token.size), dtype)
            keeps, lasts = (token < count).astype(dtype)[None, None], jnp.ones((1, 1, 1), dtype)
            if log_decay is not None:
                reads = reads * jnp.exp(log_decay * (query_token + 1))
                keeps = keeps * jnp.exp(log_decay * jnp.maximum(count - 1 - token, 0))
                lasts = lasts * jnp.exp(log_decay * count)
            if runs is not None:
                run, before = runs
                after = run[:, -1:]
                query_run = jnp.tile(run, self.num_groups)
                visible = visible & (run[:, :, None] == query_run[:, None])
                reads = reads * (query_run == before[:, None])[:, None]
                keeps = keeps * (run == after)[:, None]
                lasts = lasts * (before[:, None] == after)[:, None]
            return _Factors(visible, pair, reads, keeps, lasts)

        return factors_of

    def _chunks(self, x, mode: str = "constant"):
        """[B, T, ...] -> [B, c, C, ...], padded at the end with zeros (or the last entry)."""
        return _chunks(x, self.chunk_size, mode)


def _times(x, factor):
    return x if factor is None else x * factor


def _with_ones(value_BTKE):
    return jnp.concatenate([value_BTKE, jnp.ones_like(value_BTKE[..., :1])], axis=-1)


def _chunks(x: jax.Array, chunk_size: int, mode: str = "constant") -> jax.Array:
    padding = [(0, 0), (0, -x.shape[1] % chunk_size)] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding, mode=mode)
    return x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])


def _stacked(state: TaylorState) -> jax.Array:
    """[B, K, F, P]: the numerator above the denominator."""
    numerator = state.numerator.swapaxes(-1, -2)
    return jnp.concatenate([numerator, state.denominator[..., None, :]], axis=-2)


def _unstacked(state_BKFP: jax.Array) -> TaylorState:
    return TaylorState(
        numerator=state_BKFP[..., :-1, :].swapaxes(-1, -2), denominator=state_BKFP[..., -1, :]
    )
