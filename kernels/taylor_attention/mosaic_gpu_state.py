"""Three kernels between tokens and the states of their chunks, closed under differentiation.

    sums    S_c = sum_{t in c} phi_t y_t^T                  gradient: read and slopes
    read    y_t = phi_t S_c                                 gradient: sums and slopes
    slopes  dphi_t = S_c y_t, folded into the two factors of phi = left x right

Z counts batch rows and heads, C chunks, A left monomials, W columns of the right factor, F the
features of a tile (see `mosaic_gpu_tiles`). A state is [Z, C, tiles, E, F]; one state may serve
several consecutive heads (`group`). The factors carry decay and masks already. Products are
bfloat16 with float32 sums.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.taylor_attention.mosaic_gpu_tiles import (
    COLUMNS,
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


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the kernels are specialised to."""

    plan: Plan
    blocks: BlockSizes
    group: int  # heads that share one state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sums(spec: Spec, left_ZAT: jax.Array, right_ZTW: jax.Array, value_ZTE: jax.Array) -> jax.Array:
    """sum over the tokens of each chunk, and over a group of heads: [Z/group, C, tiles, E, F]."""
    return _sums(spec, left_ZAT, right_ZTW.astype(bf16), value_ZTE.astype(bf16))


def _sums_forward(spec, left, right, value):
    right, value = right.astype(bf16), value.astype(bf16)
    return _sums(spec, left, right, value), (left, right, value)


def _sums_backward(spec, residuals, state):
    left, right, value = residuals
    state = state.astype(bf16)
    return (*_slopes(spec, left, right, value, state), _read(spec, left, right, state))


sums.defvjp(_sums_forward, _sums_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read(spec: Spec, left_ZAT: jax.Array, right_ZTW: jax.Array, state: jax.Array) -> jax.Array:
    """phi_t times the state of t's chunk, [Z/group, C, tiles, E, F]: [Z, T, E]."""
    return _read(spec, left_ZAT, right_ZTW.astype(bf16), state.astype(bf16))


def _read_forward(spec, left, right, state):
    right, state = right.astype(bf16), state.astype(bf16)
    return _read(spec, left, right, state), (left, right, state)


def _read_backward(spec, residuals, output):
    left, right, state = residuals
    output = output.astype(bf16)
    return (*_slopes(spec, left, right, output, state), _sums(spec, left, right, output))


read.defvjp(_read_forward, _read_backward)


def _sums(spec: Spec, left_ZAT, right_ZTW, value_ZTE):
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
            tokens = pl.ds(chunk * blocks.chunk + lax.rem(step, per_chunk) * ROWS, ROWS)
            yield right_hbm.at[z, tokens], right.at[slot]
            yield value_hbm.at[z, rows, tokens], value.at[slot]
            for w in range(blocks.warpgroups):
                first_left = sum(
                    jnp.where(_in_run(run, first_tile + w), run.left_of(first_tile + w), 0)
                    for run in plan.runs
                )
                lefts = pl.ds(first_left, plan.lefts_per_tile)
                yield left_hbm.at[z, lefts, tokens], left.at[slot, w]

        def compute(warpgroup):
            tile = first_tile + warpgroup
            for run in plan.runs:
                pl.when(_in_run(run, tile))(functools.partial(one_tile, run, tile, warpgroup))

        def one_tile(run, tile, warpgroup):
            def scope(*accumulators):
                def add(step, slot, _):
                    del step
                    scaled = value[slot].astype(f32)
                    for piece, accumulator in zip(run.pieces, accumulators, strict=True):
                        factor = across(left[slot, warpgroup, piece.left], ROWS)
                        columns = right.at[slot, :, pl.ds(piece.right, piece.width)]
                        plgpu.wgmma(accumulator, (scaled * factor).astype(bf16), columns)
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
            "left": smem(stages, blocks.warpgroups, plan.lefts_per_tile, ROWS, dtype=f32),
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
        left_ZAT,
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


def _read(spec: Spec, left_ZAT, right_ZTW, state):
    """A warpgroup reads all tiles of one state for its 64 tokens; phi is built in registers."""
    plan, blocks, group = spec.plan, spec.blocks, spec.group
    num_heads, length, _ = right_ZTW.shape
    value_dim = state.shape[-2]

    def body(left_hbm, right_hbm, state_hbm, out_hbm, *, left, right, tiles, own, full, free):
        head, first_token = lax.axis_index("head"), lax.axis_index("block") * blocks.tokens
        state_of_chunk = state_hbm.at[lax.div(head, group), lax.div(first_token, blocks.chunk)]

        def compute(warpgroup):
            tokens = pl.ds(first_token + warpgroup * ROWS, ROWS)
            barrier = own.at[warpgroup]
            plgpu.copy_gmem_to_smem(left_hbm.at[head, :, tokens], left.at[warpgroup], barrier)
            plgpu.copy_gmem_to_smem(right_hbm.at[head, tokens], right.at[warpgroup], barrier)
            plgpu.barrier_wait(barrier)
            block = right[warpgroup]

            def scope(accumulator):
                def one_tile(run, tile, slot, _):
                    for piece in run.pieces:
                        factor = down(left[warpgroup, run.left_of(tile) + piece.left], piece.width)
                        phi = block[:, piece.right : piece.right + piece.width].astype(f32) * factor
                        columns = tiles.at[slot, :, pl.ds(piece.slot, piece.width)]
                        plgpu.wgmma(accumulator, phi.astype(bf16), columns.transpose((1, 0)))
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
        left_ZAT,
        right_ZTW,
        state,
    )


