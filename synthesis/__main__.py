"""python -m synthesis annotate|judge|plant|steer|synthesize [--options] [--run-folder R] [--show].

Each is resumable (`--resume`) and a stage of a pipeline, by the same name; `--help` after the name
explains its options.
"""

import dataclasses
import importlib
from typing import Any

from configs import load
from synthesis.writers import RECORDED
from train import checkpoints, show
from train.errors import ConfigError

COMMANDS = {  # name -> its config (in the module of that name) and the fields that must be given
    "annotate": ("AnnotateConfig", ("rows", "reward_model")),
    "judge": ("JudgeConfig", ("responses",)),
    "plant": ("PlantConfig", ()),
    "steer": ("SteerConfig", ("checkpoint", "prompts")),
    "synthesize": ("SynthesizeConfig", ("writer",)),
}
OF_CHECKPOINTS = ("checkpoint", "reward_model", "writer")


def main(argv: list[str]) -> None:
    usage = f"usage: python -m synthesis {'|'.join(COMMANDS)} [--options]"
    if list(argv) in (["--help"], ["-h"]):
        print(f"{usage}\n`python -m synthesis NAME --help` explains every option.")
        return
    name, *rest = argv or [""]
    if name not in COMMANDS:
        raise ConfigError(
            f"the first argument is one of {', '.join(COMMANDS)}; got {name!r}. {usage}"
        )
    module, (kind, needed) = importlib.import_module(f"synthesis.{name}"), COMMANDS[name]
    config, flags = load.override(getattr(module, kind)(), rest, program="synthesis", name=name)
    if flags.show:
        show.print_config(config)
        return
    for field in needed:
        if not getattr(config, field):
            raise ConfigError(
                f"python -m synthesis {name} has nothing to work on without "
                f"--{field.replace('_', '-')}. See --help."
            )
    config = _with_steps(config)
    with load.opened_run(config, flags) as (folder, stop):
        print(module.run(config, folder, resume=flags.resume, stop=stop))


def _with_steps(config: Any) -> Any:
    """Checkpoints by their own names: a run that trains on changes nothing after --resume."""
    changes = {
        name: checkpoints.name_step(path)
        for name in OF_CHECKPOINTS
        if (path := getattr(config, name, "")) and not path.startswith(RECORDED)
    }
    return dataclasses.replace(config, **changes)


if __name__ == "__main__":
    load.main("synthesis", main)
