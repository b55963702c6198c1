"""`python -m train.resume RUN_FOLDER`: continues any run from its folder alone, and marks its end.

What jobs on a cluster call: the folder of a training run, of a search, of an evaluation, or of a
pipeline (with --stage, one stage of it) says all that is to be done. A finished run gets a file
`done.json`; a second call does nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from configs import load
from train import config_json, pipeline, run_folder
from train.errors import ConfigError
from train.pipeline import Pipeline
from train.stopping import StopFlag

DONE = "done.json"


def is_done(folder: Path, config: Any) -> bool:
    """Whether the run in `folder` has come to its end, with this config."""
    done = folder / DONE
    return done.is_file() and run_folder.read_json(done)["sha256"] == config_json.sha256(config)


def resume(folder: Path, *, stop: StopFlag, stage: str | None = None) -> None:
    """Continues the run in `folder`, or one stage of the pipeline there, to its end.

    Raises:
      ConfigError: no config of ours. DataError: there is no run. Preempted: stopped, saved.
    """
    from configs.commands import COMMANDS, command_of  # loads JAX

    config = config_json.decode(run_folder.read_json(folder / "config.json"))
    if isinstance(config, Pipeline):
        if stage is not None:
            pipeline.run_stage(config, folder, stage, commands=COMMANDS, stop=stop)
        else:
            pipeline.run(config, folder, commands=COMMANDS, stop=stop, resume=True)
        return
    if stage is not None:
        raise ConfigError(
            f"stages belong to a pipeline; {folder} is the run of a {type(config).__name__}. Leave "
            "--stage out."
        )
    if is_done(folder, config):
        return
    COMMANDS[command_of(config)](config, folder, resume=True, stop=stop)
    run_folder.write_json(folder / DONE, {"sha256": config_json.sha256(config)})


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m train.resume", description=__doc__)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--stage", help="name of one stage of a pipeline")
    parser.add_argument("--stop-after-seconds", type=float, help="save and stop after this time")
    arguments = parser.parse_args(argv)
    with StopFlag(deadline_seconds=arguments.stop_after_seconds) as stop:
        resume(arguments.run_folder, stop=stop, stage=arguments.stage)


if __name__ == "__main__":
    load.main("train.resume", main)
