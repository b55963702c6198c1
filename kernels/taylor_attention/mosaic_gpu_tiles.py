"""How the monomials of a head become tiles for the tensor cores, and what every kernel shares.

Every monomial of degree 0..p is a left one times a right one. With sorted indices, 0 standing for
the constant 1, the right factor takes the last r indices and the left one the others, so

    phi_(a,j) = left_a right_j    for all j whose indices are >= i, the largest index of left_a,

and these j are a tail of the right monomials in the order of `features.monomials`. A tile of phi is
then a row of numbers times a block of columns: one multiplication per entry, no gather. Tails start
at a multiple of 16 columns (what one wgmma takes); the slots this adds repeat a monomial and get no
weight. At p = 2, H = 64 these are 2,640 slots for 2,145 monomials.
Source: the construction is derived here; symmetric tiles for order 2 are in arXiv:2507.04239.
"""

import dataclasses
import functools
import itertools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.taylor_attention import features

COLUMNS = 16  # of bfloat16 that one wgmma contracts: the unit of every width here
ROWS = 64  # tokens of one warpgroup: the height of a wgmma


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """What may be tuned; the results are the same for every choice."""

    chunk: int = 1024
    """Tokens between two states: the quadratic form inside, the state across."""
    features: int = 256
    """Features of a state that arrive in shared memory at once."""
    keys: int = 128
    """Keys that arrive in shared memory at once."""
    backward_keys: int = 64
    """The same in the backward pass, which holds two tiles of scores in registers."""
    stages: int = 2
    """Buffers that the copies fill ahead of the tensor cores."""
    columns: int = 64
    """Features whose gradients one warpgroup holds in registers at once."""
    warpgroups: int = 2
    """Warpgroups that compute, each on its own 64 tokens; one more copies."""

    def __post_init__(self):
        if not 1 <= self.warpgroups <= 3:
            raise ValueError(f"1 to 3 warpgroups may compute; got {self}.")
        keys = math.lcm(self.keys, self.backward_keys)
        if (
            self.chunk % self.tokens
            or self.tokens % keys
            or math.gcd(self.keys, self.backward_keys) % ROWS
        ):
            raise ValueError(
                f"the chunk must be a multiple of {ROWS} * warpgroups tokens, that of keys and "
                f"backward_keys, and both of {ROWS}; got {self}."
            )
        for width, least in ((self.features, 2 * COLUMNS), (self.columns, COLUMNS)):
            if width % COLUMNS or not least <= width <= 256:
                raise ValueError(
                    f"features and columns must be multiples of {COLUMNS} up to 256; got {self}."
                )

    @property
    def tokens(self) -> int:
        """Tokens of one block of threads."""
        return ROWS * self.warpgroups


@dataclasses.dataclass(frozen=True)
class Piece:
    """left_a times right[:, right : right + width]; all offsets are static."""

    left: int  # a, counted from the first left monomial of the tile
    right: int
    slot: int  # where these features begin in their tile
    width: int


@dataclasses.dataclass(frozen=True)
class Run:
    """`count` consecutive tiles that look alike; each begins `stride` left monomials further on."""

    first_tile: int
    count: int
    first_left: int
    stride: int
    pieces: tuple[Piece, ...]

    def left_of(self, tile):
        """The first left monomial of a tile of this run."""
        return self.first_left + (tile - self.first_tile) * self.stride


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: `plan` caches
class Plan:
    """The tiles of one (head_dim, order).

    Attributes:
      right_degree: r.
      left_order: the left monomials, as indices into `features.monomials(x, p - r)`.
      num_lefts: rows of the left array; those beyond left_order are zero.
      lefts_per_tile: the most left monomials that one tile uses.
      right_width: W, columns of the right array; the monomials stand at the end.
      tile: F, features of one tile.
      runs: the tiles.
      pair_feature: [num_lefts * W], the monomial of (a, j), or P where it has no weight.
      feature_pair: [P], its inverse.
      slot_feature: [num_tiles * F], the monomial in each slot, or P.
      feature_slot: [P], its inverse.
    """

    head_dim: int
    order: int
    right_degree: int
    left_order: np.ndarray
    num_lefts: int
    lefts_per_tile: int
    right_width: int
    tile: int
    runs: tuple[Run, ...]
    pair_feature: np.ndarray
    feature_pair: np.ndarray
    slot_feature: np.ndarray
    feature_slot: np.ndarray

    @property
    def num_tiles(self) -> int:
        return self.slot_feature.size // self.tile

    def left(self, x: jax.Array) -> jax.Array:
        """[..., H, T] -> [..., num_lefts, T]."""
        left = _permuted(features.monomials(x, self.order - self.right_degree), self)
        padding = [(0, 0)] * (left.ndim - 2) + [(0, self.num_lefts - left.shape[-2]), (0, 0)]
        return jnp.pad(left, padding)

    def right(self, x: jax.Array) -> jax.Array:
        """[..., H, T] -> [..., T, W]."""
        right = jnp.swapaxes(features.monomials(x, self.right_degree), -1, -2)
        padding = [(0, 0)] * (right.ndim - 1) + [(self.right_width - right.shape[-1], 0)]
        return jnp.pad(right, padding)