def _resident(plan: Plan, blocks: BlockSizes) -> dict:
    """Shared memory for the factors of a block's own tokens, and the barriers of the tiles."""
    return {
        "left": smem(blocks.warpgroups, plan.num_lefts, ROWS, dtype=f32),
        "right": smem(blocks.warpgroups, ROWS, plan.right_width, columns=COLUMNS),
        "full": plgpu.Barrier(num_barriers=blocks.stages),
        "free": plgpu.Barrier(num_barriers=blocks.stages, num_arrivals=blocks.warpgroups),
    }


def _slopes(spec: Spec, left_ZAT, right_ZTW, value_ZTE, state):
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
        state_of_chunk = state_hbm.at[lax.div(head, group), lax.div(first_token, blocks.chunk)]

        def compute(warpgroup):
            tokens = pl.ds(first_token + warpgroup * ROWS, ROWS)
            barrier = own.at[warpgroup]
            plgpu.copy_gmem_to_smem(left_hbm.at[head, :, tokens], left.at[warpgroup], barrier)
            plgpu.copy_gmem_to_smem(right_hbm.at[head, tokens], right.at[warpgroup], barrier)
            plgpu.copy_gmem_to_smem(value_hbm.at[head, tokens], value.at[warpgroup], barrier)
            plgpu.barrier_wait(barrier)
            block = right[warpgroup]
            zeros = jnp.zeros((ROWS, COLUMNS), f32)

            def one_tile(run, tile, slot, dright):
                dright = list(dright)  # one array per 16 columns
                for piece in run.pieces:
                    a = run.left_of(tile) + piece.left
                    factor = down(left[warpgroup, a], COLUMNS)
                    products = zeros
                    for start in range(0, piece.width, ROWS):  # at most 64 columns in registers
                        width = min(ROWS, piece.width - start)
                        columns = tiles.at[slot, :, pl.ds(piece.slot + start, width)]
                        dphi = product(value.at[warpgroup], columns)
                        for offset in range(0, width, COLUMNS):
                            part = dphi[:, offset : offset + COLUMNS]
                            j = piece.right + start + offset
                            dright[j // COLUMNS] += factor * part
                            products += block[:, j : j + COLUMNS].astype(f32) * part
                    dleft_hbm[head, a, tokens] = products.sum(1)
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
            jax.ShapeDtypeStruct(left_ZAT.shape, f32),
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
        left_ZAT,
        right_ZTW,
        value_ZTE,
        state,
    )
    used = jnp.arange(plan.num_lefts)[:, None] < plan.left_order.size
    return jnp.where(used, dleft, 0), dright  # rows beyond are padding, which no tile writes
