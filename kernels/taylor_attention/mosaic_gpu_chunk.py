"""Three kernels for the quadratic form inside a chunk: the sums, and their gradients.

    x_ts = q_t . k_s,   w_ts = d^(t-s) w(x_ts)  for s <= t in one chunk and one run
    numerator_t = sum_s w_ts v_s,   denominator_t = sum_s w_ts
    dw_ts = d^(t-s) (dnumerator_t . v_s + ddenominator_t),   dx_ts = dw_ts w'(x_ts)
    dq_t = sum_s dx_ts k_s,   dk_s = sum_t dx_ts q_t,   dv_s = sum_t w_ts dnumerator_t
    da_n = sum_ts dw_ts x_ts^n

Z counts batch rows and query heads, Y batch rows and key heads: Z = Y * group. Products are
bfloat16 with float32 sums; scores and weights stay in registers, as in FlashAttention
(arXiv:2205.14135), without its maximum: a polynomial does not overflow.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.taylor_attention.mosaic_gpu_tiles import (
    ROWS,
    BlockSizes,
    across,
    copy_ahead,
    down,
    launch,
    product,
    smem,
    split_warpgroups,
    take,
)

f32, bf16 = jnp.float32, jnp.bfloat16


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the kernels are specialised to."""

    blocks: BlockSizes
    order: int
    group: int  # query heads that share one key head
    has_decay: bool
    has_runs: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sums(
    spec: Spec,
    query_ZTH: jax.Array,
    key_YTH: jax.Array,
    value_YTE: jax.Array,
    coefficients: jax.Array,
    log_decay: jax.Array,
    run_start: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Numerator [Z, T, E] and denominator [Z, T] over the keys of a query's own chunk.

    Args:
      coefficients: [Z, p+1].
      log_decay: [Z], per token; not read without `spec.has_decay`. A constant.
      run_start: int [Z, T], the first token that a query may see; not read without `spec.has_runs`.
    """
    query, key, value = (x.astype(bf16) for x in (query_ZTH, key_YTH, value_YTE))
    return tuple(_sums(spec, query, key, value, _scalars(coefficients, log_decay), run_start))


def _forward(spec, query, key, value, coefficients, log_decay, run_start):
    query, key, value = (x.value.astype(bf16) for x in (query, key, value))
    scalars = _scalars(coefficients.value, log_decay.value)
    out = tuple(_sums(spec, query, key, value, scalars, run_start.value))
    # An empty tuple among the residuals says that the coefficients are learned.
    learned = () if coefficients.perturbed else None
    return out, (query, key, value, scalars, run_start.value, learned)


def _backward(spec, residuals, cotangents):
    query, key, value, scalars, run_start, learned = residuals
    dnumerator, ddenominator = (
        jnp.zeros(x.shape, f32) if isinstance(x, SymbolicZero) else x for x in cotangents
    )
    arguments = (spec, query, key, value, scalars, run_start, dnumerator.astype(bf16), ddenominator)
    dquery, dcoefficients = _query_gradient(*arguments, learned is not None)
    dkey, dvalue = _key_value_gradient(*arguments)
    return dquery, dkey, dvalue, dcoefficients, None, None


sums.defvjp(_forward, _backward, symbolic_zeros=True)


def _scalars(coefficients, log_decay):
    return jnp.concatenate([coefficients, log_decay[:, None]], axis=1)


def _sums(spec: Spec, query_ZTH, key_YTH, value_YTE, scalars, run_start):
    """A warpgroup keeps 64 queries and passes over the keys of their chunk."""
    blocks = spec.blocks
    num_heads, length, head_dim = query_ZTH.shape
    value_dim = value_YTE.shape[-1]

    def body(
        query_hbm, key_hbm, value_hbm, scalars_hbm, start_hbm, numerator_hbm, denominator_hbm,
        *, query, key, value, start, own, full, free,
    ):  # fmt: skip
        head, place = lax.axis_index("head"), _Place.of_queries(blocks, blocks.keys)

        def compute(warpgroup):
            tokens = pl.ds(place.first + warpgroup * ROWS, ROWS)
            barrier = own.at[warpgroup]
            plgpu.copy_gmem_to_smem(query_hbm.at[head, tokens], query.at[warpgroup], barrier)
            plgpu.copy_gmem_to_smem(start_hbm.at[head, tokens], start.at[warpgroup], barrier)
            plgpu.barrier_wait(barrier)
            weight_of = _Weight(spec, scalars_hbm, head)

            def scope(accumulator):
                def some_keys(masked, step, slot, denominator):
                    score = product(query.at[warpgroup], key.at[slot].transpose((1, 0)))
                    weight = weight_of.polynomial(score) * weight_of.decay(
                        score.shape, place.first + warpgroup * ROWS - place.other(step)
                    )
                    if masked:
                        earliest = down(start[warpgroup], blocks.keys) if spec.has_runs else None
                        age = place.first + warpgroup * ROWS - place.other(step)
                        weight = weight_of.mask(weight, age, earliest, place.other(step))
                    plgpu.wgmma(accumulator, weight.astype(bf16), value.at[slot])
                    return denominator + weight.sum(1)

                denominator = _causal(spec, place, full, free, some_keys, jnp.zeros((ROWS,), f32))
                numerator_hbm[head, tokens] = accumulator[...]
                denominator_hbm[head, tokens] = denominator

            pl.run_scoped(scope, plgpu.ACC((ROWS, value_dim), f32))

        def copies(step, slot):
            keys = pl.ds(place.other(step), blocks.keys)
            yield key_hbm.at[lax.div(head, spec.group), keys], key.at[slot]
            yield value_hbm.at[lax.div(head, spec.group), keys], value.at[slot]

        split_warpgroups(
            blocks,
            compute,
            lambda: copy_ahead(place.num_steps, blocks.stages, full, free, copies),
        )

    return launch(
        body,
        [
            jax.ShapeDtypeStruct((num_heads, length, value_dim), f32),
            jax.ShapeDtypeStruct((num_heads, length), f32),
        ],
        {
            "query": smem(blocks.warpgroups, ROWS, head_dim),
            "start": plgpu.SMEM((blocks.warpgroups, ROWS), jnp.int32),
            "key": smem(blocks.stages, blocks.keys, head_dim),
            "value": smem(blocks.stages, blocks.keys, value_dim),
            "own": plgpu.Barrier(num_barriers=blocks.warpgroups, num_arrivals=2),
            "full": plgpu.Barrier(num_barriers=blocks.stages, num_arrivals=2),
            "free": plgpu.Barrier(num_barriers=blocks.stages, num_arrivals=blocks.warpgroups),
        },
        {"block": length // blocks.tokens, "head": num_heads},
        blocks,
        query_ZTH,
        key_YTH,
        value_YTE,
        scalars,
        run_start,
    )


def _query_gradient(
    spec: Spec, query_ZTH, key_YTH, value_YTE, scalars, run_start, dnumerator, ddenominator, learned
):
    """dq, and da_n if the coefficients are learned; a pass over the keys, as in `_sums`."""
    blocks = spec.blocks
    num_heads, length, head_dim = query_ZTH.shape
    value_dim = value_YTE.shape[-1]
    num_powers = spec.order + 1 if learned else 0

    def body(
        query_hbm, key_hbm, value_hbm, scalars_hbm, start_hbm, dnumerator_hbm, ddenominator_hbm,
        dquery_hbm, dcoefficients_hbm,
        *, query, key, value, start, dnumerator, ddenominator, own, full, free,
    ):  # fmt: skip
        head, place = lax.axis_index("head"), _Place.of_queries(blocks, blocks.backward_keys)

        def compute(warpgroup):
            tokens = pl.ds(place.first + warpgroup * ROWS, ROWS)
            for source, destination in (
                (query_hbm, query),
                (start_hbm, start),
                (dnumerator_hbm, dnumerator),
                (ddenominator_hbm, ddenominator),
            ):
                plgpu.copy_gmem_to_smem(
                    source.at[head, tokens], destination.at[warpgroup], own.at[warpgroup]
                )
            plgpu.barrier_wait(own.at[warpgroup])
            weight_of = _Weight(spec, scalars_hbm, head)

            def scope(accumulator):
                def some_keys(masked, step, slot, powers):
                    score = product(query.at[warpgroup], key.at[slot].transpose((1, 0)))
                    dweight = product(dnumerator.at[warpgroup], value.at[slot].transpose((1, 0)))
                    age = place.first + warpgroup * ROWS - place.other(step)
                    dweight = dweight + down(ddenominator[warpgroup], blocks.backward_keys)
                    dweight = dweight * weight_of.decay(score.shape, age)
                    if masked:
                        earliest = (
                            down(start[warpgroup], blocks.backward_keys) if spec.has_runs else None
                        )
                        dweight = weight_of.mask(dweight, age, earliest, place.other(step))
                    dscore = dweight * weight_of.slope(score)
                    plgpu.wgmma(accumulator, dscore.astype(bf16), key.at[slot])
                    totals = []
                    for n, power in enumerate(powers):
                        dweight = dweight * score if n else dweight
                        totals.append(power + dweight.sum(1))
                    return tuple(totals)

                powers = (jnp.zeros((ROWS,), f32),) * num_powers
                powers = _causal(spec, place, full, free, some_keys, powers)
                dquery_hbm[head, tokens] = accumulator[...]
                for n, power in enumerate(powers):
                    dcoefficients_hbm[head, n, tokens] = power

            pl.run_scoped(scope, plgpu.ACC((ROWS, head_dim), f32))

        def copies(step, slot):
            keys = pl.ds(place.other(step), blocks.backward_keys)
            yield key_hbm.at[lax.div(head, spec.group), keys], key.at[slot]
            yield value_hbm.at[lax.div(head, spec.group), keys], value.at[slot]

        split_warpgroups(
            blocks,
            compute,
            lambda: copy_ahead(place.num_steps, blocks.stages, full, free, copies),
        )

    dquery, dcoefficients = launch(
        body,
        [
            jax.ShapeDtypeStruct(query_ZTH.shape, f32),
            jax.ShapeDtypeStruct((num_heads, max(num_powers, 1), length), f32),
        ],
        {
            "query": smem(blocks.warpgroups, ROWS, head_dim),
            "start": plgpu.SMEM((blocks.warpgroups, ROWS), jnp.int32),
            "dnumerator": smem(blocks.warpgroups, ROWS, value_dim),
            "ddenominator": plgpu.SMEM((blocks.warpgroups, ROWS), f32),
            "key": smem(blocks.stages, blocks.backward_keys, head_dim),
            "value": smem(blocks.stages, blocks.backward_keys, value_dim),
            "own": plgpu.Barrier(num_barriers=blocks.warpgroups, num_arrivals=4),
            "full": plgpu.Barrier(num_barriers=blocks.stages, num_arrivals=2),
            "free": plgpu.Barrier(num_barriers=blocks.stages, num_arrivals=blocks.warpgroups),
        },
        {"block": length // blocks.tokens, "head": num_heads},
        blocks,
        query_ZTH,
        key_YTH,
        value_YTE,
        scalars,
        run_start,
        dnumerator,
        ddenominator,
    )
    if not learned:
        return dquery, jnp.zeros((num_heads, spec.order + 1), f32)
    return dquery, dcoefficients.sum(-1)


def _key_value_gradient(
    spec: Spec, query_ZTH, key_YTH, value_YTE, scalars, run_start, dnumerator, ddenominator
):
    """dk and dv: a warpgroup keeps 64 keys and passes over the later queries, transposed."""
    blocks, group = spec.blocks, spec.group
    num_heads, length, head_dim = key_YTH.shape
    value_dim = value_YTE.shape[-1]

    def body(
        query_hbm, key_hbm, value_hbm, scalars_hbm, start_hbm, dnumerator_hbm, ddenominator_hbm,
        dkey_hbm, dvalue_hbm,
        *, query, key, value, start, dnumerator, ddenominator, own, full, free,
    ):  # fmt: skip
        head, place = lax.axis_index("head"), _Place.of_keys(blocks, blocks.backward_keys)

        def compute(warpgroup):
            first_key = place.first + warpgroup * ROWS
            tokens = pl.ds(first_key, ROWS)
            barrier = own.at[warpgroup]
            plgpu.copy_gmem_to_smem(key_hbm.at[head, tokens], key.at[warpgroup], barrier)
            plgpu.copy_gmem_to_smem(value_hbm.at[head, tokens], value.at[warpgroup], barrier)
            plgpu.barrier_wait(barrier)

            def scope(dkey, dvalue):
                def some_queries(weight_of, masked, step, slot, _):
                    first_query = place.other(lax.rem(step, place.num_steps))
                    score = product(key.at[warpgroup], query.at[slot].transpose((1, 0)))
                    dweight = product(value.at[warpgroup], dnumerator.at[slot].transpose((1, 0)))
                    dweight = dweight + across(ddenominator[slot], ROWS)
                    decay = weight_of.decay(score.shape, first_query - first_key, queries=1)
                    weight, dweight = weight_of.polynomial(score) * decay, dweight * decay
                    if masked:
                        earliest = across(start[slot], ROWS) if spec.has_runs else None
                        visible = functools.partial(
                            weight_of.mask,
                            age=first_query - first_key,
                            earliest=earliest,
                            first_key=first_key,
                            queries=1,
                        )
                        weight, dweight = visible(weight), visible(dweight)
                    dscore = dweight * weight_of.slope(score)
                    plgpu.wgmma(dvalue, weight.astype(bf16), dnumerator.at[slot])
                    plgpu.wgmma(dkey, dscore.astype(bf16), query.at[slot])
                    return ()

                def one_head(member, _):
                    weight_of = _Weight(spec, scalars_hbm, head * group + member)
                    queries = functools.partial(some_queries, weight_of)
                    start_step = member * place.num_steps
                    _causal(spec, place, full, free, queries, (), start_step)
                    return ()

                lax.fori_loop(0, group, one_head, ())
                dkey_hbm[head, tokens] = dkey[...]
                dvalue_hbm[head, tokens] = dvalue[...]

            pl.run_scoped(
                scope, plgpu.ACC((ROWS, head_dim), f32), plgpu.ACC((ROWS, value_dim), f32)
            )

        def copies(step, slot):
            z = head * group + lax.div(step, place.num_steps)
            queries = pl.ds(place.other(lax.rem(step, place.num_steps)), blocks.backward_keys)
            yield query_hbm.at[z, queries], query.at[slot]
            yield dnumerator_hbm.at[z, queries], dnumerator.at[slot]
            yield ddenominator_hbm.at[z, queries], ddenominator.at[slot]
            yield start_hbm.at[z, queries], start.at[slot]

        split_warpgroups(
            blocks,
            compute,
            lambda: copy_ahead(group * place.num_steps, blocks.stages, full, free, copies),
        )

    return launch(
        body,
        [
            jax.ShapeDtypeStruct(key_YTH.shape, f32),
            jax.ShapeDtypeStruct(value_YTE.shape, f32),
        ],
        {
            "key": smem(blocks.warpgroups, ROWS, head_dim),
            "value": smem(blocks.warpgroups, ROWS, value_dim),
            "query": smem(blocks.stages, blocks.backward_keys, head_dim),
            "dnumerator": smem(blocks.stages, blocks.backward_keys, value_dim),
            "ddenominator": plgpu.SMEM((blocks.stages, blocks.backward_keys), f32),
            "start": plgpu.SMEM((blocks.stages, blocks.backward_keys), jnp.int32),
            "own": plgpu.Barrier(num_barriers=blocks.warpgroups, num_arrivals=2),
            "full": plgpu.Barrier(num_barriers=blocks.stages, num_arrivals=4),
            "free": plgpu.Barrier(num_barriers=blocks.stages, num_arrivals=blocks.warpgroups),
        },
        {"block": length // blocks.tokens, "head": num_heads},
        blocks,
        query_ZTH,
        key_YTH,
        value_YTE,
        scalars,
        run_start,
        dnumerator,
        ddenominator,
    )


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a block of threads stands in its chunk, and its pass over the other tokens.

    Attributes:
      first: its first own token.
      origin: the first token of the pass.
      width: tokens of a step.
      num_steps: steps of the pass.
      parts: (begin, end, whether on the diagonal) of the steps; off the diagonal all is visible.
    """

    first: typing.Any
    origin: typing.Any
    width: int
    num_steps: typing.Any
    parts: tuple[tuple[typing.Any, typing.Any, bool], ...]

    @classmethod
    def of_queries(cls, blocks: BlockSizes, width: int) -> "_Place":
        """From the beginning of the chunk to the block's own tokens."""
        first = lax.axis_index("block") * blocks.tokens
        origin = lax.div(first, blocks.chunk) * blocks.chunk
        diagonal = lax.div(first - origin, width)
        end = diagonal + blocks.tokens // width
        return cls(first, origin, width, end, ((0, diagonal, False), (diagonal, end, True)))

    @classmethod
    def of_keys(cls, blocks: BlockSizes, width: int) -> "_Place":
        """From the block's own tokens to the end of the chunk."""
        first = lax.axis_index("block") * blocks.tokens
        end = lax.div((lax.div(first, blocks.chunk) + 1) * blocks.chunk - first, width)
        diagonal = blocks.tokens // width
        return cls(first, first, width, end, ((0, diagonal, True), (diagonal, end, False)))

    def other(self, step):
        """The first token of a step."""
        return self.origin + step * self.width


def _causal(spec: Spec, place: _Place, full, free, body, carry, offset=0):
    """carry = body(masked, step, slot, carry) over a pass."""
    for begin, end, diagonal in place.parts:
        step = functools.partial(body, diagonal or spec.has_runs)
        begin, end = offset + begin, offset + end
        carry = take(begin, end, spec.blocks.stages, full, free, step, carry)
    return carry


class _Weight:
    """w(x), w'(x), decay and mask of one head on a tile of scores; its coefficients are scalars.

    `queries` is the axis of the tile along which queries lie; `age` is the first query's position
    less the first key's.
    """

    def __init__(self, spec: Spec, scalars_hbm, head):
        self.spec = spec
        self.coefficients = [scalars_hbm[head, n] for n in range(spec.order + 1)]
        self.log_decay = scalars_hbm[head, spec.order + 1] if spec.has_decay else None

    def polynomial(self, score):
        return _horner(score, self.coefficients)

    def slope(self, score):
        slopes = [n * a for n, a in enumerate(self.coefficients)][1:]
        return _horner(score, slopes or [jnp.zeros((), f32)])

    def decay(self, shape, age, queries: int = 0):
        if self.log_decay is None:
            return 1.0
        age = self._age(shape, age, queries).astype(f32)
        return jnp.exp(self.log_decay * jnp.maximum(age, 0.0))

    def mask(self, weight, age, earliest, first_key, queries: int = 0):
        """0 where the key is later than the query, or earlier than what the query may see."""
        visible = self._age(weight.shape, age, queries) >= 0
        if earliest is not None:
            key = lax.broadcasted_iota(jnp.int32, weight.shape, 1 - queries) + first_key
            visible = visible & (key >= earliest)
        return jnp.where(visible, weight, 0.0)

    def _age(self, shape, age, queries):
        query = lax.broadcasted_iota(jnp.int32, shape, queries)
        return query - lax.broadcasted_iota(jnp.int32, shape, 1 - queries) + age


def _horner(x, coefficients):
    result = jnp.full(x.shape, coefficients[-1], f32)
    for a in coefficients[-2::-1]:
        result = result * x + a
    return result
