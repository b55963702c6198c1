"""A described H200 to lower for, and Pallas's GPU interpreter, completed where it has gaps.

Both run on a host without a GPU. JAX interprets `wgmma` only with both operands in shared memory;
here it also takes the left one from registers, and (jax 0.10) a transposed right one.
"""

import contextlib
import importlib.util

import jax
import numpy as np
import pytest
from jax._src.mesh import AbstractDevice  # no public name yet
from jax._src.pallas.mosaic.interpret import utils
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, shared_memory
from jax._src.pallas.mosaic_gpu.interpret.params import (
    InterpretGPUParams,
    force_gpu_interpret_mode,
)
from jax.experimental import topologies


def described_h200():
    """A context in which an H200 is what programs are lowered for."""
    device = AbstractDevice(device_kind="NVIDIA H200", platform="gpu", num_cores=132)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


# What XLA has to know of an H100 (80 GB, SXM): the text of an xla.gpu.GpuTargetConfigProto.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  core_count: 132  fpus_per_core: 128  registers_per_core_limit: 65536
  registers_per_block_limit: 65536  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  clock_rate_ghz: 1.98
  device_memory_size: 84942979072  device_address_bits: 64
  cuda_compute_capability { major: 9  feature_extension: ACCELERATED_FEATURES }
  name: "NVIDIA H100 80GB HBM3"
  driver_version: "13.0.0"  runtime_version: "13.0.0"  compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9  minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def compilable_h100():
    """A device to compile for, by the CUDA plugin, on a host without a GPU; skips without it."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        pytest.skip("needs the CUDA plugin: pip install -c constraints.txt -e '.[cuda]'")
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    return topology.devices[0]


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
