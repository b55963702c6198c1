"""What queries read from the states before their chunks, closed under differentiation.

    sums    U_c = sum_{t in c} phi(k_t) v_t^T               what chunk c adds to the state
    prefix  S_{c+1} = gate_c S_c + U_c                      the state before every chunk
    read    out_t = phi(q_t) (weights * S_c)                what the queries of chunk c read

The gradients are the same kernels with their operands exchanged, the prefix backwards, and

    slopes  dphi_t = S_c y_t, folded into the two factors of phi = left x right

Z counts batch rows and query heads, Y batch rows and key heads, C chunks, A left monomials, W
columns of the right factor, F the features of a tile (see `mosaic_gpu_tiles`). A state is
[Y, C, tiles, E, F]; one state may serve several consecutive heads (`group`). The factors carry
decay and masks already. Products are bfloat16 with float32 sums; the running state is float32, a
bfloat16 copy of it is what is read.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.taylor_attention.mosaic_gpu_tiles import (
    COLUMNS,
    COMPILER_PARAMS,
    ROWS,
    BlockSizes,
    Plan,
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
MAX_ROW = 512  # numbers of a state that one warpgroup carries: 16 bytes for each thread


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the kernels are specialised to."""

    plan: Plan
    blocks: BlockSizes
    group: int  # query heads of one key head

    @property
    def keys(self) -> "Spec":
        """For keys: each head of them has a state of its own."""
        return dataclasses.replace(self, group=1)

    def queries(self, weights, gates) -> "Spec":
        """For queries of states that all heads of a group share, or of one state per head."""
        return self if len(weights) == len(gates) else self.keys


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recall(
    spec: Spec,
    query_left: jax.Array,
    query_right: jax.Array,
    key_left: jax.Array,
    key_right: jax.Array,
    value: jax.Array,
    first: jax.Array,
    weights: jax.Array,
    gates: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What every query reads from the keys before its chunk: [Z, T, E]; and the last state.

    Args:
      query_left, query_right: [Z, C, A, chunk] and [Z, T, W].
      key_left, key_right, value: [Y, C, A, chunk], [Y, T, W] and [Y, T, E].
      first: [Y, tiles, E, F], the state before the first chunk.
      weights: [Y, tiles, 1, F], what every feature is multiplied with when it is read; or [Z, ...]
        if the heads that share a state differ in it.
      gates: [Y, C], a constant.
    """
    factors = _narrowed(query_left, query_right, key_left, key_right, value)
    out, last, _ = _recall(spec, factors, first, weights, gates)
    return out, last


def _narrowed(*arrays):
    return tuple(x.astype(bf16) for x in arrays)


def _recall(spec, factors, first, weights, gates):
    """Also returns the weighted states that the queries read."""
    query_left, query_right, key_left, key_right, value = factors
    added = _sums(spec.keys, key_left, key_right, value)
    before, last = _prefix(added, first, gates, weights, bf16)
    return _read(spec.queries(weights, gates), query_left, query_right, before), last, before


def _recall_forward(spec, *arguments):
    *factors, first, weights, gates = (x.value for x in arguments)
    factors = _narrowed(*factors)
    out, last, before = _recall(spec, factors, first, weights, gates)
    plain = None
    if arguments[-2].perturbed:  # learned coefficients
        key_left, key_right, value = factors[2:]
        added = _sums(spec.keys, key_left, key_right, value)
        plain, _ = _prefix(added, first, gates, None, bf16)
    return (out, last), (*factors, weights, gates, before, plain)


def _recall_backward(spec, residuals, cotangents):
    query_left, query_right, key_left, key_right, value, weights, gates, before, plain = residuals
    out_bar, last_bar = cotangents
    if isinstance(last_bar, SymbolicZero):
        last_bar = jnp.zeros(last_bar.shape, f32)
    if isinstance(out_bar, SymbolicZero):
        out_bar = jnp.zeros(out_bar.shape, f32)
    out_bar = out_bar.astype(bf16)
    queries = spec.queries(weights, gates)
    query_bars = _slopes(queries, query_left, query_right, out_bar, before)
    before_bar = _sums(queries, query_left, query_right, out_bar)
    weights_bar = None
    if plain is not None:
        shared = before_bar.reshape(*plain.shape[:1], -1, *plain.shape[1:])  # [Y, 1 or group, ...]
        weights_bar = jnp.einsum("ycnef,ygcnef->ygnf", plain.astype(f32), shared)
        weights_bar = weights_bar.reshape(weights.shape)
    added_bar, first_bar = _prefix_backward(before_bar, last_bar, gates, weights, bf16)
    key_bars = _slopes(spec.keys, key_left, key_right, value, added_bar)
    value_bar = _read(spec.keys, key_left, key_right, added_bar)
    return *query_bars, *key_bars, value_bar, first_bar, weights_bar, None


recall.defvjp(_recall_forward, _recall_backward, symbolic_zeros=True)


@jax.custom_vjp
def prefix(added: jax.Array, first: jax.Array, gates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """S_0 = first, S_{c+1} = gate_c S_c + added_c: all S_c before a chunk, and the last one.

    Args:
      added: [Y, C, ...], a multiple of 128 numbers per chunk.
      first: [Y, ...].
      gates: [Y, C], a constant.
    """
    return _prefix(added, first, gates, None, f32)


def _prefix_vjp(gates, bars):
    before_bar, last_bar = bars
    return *_prefix_backward(before_bar, last_bar, gates, None, f32), None


prefix.defvjp(
    lambda added, first, gates: (_prefix(added, first, gates, None, f32), gates), _prefix_vjp
)


def _prefix(added, first, gates, weights, dtype):
    """A block of threads carries some numbers of one state over all chunks.

    Returns:
      The states before the chunks in `dtype`, times the weights (if any) and once per row of
      them; and the state after the last chunk in float32.
    """
    num_heads, num_chunks, *inner = added.shape
    members = 1 if weights is None else weights.shape[0] // num_heads
    size = math.prod(inner)
    width = math.gcd(size, MAX_ROW)

    def body(added_hbm, first_hbm, gates_hbm, *refs):
        *weights_hbm, before_hbm, last_hbm = refs
        head, columns = lax.axis_index("head"), pl.ds(lax.axis_index("block") * width, width)
        state_head = lax.div(head, members)
        weight = weights_hbm[0][head, columns] if weights_hbm else 1.0

        def one_chunk(chunk, state):
            before_hbm[head, chunk, columns] = (state * weight).astype(dtype)
            return gates_hbm[state_head, chunk] * state + added_hbm[state_head, chunk, columns]

        state = lax.fori_loop(0, num_chunks, one_chunk, first_hbm[state_head, columns])

        @pl.when(lax.rem(head, members) == 0)
        def write():
            last_hbm[state_head, columns] = state

    operands = [added.reshape(num_heads, num_chunks, size), first.reshape(num_heads, size), gates]
    if weights is not None:
        operands.append(jnp.broadcast_to(weights, (len(weights), *inner)).reshape(-1, size))
    before, last = _over_states(
        body,
        [
            jax.ShapeDtypeStruct((num_heads * members, num_chunks, size), dtype),
            jax.ShapeDtypeStruct((num_heads, size), f32),
        ],
        {"block": size // width, "head": num_heads * members},
        *operands,
    )
    return before.reshape(-1, num_chunks, *inner), last.reshape(num_heads, *inner)


def _prefix_backward(before_bar, last_bar, gates, weights, dtype):
    """The cotangents of `added` (in `dtype`) and `first`, given those of what `_prefix` returns."""
    num_heads, num_chunks = gates.shape
    inner = last_bar.shape[1:]
    members = before_bar.shape[0] // num_heads
    size = math.prod(inner)
    width = math.gcd(size, MAX_ROW)

    def body(before_hbm, last_hbm, gates_hbm, *refs):
        *weights_hbm, added_hbm, first_hbm = refs
        head, columns = lax.axis_index("head"), pl.ds(lax.axis_index("block") * width, width)

        def one_chunk(step, state):
            chunk = num_chunks - 1 - step
            added_hbm[head, chunk, columns] = state.astype(dtype)
            state = gates_hbm[head, chunk] * state
            for member in range(members):
                bar = before_hbm[head * members + member, chunk, columns]
                if weights_hbm:
                    bar = bar * weights_hbm[0][head * members + member, columns]
                state = state + bar
            return state

        state = lax.fori_loop(0, num_chunks, one_chunk, last_hbm[head, columns])
        first_hbm[head, columns] = state

    operands = [before_bar.reshape(-1, num_chunks, size), last_bar.reshape(num_heads, size), gates]
    if weights is not None:
        operands.append(jnp.broadcast_to(weights, (len(weights), *inner)).reshape(-1, size))
    added_bar, first_bar = _over_states(
        body,
        [
            jax.ShapeDtypeStruct((num_heads, num_chunks, size), dtype),
            jax.ShapeDtypeStruct((num_heads, size), f32),
        ],
        {"block": size // width, "head": num_heads},
        *operands,
    )
    return added_bar.reshape(num_heads, num_chunks, *inner), first_bar.reshape(num_heads, *inner)


def _over_states(body, out_type, grid, *operands):
    """One warpgroup per point of the grid; no tensor cores, no shared memory."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        compiler_params=COMPILER_PARAMS,
    )(*operands)


