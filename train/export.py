"""`python -m train.export RUN FOLDER`: the parameters of a run alone, small enough to give away.

Adapters are merged into their base. (`train.peft` writes them alone.)
"""

import argparse
import dataclasses
from pathlib import Path

from configs import load
from train import checkpoints
from train.errors import ConfigError

DTYPES = ("bfloat16", "float16", "float32")


def export(source: Path, target: Path, *, dtype: str = "bfloat16") -> None:
    """Writes a checkpoint of parameters only, which `load_params` reads.

    Args:
      source: run folder or checkpoint. target: a folder that does not exist yet.
      dtype: of the written parameters; bfloat16 keeps 8 significant bits, half of float32's bytes.

    Raises:
      ConfigError: the target exists, or another dtype is asked for.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"parameters are written as one of {', '.join(DTYPES)}; got {dtype!r}.")
    if target.exists():
        raise ConfigError(f"an export writes a new folder; {target} exists. Choose another one.")
    metadata = dataclasses.replace(
        checkpoints.read_metadata(checkpoints.find_step(source)),
        lora=None, base_path=None, base_fingerprint=None,
    )  # fmt: skip
    _, _, params = checkpoints.load_params(source)
    checkpoints.save_params(target, params, metadata, dtype=dtype)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__)
    parser.add_argument("source", type=Path, help="run folder or checkpoint")
    parser.add_argument("target", type=Path, help="folder to write; must not exist")
    parser.add_argument("--dtype", default="bfloat16", help=f"one of {', '.join(DTYPES)}")
    arguments = parser.parse_args(argv)
    export(arguments.source, arguments.target, dtype=arguments.dtype)
    size = sum(path.stat().st_size for path in arguments.target.rglob("*") if path.is_file())
    print(f"{arguments.target}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    load.main("train.export", main)
