"""`python -m search NAME --checkpoint P`: plays the problems of a config, writes record shards."""

from configs import load
from search import self_play
from train import run_folder
from train.stopping import StopFlag


def main(argv: list[str]) -> None:
    config, flags = load.parse(argv, program="search", expects=self_play.SelfPlayConfig)
    if flags.show:
        print(config)
        return
    run_folder.prepare(
        flags.run_folder,
        config,
        resume=flags.resume,
        overwrite=flags.overwrite,
        command=flags.command,
    )
    with StopFlag(deadline_seconds=flags.stop_after_seconds) as stop:
        folder = self_play.run(config, flags.run_folder, resume=flags.resume, stop=stop)
    print(f"records: {folder}")


if __name__ == "__main__":
    load.main("search", main)