def _sums(spec: Spec, left_ZCAt, right_ZTW, value_ZTE):
    """A block of threads sums one tile per warpgroup for 64 columns of the value over one chunk.

    S^T [E, F] = (value^T * left_a) [E, tokens] x right [tokens, W]: the scaled value is built in
    registers, the right factor goes from memory to the tensor cores untouched.
    """
    plan, blocks, group = spec.plan, spec.blocks, spec.group
    num_heads, length, value_dim = value_ZTE.shape
    num_chunks, per_chunk = length // blocks.chunk, blocks.chunk // ROWS

    def body(left_hbm, right_hbm, value_hbm, state_hbm, *, left, right, value, full, free):
        head, chunk = lax.axis_index("head"), lax.axis_index("chunk")
        first_tile = lax.axis_index("tile") * blocks.warpgroups
        rows = pl.ds(lax.axis_index("width") * ROWS, ROWS)
        num_steps = group * per_chunk

        def copies(step, slot):
            z = head * group + lax.div(step, per_chunk)
            first = lax.rem(step, per_chunk) * ROWS
            tokens = pl.ds(chunk * blocks.chunk + first, ROWS)
            yield right_hbm.at[z, tokens], right.at[slot]
            yield value_hbm.at[z, rows, tokens], value.at[slot]
            for w in range(blocks.warpgroups):
                first_left = sum(
                    jnp.where(_in_run(run, first_tile + w), run.left_of(first_tile + w), 0)
                    for run in plan.runs
                )
                lefts = pl.ds(first_left, plan.lefts_per_tile)
                yield left_hbm.at[z, chunk, lefts, pl.ds(first, ROWS)], left.at[slot, w]

        def compute(warpgroup):
            tile = first_tile + warpgroup
            for run in plan.runs:
                pl.when(_in_run(run, tile))(functools.partial(one_tile, run, tile, warpgroup))

        def one_tile(run, tile, warpgroup):
            def scope(*accumulators):
                def add(step, slot, _):
                    del step
                    block = value[slot]
                    for piece, accumulator in zip(run.pieces, accumulators, strict=True):
                        factor = across(left[slot, warpgroup, piece.left], ROWS)
                        columns = right.at[slot, :, pl.ds(piece.right, piece.width)]
                        plgpu.wgmma(accumulator, block * factor, columns)
                        plgpu.wgmma_wait(1)  # registers for no more than two left operands
                    return ()

                take(0, num_steps, blocks.stages, full, free, add, ())
                target = state_hbm.at[head, chunk, tile, rows]
                used = 0
                for piece, accumulator in zip(run.pieces, accumulators, strict=True):
                    target[:, pl.ds(piece.slot, piece.width)] = accumulator[...]
                    used = piece.slot + piece.width
                if used < plan.tile:
                    target[:, pl.ds(used, plan.tile - used)] = jnp.zeros(
                        (ROWS, plan.tile - used), f32
                    )

            if run.pieces:
                pl.run_scoped(scope, *(plgpu.ACC((ROWS, piece.width), f32) for piece in run.pieces))
            else:
                scope()  # fills up the number of tiles

        split_warpgroups(
            blocks,
            compute,
            lambda: copy_ahead(num_steps, blocks.stages, full, free, copies),
        )

    stages = blocks.stages
    return launch(
        body,
        jax.ShapeDtypeStruct(
            (num_heads // group, num_chunks, plan.num_tiles, value_dim, plan.tile), f32
        ),
        {
            "left": plgpu.SMEM((stages, blocks.warpgroups, plan.lefts_per_tile, ROWS), bf16),
            "right": smem(stages, ROWS, plan.right_width, columns=COLUMNS),
            "value": smem(stages, ROWS, ROWS),
            "full": plgpu.Barrier(num_barriers=stages, num_arrivals=2 + blocks.warpgroups),
            "free": plgpu.Barrier(num_barriers=stages, num_arrivals=blocks.warpgroups),
        },
        {
            "head": num_heads // group,
            "chunk": num_chunks,
            "tile": plan.num_tiles // blocks.warpgroups,
            "width": value_dim // ROWS,
        },
        blocks,
        left_ZCAt,
        right_ZTW,
        value_ZTE.swapaxes(1, 2),
    )


def _in_run(run, tile):
    return (tile >= run.first_tile) & (tile < run.first_tile + run.count)


def _tiles(plan: Plan, blocks: BlockSizes, full, free, one_tile, carry):
    """carry = one_tile(run, tile, slot, carry) over all tiles that hold features."""
    for run in plan.runs:
        start, stop = run.first_tile, run.first_tile + run.count
        if run.pieces:
            body = functools.partial(one_tile, run)
            carry = take(start, stop, blocks.stages, full, free, body, carry)
    return carry


def _num_used_tiles(plan: Plan) -> int:
    return sum(run.count for run in plan.runs if run.pieces)


def _read(spec: Spec, left_ZCAt, right_ZTW, state):
    """A warpgroup reads all tiles of one state for its 64 tokens; phi is built in registers."""
    plan, blocks, group = spec.plan, spec.blocks, spec.group
    num_heads, length, _ = right_ZTW.shape
    value_dim = state.shape[-2]

    def body(left_hbm, right_hbm, state_hbm, out_hbm, *, left, right, tiles, own, full, free):
        head, first_token = lax.axis_index("head"), lax.axis_index("block") * blocks.tokens
        chunk = lax.div(first_token, blocks.chunk)
        state_of_chunk = state_hbm.at[lax.div(head, group), chunk]

        def compute(warpgroup):
            tokens = pl.ds(first_token + warpgroup * ROWS, ROWS)
            in_chunk = pl.ds(lax.rem(first_token, blocks.chunk) + warpgroup * ROWS, ROWS)
            barrier = own.at[warpgroup]
            lefts = left_hbm.at[head, chunk, :, in_chunk]
            plgpu.copy_gmem_to_smem(lefts, left.at[warpgroup], barrier)
            plgpu.copy_gmem_to_smem(right_hbm.at[head, tokens], right.at[warpgroup], barrier)
            plgpu.barrier_wait(barrier)
            block = right[warpgroup]

            def scope(accumulator):
                def one_tile(run, tile, slot, _):
                    for piece in run.pieces:
                        factor = down(left[warpgroup, run.left_of(tile) + piece.left], piece.width)
                        phi = block[:, piece.right : piece.right + piece.width] * factor
                        columns = tiles.at[slot, :, pl.ds(piece.slot, piece.width)]
                        plgpu.wgmma(accumulator, phi, columns.transpose((1, 0)))
                    return ()

                _tiles(plan, blocks, full, free, one_tile, ())
                out_hbm[head, tokens] = accumulator[...]

            pl.run_scoped(scope, plgpu.ACC((ROWS, value_dim), f32))

        def copies(tile, slot):
            yield state_of_chunk.at[tile], tiles.at[slot]

        split_warpgroups(
            blocks,
            compute,
            lambda: copy_ahead(_num_used_tiles(plan), blocks.stages, full, free, copies),
        )

    return launch(
        body,
        jax.ShapeDtypeStruct((num_heads, length, value_dim), f32),
        _resident(plan, blocks)
        | {
            "tiles": smem(blocks.stages, value_dim, plan.tile, columns=COLUMNS),
            "own": plgpu.Barrier(num_barriers=blocks.warpgroups, num_arrivals=2),
        },
        {"block": length // blocks.tokens, "head": num_heads},
        blocks,
        left_ZCAt,
        right_ZTW,
        state,
    )


def _resident(plan: Plan, blocks: BlockSizes) -> dict:
    """Shared memory for the factors of a block's own tokens, and the barriers of the tiles."""
    return {
        "left": plgpu.SMEM((blocks.warpgroups, plan.num_lefts, ROWS), bf16),
        "right": smem(blocks.warpgroups, ROWS, plan.right_width, columns=COLUMNS),
        "full": plgpu.Barrier(num_barriers=blocks.stages),
        "free": plgpu.Barrier(num_barriers=blocks.stages, num_arrivals=blocks.warpgroups),
    }


def _slopes(spec: Spec, left_ZCAt, right_ZTW, value_ZTE, state):
    """The gradients of left and right, given dphi_t = S_c y_t, which never leaves registers.

    dright_j = sum_a left_a dphi_(a,j),   dleft_a = sum_j right_j dphi_(a,j)
    """
    plan, blocks, group = spec.plan, spec.blocks, spec.group
    num_heads, length, value_dim = value_ZTE.shape
    num_columns = plan.right_width // COLUMNS

    def body(
        left_hbm, right_hbm, value_hbm, state_hbm, dleft_hbm, dright_hbm,
        *, left, right, value, tiles, own, full, free,
    ):  # fmt: skip
        head, first_token = lax.axis_index("head"), lax.axis_index("block") * blocks.tokens
        chunk = lax.div(first_token, blocks.chunk)
        state_of_chunk = state_hbm.at[lax.div(head, group), chunk]

        def compute(warpgroup):
            tokens = pl.ds(first_token + warpgroup * ROWS, ROWS)
            in_chunk = pl.ds(lax.rem(first_token, blocks.chunk) + warpgroup * ROWS, ROWS)
            barrier = own.at[warpgroup]
            lefts = left_hbm.at[head, chunk, :, in_chunk]
            plgpu.copy_gmem_to_smem(lefts, left.at[warpgroup], barrier)
            plgpu.copy_gmem_to_smem(right_hbm.at[head, tokens], right.at[warpgroup], barrier)
            plgpu.copy_gmem_to_smem(value_hbm.at[head, tokens], value.at[warpgroup], barrier)
            plgpu.barrier_wait(barrier)
            block = right[warpgroup]
            zeros = jnp.zeros((ROWS, COLUMNS), f32)

            def one_tile(run, tile, slot, dright):
                dright = list(dright)  # one array per 16 columns
                used = run.pieces[-1].slot + run.pieces[-1].width
                products = zeros
                for start in range(0, used, blocks.columns):
                    stop = min(start + blocks.columns, used)
                    columns = tiles.at[slot, :, pl.ds(start, stop - start)]
                    dphi = product(value.at[warpgroup], columns)
                    for piece in run.pieces:  # the last one may go on in the next columns
                        end = piece.slot + piece.width
                        if not (piece.slot < stop and start < end):
                            continue
                        a = run.left_of(tile) + piece.left
                        factor = down(left[warpgroup, a].astype(f32), COLUMNS)
                        for column in range(max(start, piece.slot), min(stop, end), COLUMNS):
                            part = dphi[:, column - start : column - start + COLUMNS]
                            j = piece.right + column - piece.slot
                            dright[j // COLUMNS] += factor * part
                            products += block[:, j : j + COLUMNS].astype(f32) * part
                        if end <= stop:
                            dleft_hbm[head, chunk, a, in_chunk] = products.sum(1)
                            products = zeros
                return tuple(dright)

            dright = _tiles(plan, blocks, full, free, one_tile, (zeros,) * num_columns)
            for n, part in enumerate(dright):
                dright_hbm[head, tokens, pl.ds(n * COLUMNS, COLUMNS)] = part

        def copies(tile, slot):
            yield state_of_chunk.at[tile], tiles.at[slot]

        split_warpgroups(
            blocks,
            compute,
            lambda: copy_ahead(_num_used_tiles(plan), blocks.stages, full, free, copies),
        )

    dleft, dright = launch(
        body,
        [
            jax.ShapeDtypeStruct(left_ZCAt.shape, f32),
            jax.ShapeDtypeStruct(right_ZTW.shape, f32),
        ],
        _resident(plan, blocks)
        | {
            "value": smem(blocks.warpgroups, ROWS, value_dim, columns=COLUMNS),
            "tiles": smem(blocks.stages, value_dim, plan.tile, columns=COLUMNS),
            "own": plgpu.Barrier(num_barriers=blocks.warpgroups, num_arrivals=3),
        },
        {"block": length // blocks.tokens, "head": num_heads},
        blocks,
        left_ZCAt,
        right_ZTW,
        value_ZTE,
        state,
    )
    used = jnp.arange(plan.num_lefts)[:, None] < plan.left_order.size
    return jnp.where(used, dleft, 0), dright  # rows beyond are padding, which no tile writes
