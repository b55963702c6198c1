"""Fixtures of all tests, and tests on several devices.

A test marked `@pytest.mark.devices(8)` runs in a process of its own that sees 8 CPU devices. The
other tests see one: a mesh of "all devices" would make every one of them compile for, and share
two cores among, 8 devices. The process costs the import of jax (about 5 s): use few such tests.

    @pytest.mark.devices(8)
    def test_training_on_eight_devices_equals_one():
        assert jax.device_count() == 8
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from train import compilation_cache

os.environ.setdefault("JAX_PLATFORMS", "cpu")
compilation_cache.enable()  # many tests compile the same small programs

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
INSIDE_DEVICES_PROCESS = "TAYLORZERO_TEST_DEVICES"
MANY_MAPPINGS = 16_000
"""Pieces of memory mapped by a process. Linux allows 65,530 (vm.max_map_count); beyond, JAX dies of
a segmentation fault. Every compiled program holds some until it is forgotten."""


@pytest.fixture(scope="module", autouse=True)
def forget_old_programs() -> Iterator[None]:
    """Compiled programs of earlier modules go once there are many."""
    yield
    import jax  # reads JAX_PLATFORMS, set above

    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The folder that every command runs in."""
    return REPOSITORY_ROOT


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """`data_file("game24/24.csv")`: path of a downloaded file; skips the test without it."""
    from data import files

    def find(name: str) -> Path:
        path = files.find(name)
        if path is None:
            pytest.skip(f"needs the downloaded {name}; set TAYLORZERO_DATA to the folder it is in")
        return path

    return find


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of downloaded data; skips the test where there is none."""
    from data import files

    existing = [root for root in files.roots() if root.is_dir()]
    if not existing:
        pytest.skip("needs downloaded data; set TAYLORZERO_DATA to the folder it is in")
    return existing[0]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    marker = pyfuncitem.get_closest_marker("devices")
    if marker is None or INSIDE_DEVICES_PROCESS in os.environ:
        return None
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {
        INSIDE_DEVICES_PROCESS: "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={marker.args[0]}",
    }
    arguments = ["-q", "-p", "no:cacheprovider", "-m", "", pyfuncitem.nodeid]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=REPOSITORY_ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0 or "1 passed" not in done.stdout:
        pytest.fail(f"on {marker.args[0]} devices:\n{done.stdout}{done.stderr}", pytrace=False)
    return True
