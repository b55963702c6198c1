"""`python -m search.solve CHECKPOINT 4 5 6 10`: one Game of 24 puzzle, greedily and by searching.

The search has no oracle: it follows the model's own value. The checker speaks only at the end.
"""

import argparse
import dataclasses

from configs import game24_system2, load
from data import problems
from search import live, self_play
from train.errors import ConfigError


def solve(checkpoint: str, numbers: list[int], *, simulations: int) -> None:
    """Prints the greedy answer, the searched one, and what the search thought of each state.

    Raises:
      DataError: the puzzle has no solution, or there is no such checkpoint.
      ConfigError: not four numbers of 1 to 13, or no simulations.
    """
    if len(numbers) != 4 or not all(1 <= number <= 13 for number in numbers) or simulations < 1:
        raise ConfigError(
            "a puzzle is four numbers from 1 to 13, searched with 1 or more simulations; got "
            f"{' '.join(map(str, numbers))} with {simulations}. Give others."
        )
    problem = problems.game24_problem(numbers)
    search = dataclasses.replace(game24_system2.ANSWER, num_simulations=simulations)
    live.show(
        live.load(checkpoint),
        problem.prompt,
        self_play.SelfPlayConfig(search=search),
        checker=problem.verify,
        every_seconds=None,
    )


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m search.solve", description=__doc__)
    parser.add_argument("checkpoint", help="run folder or checkpoint of the model")
    parser.add_argument("numbers", type=int, nargs="+", help="four numbers from 1 to 13")
    parser.add_argument("--simulations", type=int, default=200, help="per move (200)")
    arguments = parser.parse_args(argv)
    solve(arguments.checkpoint, arguments.numbers, simulations=arguments.simulations)


if __name__ == "__main__":
    load.main("search.solve", main)
