"""python -m train NAME [--overrides] [--run-folder R] [--resume] [--overwrite] [--show]."""

from configs import load


def main(argv: list[str]) -> None:
    from configs.base import Experiment
    from train.pipeline import Pipeline

    config, flags = load.parse(argv, program="train", expects=(Experiment, Pipeline))
    from train import show

    if flags.show:
        show.print_config(config)
        if isinstance(config, Experiment):
            show.print_experiment(config)
        return
    # After the command line is known to be good: these load JAX.
    from configs.commands import COMMANDS
    from train import loop, pipeline
    from train.stopping import StopFlag

    if isinstance(config, Pipeline):
        with StopFlag(deadline_seconds=flags.stop_after_seconds) as stop:
            pipeline.run(
                config,
                flags.run_folder,
                commands=COMMANDS,
                stop=stop,
                resume=flags.resume,
                overwrite=flags.overwrite,
                command=flags.command,
            )
        return
    with load.opened_run(config, flags) as (folder, stop):
        print(f"checkpoint: {loop.run(config, folder, resume=flags.resume, stop=stop)}")


if __name__ == "__main__":
    load.main("train", main)
