import subprocess
import sys

import pytest

from train.run_folder import REPOSITORY_ROOT

PROGRAM = """
import resource, sys
import numpy as np
from train import host_memory
if sys.argv[1] == "keep":
    assert host_memory.keep_freed_memory()
for _ in range(2):  # the second round finds the memory of the first
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.full(8_000_000, 1.0)  # 64 MB, written to and freed
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def page_faults(what: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="speaks to glibc")
def test_freed_memory_is_used_again_without_page_faults():
    returned, kept = page_faults("return"), page_faults("keep")
    assert kept < returned / 10, (kept, returned)
