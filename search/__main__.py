"""python -m search NAME --checkpoint P [--overrides] [--run-folder R] [--resume] [--show]: plays
the problems of a config and writes their records.
"""

import dataclasses
import sys

from configs import load
from search import checks, self_play
from train import checkpoints, show
from train.errors import ConfigError


def main(argv: list[str]) -> None:
    config, flags = load.parse(argv, program="search", expects=self_play.SelfPlayConfig)
    if flags.show:
        print_search(config)
        return
    if not config.checkpoint:
        raise ConfigError(
            "a search needs a model that plays; got no checkpoint. Give --checkpoint, the folder "
            "of a `python -m train` run."
        )
    # A misspelt name leaves no run folder behind, and a run that trains on in the meantime does not
    # change who plays after --resume.
    config = dataclasses.replace(config, checkpoint=checkpoints.name_step(config.checkpoint))
    for warning in checks.check(config):
        print(f"search: warning: {warning}", file=sys.stderr)
    with load.opened_run(config, flags) as (folder, stop):
        print(f"records: {self_play.run(config, folder, resume=flags.resume, stop=stop)}")


def print_search(config: self_play.SelfPlayConfig) -> None:
    """Resolved config, size of the model if one is given, and the first prompt."""
    show.print_config(config)
    if config.checkpoint:
        _, _, params = checkpoints.load_params(config.checkpoint)
        show.print_parameters(params)
    problems, numbers = self_play.load_problems(config)
    num_games = len(numbers) * len(config.random_moves)
    print(f"{num_games} games of {len(numbers)} problems; the first prompt:")
    print(problems[numbers[0]].prompt.text, end="")


if __name__ == "__main__":
    load.main("search", main)
