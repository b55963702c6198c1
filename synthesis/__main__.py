"""python -m synthesis annotate|steer|judge [--options] [--run-folder R] [--resume] [--show].

Each is also a stage of a pipeline, by the same name; `--help` after the name explains its options.
"""

import dataclasses
import importlib

from configs import load
from train import show
from train.errors import ConfigError

COMMANDS = {  # name -> config; its module has `run`
    "annotate": "AnnotateConfig",
    "judge": "JudgeConfig",
    "steer": "SteerConfig",
}


def main(argv: list[str]) -> None:
    usage = f"usage: python -m synthesis {'|'.join(COMMANDS)} [--options]"
    if list(argv) in (["--help"], ["-h"]):
        print(f"{usage}\n`python -m synthesis NAME --help` explains every option.")
        return
    name, *rest = argv or [""]
    if name not in COMMANDS:
        raise ConfigError(f"the first argument is one of {', '.join(COMMANDS)}; got {name!r}. {usage}")
    module = importlib.import_module(f"synthesis.{name}")
    config, flags = load.override(
        getattr(module, COMMANDS[name])(), rest, program="synthesis", name=name
    )
    if flags.show:
        show.print_config(config)
        return
    _check_given(name, config)
    with load.opened_run(config, flags) as (folder, stop):
        print(module.run(config, folder, resume=flags.resume, stop=stop))


def _check_given(name: str, config) -> None:
    """Fields that are empty unless somebody fills them."""
    for field in dataclasses.fields(config):
        if field.default in ("", ()) and not getattr(config, field.name) and field.name in NEEDED[name]:
            raise ConfigError(
                f"python -m synthesis {name} needs --{field.name.replace('_', '-')}; see --help."
            )


NEEDED = {
    "annotate": ("rows", "reward_model"),
    "judge": ("responses",),
    "steer": ("checkpoint", "prompts"),
}

if __name__ == "__main__":
    load.main("synthesis", main)