def _permuted(x: jax.Array, plan: Plan) -> jax.Array:
    """Rows in the order of the plan: as slices if they are few, which XLA fuses best."""
    breaks = np.flatnonzero(np.diff(plan.left_order) != 1) + 1
    runs = np.split(plan.left_order, breaks)
    if len(runs) <= 4:
        return jnp.concatenate([x[..., rows[0] : rows[-1] + 1, :] for rows in runs], axis=-2)
    return _gathered(x, plan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(x: jax.Array, plan: Plan) -> jax.Array:
    """The gradient is a gather too, where JAX would scatter."""
    return x[..., plan.left_order, :]


_gathered.defvjp(
    lambda x, plan: (_gathered(x, plan), None),
    lambda plan, _, cotangent: (cotangent[..., np.argsort(plan.left_order), :],),
)


@functools.cache
def plan(head_dim: int, order: int, tile: int, warpgroups: int) -> Plan | None:
    """The split of least cost, or None if no split fits one tile."""
    best = None
    for right_degree in range(min(order, 1), order + 1):
        right_width = _up(math.comb(head_dim + right_degree, right_degree))
        if right_width > tile:
            break
        slots = sum(_widths(head_dim, order, right_degree))
        cost = slots + 4 * right_width  # the second term: the right factor passes through memory
        if best is None or cost < best[0]:
            best = cost, right_degree
    return None if best is None else _plan(head_dim, order, best[1], tile, warpgroups)


def _up(n: int) -> int:
    return -(-n // COLUMNS) * COLUMNS


def _left_monomials(head_dim: int, degree: int) -> list[tuple[int, ...]]:
    """Sorted indices 1..H of the monomials up to a degree, as `features.monomials` orders them."""
    return [
        indices
        for n in range(degree + 1)
        for indices in itertools.combinations_with_replacement(range(1, head_dim + 1), n)
    ]


def _tail(head_dim: int, right_degree: int, indices: tuple[int, ...]) -> int:
    """How many right monomials follow a left one."""
    if not indices:
        return math.comb(head_dim + right_degree, right_degree)
    return math.comb(head_dim - indices[-1] + right_degree, right_degree)


def _widths(head_dim: int, order: int, right_degree: int) -> list[int]:
    """Columns of each left monomial."""
    lefts = _left_monomials(head_dim, order - right_degree)
    return [_up(_tail(head_dim, right_degree, indices)) for indices in lefts]


def _plan(head_dim: int, order: int, right_degree: int, tile: int, warpgroups: int) -> Plan:
    lefts = _left_monomials(head_dim, order - right_degree)
    rights = _left_monomials(head_dim, right_degree)
    index_of = {m: n for n, m in enumerate(_left_monomials(head_dim, order))}
    right_width, empty = _up(len(rights)), len(index_of)
    # By largest index, so that equal widths are neighbours; the constant, the widest, comes last.
    left_order = sorted(range(len(lefts)), key=lambda n: (not lefts[n], lefts[n][-1:]))

    tiles: list[tuple[int, list[Piece]]] = []  # (first left monomial, pieces)
    pair_feature: dict[int, int] = {}
    slot_feature: dict[int, int] = {}
    used = tile  # of the last tile
    for a, n in enumerate(left_order):
        tail = _tail(head_dim, right_degree, lefts[n])
        width = _up(tail)
        if used + width > tile:
            tiles.append((a, []))
            used = 0
        first_left, pieces = tiles[-1]
        pieces.append(Piece(a - first_left, right_width - width, used, width))
        for j in range(width - tail, width):  # the columns before repeat other monomials
            column = right_width - width + j
            feature = index_of[lefts[n] + rights[column - (right_width - len(rights))]]
            pair_feature[a * right_width + column] = feature
            slot_feature[(len(tiles) - 1) * tile + used + j] = feature
        used += width
    while len(tiles) % warpgroups:  # each warpgroup sums tiles of its own
        tiles.append((0, []))

    runs: list[Run] = []
    for number, (first_left, pieces) in enumerate(tiles):
        last = runs[-1] if runs else None
        stride = len(pieces)
        if last and last.pieces == tuple(pieces) and last.left_of(number) == first_left:
            runs[-1] = dataclasses.replace(last, count=last.count + 1)
        else:
            runs.append(Run(number, 1, first_left, stride, tuple(pieces)))
    lefts_per_tile = max(len(run.pieces) for run in runs)
    num_lefts = max(run.left_of(run.first_tile + run.count - 1) for run in runs) + lefts_per_tile
    num_lefts = -(-max(num_lefts, len(lefts)) // 8) * 8  # num_lefts * W: whole rows of threads
    pairs, slots = (
        np.asarray([table.get(n, empty) for n in range(size)])
        for table, size in (
            (pair_feature, num_lefts * right_width),
            (slot_feature, len(tiles) * tile),
        )
    )
    feature_pair, feature_slot = (np.argsort(x, kind="stable")[:empty] for x in (pairs, slots))
    return Plan(
        head_dim=head_dim,
        order=order,
        right_degree=right_degree,
        left_order=np.asarray(left_order),
        num_lefts=num_lefts,
        lefts_per_tile=lefts_per_tile,
        right_width=right_width,
        tile=tile,
        runs=tuple(runs),
        pair_feature=pairs,
        feature_pair=feature_pair,
        slot_feature=slots,
        feature_slot=feature_slot,
    )  # fmt: skip


# ------------------------------------------------------------------------- what the kernels share


def smem(*shape: int, columns: int | None = None):
    """Shared memory for a bfloat16 matrix of the tensor cores; `plgpu.SMEM` is plain memory.

    The tensor cores read tiles of 8 rows and up to 64 columns whose 16-byte words are permuted
    against bank conflicts (a swizzle of 128 bytes). `columns` says where slices may begin.
    """
    columns = columns or math.gcd(shape[-1], 64)
    transforms = (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns))
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def down(vector: jax.Array, width: int) -> jax.Array:
    """[rows] -> [rows, width]: one number per row."""
    return lax.broadcast_in_dim(vector, (vector.shape[0], width), (0,))


def across(vector: jax.Array, height: int) -> jax.Array:
    """[columns] -> [height, columns]: one number per column."""
    return lax.broadcast_in_dim(vector, (height, vector.shape[0]), (1,))


def copy_ahead(num_steps, stages: int, full, free, copies: typing.Callable) -> None:
    """The copying warpgroup: keeps up to `stages` steps of inputs in shared memory.

    Args:
      full: barrier [stages], passed when the copies of a step have arrived.
      free: barrier [stages], passed when all computing warpgroups are done with a step.
      copies: (step, slot) -> pairs of source and destination.
    """

    def step(i, _):
        slot = lax.rem(i, stages)

        @pl.when(i >= stages)
        def wait():
            plgpu.barrier_wait(free.at[slot])

        for source, destination in copies(i, slot):
            plgpu.copy_gmem_to_smem(source, destination, full.at[slot])
        return ()

    lax.fori_loop(0, num_steps, step, ())

    def last(i, _):
        plgpu.barrier_wait(free.at[lax.rem(i, stages)])
        return ()

    lax.fori_loop(jnp.maximum(num_steps - stages, 0), num_steps, last, ())


def take(start, stop, stages: int, full, free, body: typing.Callable, carry):
    """A computing warpgroup: carry = body(step, slot, carry) for steps that `copy_ahead` brings."""

    def step(i, carry):
        slot = lax.rem(i, stages)
        plgpu.barrier_wait(full.at[slot])
        carry = body(i, slot, carry)
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(free.at[slot])
        return carry

    return lax.fori_loop(start, stop, step, carry)


def product(a, b) -> jax.Array:
    """a [64, K] times b [K, n], both in shared memory."""

    def scope(accumulator):
        plgpu.wgmma(accumulator, a, b)
        return accumulator[...]

    return pl.run_scoped(scope, plgpu.ACC((ROWS, b.shape[1]), jnp.float32))


# Nothing that a thread stores is read again in the same kernel, so no barrier need guard a store.
COMPILER_PARAMS = plgpu.CompilerParams(
    lowering_semantics=plgpu.LoweringSemantics.Warpgroup, unsafe_no_auto_barriers=True
)


def launch(body, out_type, scratch, grid: dict[str, int], blocks: BlockSizes, *operands):
    """Runs body(*operands, *outputs, **scratch) on every point of the grid."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=blocks.warpgroups + 1,
        thread_name="warpgroup",
        compiler_params=COMPILER_PARAMS,
    )(*operands)


# The 65,536 registers of a multiprocessor go to 128 threads a warpgroup; the one that copies keeps
# 40 of them per thread. Two warpgroups have as many as a thread can use from the start.
_REGISTERS = {2: 232, 3: 152}


def split_warpgroups(blocks: BlockSizes, compute: typing.Callable, copy: typing.Callable) -> None:
    """compute(warpgroup) on all warpgroups but the last, which copies and cedes its registers."""
    warpgroup = lax.axis_index("warpgroup")
    registers = _REGISTERS.get(blocks.warpgroups)

    @pl.when(warpgroup < blocks.warpgroups)
    def computing():
        if registers:
            plgpu.set_max_registers(registers, action="increase")
        compute(warpgroup)

    @pl.when(warpgroup == blocks.warpgroups)
    def copying():
        if registers:
            plgpu.set_max_registers(40, action="decrease")
        copy()
