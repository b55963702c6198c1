"""Taylor attention on TPU: one Pallas kernel for the sums, two for their gradients.

The grid is (batch, key/value heads, blocks of value columns, chunks, query heads of a group). The
last two run in order and carry one state in VMEM; nothing but the sums and the last state is
written. The backward pass saves no state either: it computes the states again in the order of
the tokens for the gradient of queries, and carries the gradient of the state from the last chunk to
the first for that of keys and values. (A chunk of 128 tokens that wrote its state would wait for
HBM: P W floats for 4 P W C operations.)

Inside `jax.shard_map` it wants `check_vma=False`, as Pallas does; it is not partitioned by itself.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend import core
from jax.interpreters import batching, mlir

from kernels.taylor_attention import features
from kernels.taylor_attention import mosaic_tpu_kernels as kernels
from kernels.taylor_attention.state import TaylorState

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static choices of one call.

    Attributes:
      value_block: columns of the value in one block; a block has W rows, see `value_rows`.
    """

    head_dim: int
    value_dim: int
    order: int
    num_groups: int
    length: int
    chunk_size: int
    num_blocks: int
    dtype: jnp.dtype
    precision: jax.lax.Precision | None

    @property
    def features(self) -> kernels.Features:
        return kernels.make_features(self.head_dim, self.order)

    @property
    def num_chunks(self) -> int:
        return -(-self.length // self.chunk_size)

    @property
    def value_block(self) -> int:
        return -(-self.value_dim // self.num_blocks)

    @property
    def value_rows(self) -> int:
        """W: a block of the value, its row of ones, and zeros up to whole sublanes."""
        return kernels.round_up(self.value_block + 1, kernels.SUBLANES * 4 // self.dtype.itemsize)

    def vmem_bytes(self) -> int:
        """Estimate for the largest kernel: two states and one to spare, scratch, blocks twice."""
        chunk, rows = self.chunk_size, self.value_rows
        state = 4 * rows * self.features.padded
        lower = 4 * self.features.lower_rows * chunk
        tile = 4 * kernels.TILE * (chunk + 2 * rows)
        width = kernels.round_up(self.head_dim, kernels.SUBLANES)
        blocks = 4 * chunk * (4 * width + 4 * rows + kernels.SUBLANES)
        blocks += 4 * kernels.SUBLANES * self.features.padded
        coefficients = 4 * self.num_groups * 2 * kernels.SUBLANES * chunk
        scores = 4 * 6 * chunk * chunk
        return 3 * state + 2 * lower + tile + 2 * (blocks + coefficients) + scores


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
    """Numerator [B,T,K,G,E] and denominator [B,T,K,G] in O(T). Arguments as `api` prepares them."""
    del precision  # follows from the dtype: a float32 product is exact, see `make_plan`
    batch_size, length, num_kv_heads, num_groups, head_dim = query_BTKGH.shape
    value_dim = value_BTKE.shape[-1]
    order = coefficients.shape[-1] - 1
    plan = make_plan(
        head_dim=head_dim,
        value_dim=value_dim,
        order=order,
        num_groups=num_groups,
        length=length,
        chunk_size=chunk_size,
        dtype=jnp.result_type(query_BTKGH, key_BTKH, value_BTKE),
    )
    coefficients = jnp.broadcast_to(coefficients, (num_kv_heads, num_groups, order + 1))
    numerator, state = _sums(
        plan,
        coefficients.astype(jnp.float32).reshape(num_kv_heads * num_groups, order + 1),
        _tokens_last(plan, query_BTKGH),
        _tokens_last(plan, key_BTKH),
        _blocks_with_ones(plan, value_BTKE),
        _marks(plan, runs, log_decay_K, batch_size, num_kv_heads),
        None if initial_state is None else _pack(plan, initial_state),
    )
    # [B,K,G,J,W,T] -> [B,T,K,G,J,W]
    numerator = numerator[..., :length].transpose(0, 5, 1, 2, 3, 4)
    denominator = numerator[..., 0, plan.value_block]
    numerator = numerator[..., : plan.value_block]
    numerator = numerator.reshape(*numerator.shape[:4], -1)[..., :value_dim]
    return (numerator, denominator), _unpack(plan, state) if return_state else None


def obstacle(
    query_BTKGH: jax.Array, key: jax.Array, value: jax.Array, coefficients: jax.Array
) -> str | None:
    """Why these arrays cannot be given to it unasked, or None if they can."""
    if jax.device_count() > 1:
        return "Mosaic kernels are not partitioned automatically: name it inside jax.shard_map."
    try:
        make_plan(
            head_dim=query_BTKGH.shape[-1],
            value_dim=value.shape[-1],
            order=coefficients.shape[-1] - 1,
            num_groups=query_BTKGH.shape[-2],
            length=query_BTKGH.shape[1],
            chunk_size=None,
            dtype=jnp.result_type(query_BTKGH, key, value),
        )
    except NotImplementedError as error:
        return str(error)
    return None


def make_plan(
    *,
    head_dim: int,
    value_dim: int,
    order: int,
    num_groups: int,
    length: int,
    chunk_size: int | None,
    dtype: jnp.dtype,
) -> Plan:
    """Picks the chunk and the fewest blocks of value columns that fit VMEM.

    Raises:
      NotImplementedError: a dtype or a chunk that the hardware has not, or a state that is too big.
    """
    if jnp.finfo(dtype).bits > 32:
        raise NotImplementedError(
            f"mosaic_tpu computes in float32 or bfloat16; got {dtype}. "
            "Cast the inputs or use implementation='xla'."
        )
    if chunk_size is not None and chunk_size % kernels.LANES:
        raise NotImplementedError(
            f"mosaic_tpu takes chunks of a multiple of {kernels.LANES} tokens; got {chunk_size=}. "
            "Leave it None or use implementation='xla'."
        )
    is_narrow = dtype == jnp.bfloat16
    budget = vmem_budget_bytes()
    best_chunk = kernels.LANES if length <= kernels.LANES else 2 * kernels.LANES
    for chunk in (best_chunk, kernels.LANES) if chunk_size is None else (chunk_size,):
        num_blocks = 1
        while num_blocks <= -(-value_dim // kernels.SUBLANES):
            plan = Plan(
                head_dim=head_dim,
                value_dim=value_dim,
                order=order,
                num_groups=num_groups,
                length=length,
                chunk_size=chunk,
                num_blocks=num_blocks,
                dtype=jnp.dtype(jnp.bfloat16 if is_narrow else jnp.float32),
                precision=None if is_narrow else jax.lax.Precision.HIGHEST,
            )
            if plan.vmem_bytes() <= budget:
                return plan
            num_blocks *= 2
    raise NotImplementedError(
        f"mosaic_tpu keeps the state and the lower monomials of a chunk in VMEM: "
        f"{plan.vmem_bytes() / MEBIBYTE:.0f} MiB at order {order}, H = {head_dim} "
        f"(P = {plan.features.count}), against {budget / MEBIBYTE:.0f} MiB. Lower the order or the "
        "width of a query head, or use implementation='xla'."
    )


def vmem_budget_bytes() -> int:
    """What a kernel may take of the VMEM of this process' TPU; of a v5e's where there is none."""
    capacity = 128 * MEBIBYTE
    if jax.default_backend() == "tpu":
        capacity = pltpu.get_tpu_info().vmem_capacity_bytes
    return capacity * 9 // 10


def _tokens_last(plan: Plan, x: jax.Array) -> jax.Array:
    """[B, T, ..., H] -> [B, ..., H, T], padded to whole chunks."""
    return jnp.moveaxis(_padded(plan, x), 1, -1)


def _padded(plan: Plan, x: jax.Array, mode: str = "constant") -> jax.Array:
    padding = plan.num_chunks * plan.chunk_size - plan.length
    return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2), mode=mode)


def _blocks_with_ones(plan: Plan, value: jax.Array) -> jax.Array:
    """[B, T, K, E] -> [B, K, J, W, T]: J blocks of value columns, each with its row of ones.

    Tokens of padding get no one: they add nothing to any sum.
    """
    batch_size, length, num_kv_heads, value_dim = value.shape
    filled = plan.num_blocks * plan.value_block
    value = jnp.pad(value, [(0, 0)] * 3 + [(0, filled - value_dim)])
    value = value.reshape(batch_size, length, num_kv_heads, plan.num_blocks, plan.value_block)
    rest = plan.value_rows - plan.value_block - 1
    value = jnp.pad(value, [(0, 0)] * 4 + [(0, 1)], constant_values=1)
    return _tokens_last(plan, jnp.pad(value, [(0, 0)] * 4 + [(0, rest)]))


def _marks(plan, runs, log_decay_K, batch_size, num_kv_heads):
    """[B, K, 5, T], the rows named in `mosaic_tpu_kernels`; None for one run without decay."""
    if runs is None and log_decay_K is None:
        return None
    if runs is None:
        runs = jnp.zeros((batch_size, plan.length), jnp.int32)
    if log_decay_K is None:
        log_decay_K = jnp.zeros(num_kv_heads)
    log_decay = jax.lax.stop_gradient(log_decay_K).astype(jnp.float32)[:, None, None]  # [K, 1, 1]
    chunks = _padded(plan, runs, mode="edge").reshape(batch_size, 1, -1, plan.chunk_size)
    after = chunks[..., -1:]
    before = jnp.pad(after[:, :, :-1], [(0, 0), (0, 0), (1, 0), (0, 0)])
    place = np.arange(plan.chunk_size)
    start = np.arange(plan.num_chunks)[:, None] * plan.chunk_size
    size = np.minimum(plan.length - start, plan.chunk_size)  # without padding, [chunks, 1]
    marks = {
        kernels.RUN: chunks,
        kernels.CLOCK: log_decay * place,
        kernels.READ: (chunks == before) * jnp.exp(log_decay * (place + 1)),
        kernels.WRITE: (chunks == after) * jnp.exp(log_decay * np.maximum(size - 1 - place, 0)),
        kernels.KEEP: (before == after) * jnp.exp(log_decay * size),
    }
    shape = (batch_size, num_kv_heads, plan.num_chunks, plan.chunk_size)
    rows = [jnp.broadcast_to(marks[n], shape) for n in range(kernels.NUM_MARKS)]
    rows = [row.astype(jnp.float32).reshape(*shape[:2], -1) for row in rows]
    return jnp.stack(rows, axis=2)


def _multinomials(plan: Plan) -> jax.Array:
    """[1, P], 0 in the padding."""
    weights, _ = features.multinomials(plan.head_dim, plan.order)
    padding = plan.features.padded - weights.size
    return jnp.asarray(np.pad(weights, (0, padding))[None], jnp.float32)


def _pack(plan: Plan, state: TaylorState) -> jax.Array:
    """[B, K, J, W, P] as the kernels carry it: times the multinomials, features last."""
    block = plan.value_block
    filled = plan.num_blocks * block
    numerator = state.numerator.astype(jnp.float32)
    denominator = state.denominator.astype(jnp.float32)
    batch_size, num_kv_heads, num_features, value_dim = numerator.shape
    numerator = jnp.pad(numerator, [(0, 0)] * 3 + [(0, filled - value_dim)])
    numerator = numerator.reshape(batch_size, num_kv_heads, num_features, -1, block)
    denominator = denominator[..., None, None]
    denominator = jnp.broadcast_to(denominator, (*numerator.shape[:-1], 1))
    packed = jnp.concatenate([numerator, denominator], axis=-1).transpose(0, 1, 3, 4, 2)
    packed = jnp.pad(
        packed,
        [(0, 0)] * 3 + [(0, plan.value_rows - block - 1), (0, plan.features.padded - num_features)],
    )
    return packed * _multinomials(plan)


def _unpack(plan: Plan, packed: jax.Array) -> TaylorState:
    count, block = plan.features.count, plan.value_block
    packed = packed[..., :count] / _multinomials(plan)[:, :count]
    batch_size, num_kv_heads = packed.shape[:2]
    numerator = packed[..., :block, :].transpose(0, 1, 4, 2, 3)  # [B, K, P, J, W]
    numerator = numerator.reshape(batch_size, num_kv_heads, count, -1)[..., : plan.value_dim]
    return TaylorState(numerator=numerator, denominator=packed[:, :, 0, block])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(plan, coefficients, query, key, value, marks, state):
    """Numerators [B, K, G, J, W, T] and the last state [B, K, J, W, P].

    Args:
      coefficients: [K G, p+1].
      query: [B, K, G, H, T].
      key: [B, K, H, T].
      value: [B, K, J, W, T].
      marks: [B, K, 5, T] or None.
      state: [B, K, J, W, P] or None.
    """
    batch_size, num_kv_heads, num_groups, _, length = query.shape
    sums = jax.ShapeDtypeStruct(
        (batch_size, num_kv_heads, num_groups, plan.num_blocks, plan.value_rows, length),
        jnp.float32,
    )
    return _call(
        plan,
        "sums",
        (coefficients, query, key, value, marks, state),
        outputs={"numerator": sums, "state": _state_shape(plan, query)},
        scratch=("lower", "tile"),
    )


def _sums_forward(plan, *arguments):
    return _sums(plan, *arguments), arguments


def _sums_backward(plan, arguments, cotangents):
    coefficients, query, key, value, marks, state = arguments
    dnumerator, dstate = cotangents
    batch_size, num_kv_heads, num_groups, _, length = query.shape
    outer = (batch_size, num_kv_heads, plan.num_blocks)
    float32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    dquery, dcoefficients = _call(
        plan,
        "query_gradient",
        (coefficients, query, key, value, marks, state),
        dnumerator=dnumerator,
        outputs={
            "dquery": float32((*outer, num_groups, plan.head_dim, length)),
            "dcoefficients": float32((*outer, num_groups, plan.order + 1, plan.chunk_size)),
        },
        scratch=("state", "lower", "lower", "tile"),
    )
    dkey, dvalue, dstate = _call(
        plan,
        "key_value_gradient",
        (coefficients, query, key, value, marks, dstate),
        dnumerator=dnumerator,
        outputs={
            "dkey": float32((*outer, plan.head_dim, length)),
            "value": float32(value.shape),
            "state": _state_shape(plan, query),
        },
        scratch=("lower", "lower", "tile"),
        last_chunk_first=True,
    )
    return (
        dcoefficients.sum((0, 2, 5)).reshape(coefficients.shape),
        dquery.sum(2).astype(query.dtype),
        dkey.sum(2).astype(key.dtype),
        dvalue.astype(value.dtype),
        None,
        None if state is None else dstate,
    )


_sums.defvjp(_sums_forward, _sums_backward)


def _state_shape(plan, query):
    shape = (*query.shape[:2], plan.num_blocks, plan.value_rows, plan.features.padded)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(plan, name, arguments, *, outputs, scratch, dnumerator=None, last_chunk_first=False):
    """One of the kernels of `mosaic_tpu_kernels.Body` over the whole grid."""
    coefficients, query, key, value, marks, state = arguments
    features_ = plan.features
    chunk, rows = plan.chunk_size, plan.value_rows

    def at(block_shape, index_map, **kwargs):
        def place(b, k, j, c, g):
            return index_map(b, k, j, plan.num_chunks - 1 - c if last_chunk_first else c, g)

        return pl.BlockSpec(block_shape, place, **kwargs)

    once = {"pipeline_mode": pl.Buffered(1)}  # the same for all chunks: no second buffer
    value_spec = at((None, None, None, rows, chunk), lambda b, k, j, c, g: (b, k, j, 0, c))
    specs = {
        "coefficients": pl.BlockSpec(memory_space=pltpu.SMEM),
        "multinomials": at((1, features_.padded), lambda b, k, j, c, g: (0, 0), **once),
        "query": at(
            (None, None, None, plan.head_dim, chunk), lambda b, k, j, c, g: (b, k, g, 0, c)
        ),
        "key": at((None, None, plan.head_dim, chunk), lambda b, k, j, c, g: (b, k, 0, c)),
        "value": value_spec,
        "marks": at((None, None, kernels.NUM_MARKS, chunk), lambda b, k, j, c, g: (b, k, 0, c)),
        "state": at(
            (None, None, None, rows, features_.padded),
            lambda b, k, j, c, g: (b, k, j, 0, 0),
            **once,
        ),
        "numerator": at(
            (None, None, None, None, rows, chunk), lambda b, k, j, c, g: (b, k, g, j, 0, c)
        ),
        "dquery": at(
            (None, None, None, None, plan.head_dim, chunk),
            lambda b, k, j, c, g: (b, k, j, g, 0, c),
        ),
        "dkey": at((None, None, None, plan.head_dim, chunk), lambda b, k, j, c, g: (b, k, j, 0, c)),
        "dcoefficients": at(
            (None, None, None, plan.num_groups, plan.order + 1, chunk),
            lambda b, k, j, c, g: (b, k, j, 0, 0, 0),
        ),
    }
    inputs = {
        "coefficients": coefficients,
        "multinomials": _multinomials(plan),
        "query": query,
        "key": key,
        "value": value,
        "marks": marks,
        "state": state,
    }
    if dnumerator is not None:
        inputs["numerator"] = dnumerator
    scratch_shapes = {
        "state": (rows, features_.padded),
        "lower": (features_.lower_rows, chunk),
        "tile": (min(kernels.TILE, features_.padded), chunk),
    }
    body = kernels.Body(
        features=features_,
        num_groups=plan.num_groups,
        dtype=plan.dtype,
        precision=plan.precision,
    )
    batch_size, num_kv_heads = query.shape[:2]
    inputs["query"] = _only_on_tpu(query)
    return pl.pallas_call(
        getattr(body, name),
        grid=(batch_size, num_kv_heads, plan.num_blocks, plan.num_chunks, plan.num_groups),
        in_specs=[None if x is None else specs[n] for n, x in inputs.items()],
        out_specs=tuple(specs[n] for n in outputs),
        out_shape=tuple(outputs.values()),
        scratch_shapes=[pltpu.VMEM(scratch_shapes[n], jnp.float32) for n in scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.vmem_bytes(),
        ),
        name=f"taylor_attention_{name}",
    )(*inputs.values())


def _only_on_tpu(x: jax.Array) -> jax.Array:
    """x; a program that holds it is lowered for TPU or refused, unless its kernels are interpreted.

    Asked when the program is lowered, so that it can be lowered for TPU on a host without one.
    """
    probe = jax.make_jaxpr(
        pl.pallas_call(lambda _: None, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32))
    )()
    is_interpreted = probe.eqns[0].params["interpret"]  # see pltpu.force_tpu_interpret_mode
    return x if is_interpreted else _only_on_tpu_p.bind(x)


def _refuse(context, x):
    del x
    platforms = context.module_context.platforms
    raise NotImplementedError(
        f"mosaic_tpu runs on TPU; this program is lowered for {', '.join(platforms)}. Use "
        "implementation='xla' or None there."
    )


_only_on_tpu_p = core.Primitive("only_on_tpu")
_only_on_tpu_p.def_impl(lambda x: jax.jit(_only_on_tpu_p.bind)(x))
_only_on_tpu_p.def_abstract_eval(lambda x: x)
batching.defvectorized(_only_on_tpu_p)
mlir.register_lowering(_only_on_tpu_p, _refuse)
mlir.register_lowering(_only_on_tpu_p, lambda context, x: [x], platform="tpu")
