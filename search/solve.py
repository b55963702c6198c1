"""`python -m search.solve CHECKPOINT 4 5 6 10`: one Game of 24 puzzle, greedily and by searching.

The search has no oracle: it follows the model's own value. The checker speaks only at the end.
"""

import argparse
import dataclasses

import jax

from configs import game24_system2, load
from data import problems, tokenizer
from models import generate, language_model
from search import self_play, token_model
from train import checkpoints
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
    config, name, params = checkpoints.load_params(checkpoint)
    model, text = language_model.LanguageModel(config), tokenizer.load_tokenizer(name)
    search = dataclasses.replace(game24_system2.ANSWER, num_simulations=simulations)

    (greedy,) = generate.generate_texts(
        model,
        params,
        text,
        [problem.prompt.text],
        max_new_tokens=search.action.max_completion_tokens,
        rng_key=jax.random.key(0),
        temperature=0.0,
    )
    print(f"without search: {_verdict(problem, greedy.text)}")
    (game,) = self_play.play(
        token_model.for_tokenizer(model, search.action, text),
        params,
        [problem.prompt],
        [0],
        text,
        self_play.SelfPlayConfig(search=search),
        jax.random.key(0),
    )
    print(f"with {simulations} simulations a move: {_verdict(problem, game.record.completion)}")
    lines = game.record.completion.split("\n")
    for line, position in zip(lines, game.record.positions, strict=False):
        print(f"  P(solved) {position.root_value:.2f}  {line}")
    print(f"  the model read {game.evaluations} tokens")


def _verdict(problem: problems.Problem, completion: str) -> str:
    verdict = "right" if problem.verify(completion) else "wrong"
    return f"{verdict}  " + completion.replace("\n", " | ")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m search.solve", description=__doc__)
    parser.add_argument("checkpoint", help="run folder or checkpoint of the model")
    parser.add_argument("numbers", type=int, nargs="+", help="four numbers from 1 to 13")
    parser.add_argument("--simulations", type=int, default=200, help="per move (200)")
    arguments = parser.parse_args(argv)
    solve(arguments.checkpoint, arguments.numbers, simulations=arguments.simulations)


if __name__ == "__main__":
    load.main("search.solve", main)
