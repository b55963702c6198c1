"""`python -m models.convert SRC DST`: a checkpoint of this project to a folder of `transformers`,
or back.

    python -m models.convert path/to/Llama-3.2-1B runs/llama            # to ours
    python -m models.convert runs/tiny exported --dtype bfloat16        # to theirs
    python -m models.convert path/to/Llama-3.2-1B runs/taylor --attention taylor --order 2
    python -m models.convert stories15M.bin stories                     # llama2.c to theirs

The attention is swapped as it stands: nothing is fitted or trained. (A command, so it may use
what reads and writes checkpoints.)
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Literal

from configs import load
from data import folder_tokenizer
from data.tokenizer import load_tokenizer
from models import huggingface, llama2c
from models.language_model import LanguageModel
from train import checkpoints
from train.errors import ConfigError, DataError


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="run folder, checkpoint, folder or .bin")
    parser.add_argument("target", type=Path, help="folder to write; must not exist")
    parser.add_argument("--to", choices=("ours", "huggingface"), help="form (the other one)")
    parser.add_argument("--attention", choices=("softmax", "taylor"), help="kind of attention")
    parser.add_argument("--order", type=int, default=2, help="of --attention taylor (2)")
    parser.add_argument("--dtype", choices=huggingface.DTYPES, default="float32")
    arguments = parser.parse_args(argv)
    convert(
        arguments.source,
        arguments.target,
        to=arguments.to,
        attention=arguments.attention,
        order=arguments.order,
        dtype=arguments.dtype,
    )
    print(arguments.target)


def convert(
    source: Path,
    target: Path,
    *,
    to: str | None = None,
    attention: Literal["softmax", "taylor"] | None = None,
    order: int = 2,
    dtype: str = "float32",
) -> None:
    """Writes the model of `source` in the other form, or in the one of `to`.

    Raises:
      DataError: an unusable source, or the target exists. ConfigError: no such attention, or no
        architecture of `transformers` is this model.
    """
    if target.exists():
        raise DataError(f"a conversion writes a new folder; {target} exists. Name another one.")
    if llama2c.is_file(source):
        _from_llama2c(source, target, to=to, attention=attention, dtype=dtype)
        return
    step = checkpoints.find_step(source)
    metadata = checkpoints.read_metadata(step)
    model_config, name, params = checkpoints.load_params(source)
    if to is None:
        to = "ours" if huggingface.is_folder(step) else "huggingface"
    tokenizer = load_tokenizer(name)
    try:
        if attention is not None:
            changed = dataclasses.replace(model_config.attention, kind=attention, order=order)
            model_config = dataclasses.replace(model_config, attention=changed)
        if to == "huggingface":
            huggingface.save(
                target,
                LanguageModel(model_config),
                params,
                tokenizer,
                dtype=dtype,
                longest_text_tokens=metadata.longest_text_tokens,
            )
            return
    except DataError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    is_beside = isinstance(tokenizer, folder_tokenizer.FolderTokenizer)
    metadata = dataclasses.replace(
        metadata, model=model_config, tokenizer=checkpoints.BESIDE if is_beside else name
    )
    checkpoints.save_params(target, params, metadata, dtype=dtype)
    if is_beside:
        (target / checkpoints.BESIDE).mkdir()
        folder_tokenizer.save(target / checkpoints.BESIDE, tokenizer)


def _from_llama2c(
    source: Path, target: Path, *, to: str | None, attention: str | None, dtype: str
) -> None:
    if to == "ours" or attention is not None:
        raise ConfigError(
            "a llama2.c file becomes a folder of transformers, and that anything else; got "
            f"to={to}, attention={attention}. Convert twice."
        )
    model, params, tokenizer = llama2c.load(source)
    longest = llama2c.longest_text(source)
    huggingface.save(target, model, params, tokenizer, dtype=dtype, longest_text_tokens=longest)


if __name__ == "__main__":
    load.main("models.convert", main)
