"""A described H200 to lower for, and Pallas's GPU interpreter, completed where it has gaps.

Both run on a host without a GPU. JAX interprets `wgmma` only with both operands in shared memory;
here it also takes the left one from registers, and (jax 0.10) a transposed right one.
"""

import contextlib

import jax
import numpy as np
from jax._src.mesh import AbstractDevice  # no public name yet
from jax._src.pallas.mosaic.interpret import utils
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, shared_memory
from jax._src.pallas.mosaic_gpu.interpret.params import (
    InterpretGPUParams,
    force_gpu_interpret_mode,
)


def described_h200():
    """A context in which an H200 is what programs are lowered for."""
    device = AbstractDevice(device_kind="NVIDIA H200", platform="gpu", num_cores=132)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


class _Registers:
    def __init__(self, array):
        self.array = np.asarray(array)


class _Transposed:
    def __init__(self, where):
        self.where = where


@contextlib.contextmanager
def interpreted():
    """A context in which Mosaic GPU kernels are interpreted; memory starts as NaN."""
    keys, memory = gpu_callbacks.HostAllocationKey, shared_memory.GPUSharedMemory
    from_array, read, to_range = keys.from_array, memory.get_buffer_content, utils.to_range
    access = getattr(memory, "access", None)

    def read_operand(self, key, where, *args, **kwargs):
        if isinstance(key, _Registers):
            return key.array, None, None
        if isinstance(where, _Transposed):
            array, *rest = read(self, key, where.where, *args, **kwargs)
            return array.T, *rest
        return read(self, key, where, *args, **kwargs)

    def to_untransposed_range(transforms):
        kept = tuple(t for t in transforms if type(t).__name__ != "TransposeTransform")
        where = to_range(kept)
        return where if len(kept) == len(transforms) else _Transposed(where)

    with contextlib.ExitStack() as undo:

        def replace(owner, name, value):
            if name in vars(owner):
                undo.callback(setattr, owner, name, vars(owner)[name])
            else:  # inherited
                undo.callback(delattr, owner, name)
            setattr(owner, name, value)

        # An operand in registers arrives as a matrix, one in memory as the key of an allocation.
        operand = lambda x: _Registers(x) if np.ndim(x) == 2 else from_array(x)  # noqa: E731
        replace(keys, "from_array", staticmethod(operand))
        replace(memory, "get_buffer_content", read_operand)
        if access is None:
            replace(utils, "to_range", to_untransposed_range)
        else:
            replace(
                memory,
                "access",
                lambda self, key, *a: (
                    None if isinstance(key, _Registers) else access(self, key, *a)
                ),
            )
        undo.enter_context(force_gpu_interpret_mode(InterpretGPUParams(uninitialized_memory="nan")))
        undo.callback(gpu_callbacks.reset_gpu_interpret_mode_state)
        yield
