"""The extras that `make` installs, and the platforms that JAX then runs on."""

import os
import subprocess

import pytest


@pytest.mark.parametrize(
    ("extras", "installed", "stamp", "platforms"),
    [
        ([], ".[dev]", ".venv/stamp", "cpu"),
        (["EXTRAS=cuda"], ".[dev,cuda]", ".venv/stamp-cuda", "cuda,cpu"),
        (["EXTRAS=eval,tpu"], ".[dev,eval,tpu]", ".venv/stamp-eval-tpu", "tpu,cpu"),
        (["EXTRAS=eval"], ".[dev,eval]", ".venv/stamp-eval", "cpu"),
        (["EXTRAS=cuda", "JAX_PLATFORMS=cpu"], ".[dev,cuda]", ".venv/stamp-cuda", "cpu"),
    ],
)
def test_make_installs_extras_and_uses_their_accelerator(
    repository_root, extras, installed, stamp, platforms
):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_PLATFORMS", "EXTRAS", "MAKEFLAGS", "MAKELEVEL")
    }

    def make(*arguments: str) -> str:
        return subprocess.run(
            ["make", *arguments, *extras],
            cwd=repository_root, env=environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    planned = make("--dry-run", "--always-make", "lint")
    assert f"--editable '{installed}'\n" in planned
    assert f"touch {stamp}\n" in planned
    assert make("--eval", "platforms: ; @echo $$JAX_PLATFORMS", "platforms").strip() == platforms
