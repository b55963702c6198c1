"""`python -m models.chat CHECKPOINT`: talks with a model; with --search it thinks before it speaks.

    python -m models.chat runs/NAME
    python -m models.chat docs/results/game24_system2/params --search --problem "4 5 6 10"

What is typed, a line at a time, is the prompt; --form says how it is put to the model. With
--search it is answered twice, greedily and by a search without an oracle, with the path that the
search chose and P(solved) before every step of it. (A command, so it may use the search.)
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator

import jax

from configs import load
from data import problems, prompts
from data.errors import DataError
from data.tokenizer import Tokenizer
from models import generate
from search import live, self_play
from train.errors import ConfigError

FORMS = ("plain", "few_shot", "chat")
LIKE = {"game24": "game24_search", "grade_school": "grade_school_search"}
OTHERS_LIKE = "gsm8k_search"


def main(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    for name, least in (("temperature", 0), ("max_new_tokens", 1), ("simulations", 1)):
        given = getattr(arguments, name)
        if given is not None and given < least:
            raise ConfigError(f"{name} is {least} or more; got {given}. Give another --{name}.")
    speaker = live.load(arguments.checkpoint)
    config = _search_config(arguments, speaker) if arguments.search else None
    history: list[prompts.Message] = []
    warned: set[str] = set()
    for number, typed in enumerate(_typed(arguments.problem)):
        put = _put(typed, arguments.form, history, speaker.text)
        prompt = problems.Prompt(id=f"typed/{number}", split="custom", text=put)
        try:
            if config is not None:
                for warning in set(live.check(speaker, prompt, config)) - warned:
                    print(f"models.chat: warning: {warning}", file=sys.stderr)
                    warned.add(warning)
                answer = live.show(speaker, prompt, config)
            else:
                answer = _say(speaker, prompt.text, arguments, number)
                print(answer, flush=True)
        except DataError as error:
            if arguments.problem is not None:
                raise
            print(f"models.chat: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        history += [{"role": "user", "content": typed}, {"role": "assistant", "content": answer}]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="run folder or checkpoint of the model")
    parser.add_argument("--problem", metavar="TEXT", help="answer this, and nothing that is typed")
    parser.add_argument("--form", choices=FORMS, default="plain", help="of the prompt (plain)")
    parser.add_argument("--search", action="store_true", help="answer by searching, too")
    parser.add_argument("--simulations", type=int, help="per move of a search")
    parser.add_argument(
        "--like", metavar="NAME", help="file in configs/ with the settings of the search"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="without --search; 0 is greedy (0)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="without --search (256)")
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn")
    return parser


def _typed(problem: str | None) -> Iterator[str]:
    """The one problem, or every line that is typed until the end of the input or an empty line."""
    if problem is not None:
        yield problem
        return
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        print(prompt, end="", flush=True)
        line = sys.stdin.readline().rstrip("\n")
        if not line:
            return
        yield line


def _put(typed: str, form: str, history: list[prompts.Message], text: Tokenizer) -> str:
    """What the model reads: a chat as its own template writes it, else in ChatML."""
    if form == "few_shot":
        prompt = problems.Prompt(id="", split="", text=typed)
        return prompts.few_shot(problems.Problem(prompt=prompt, checker=bool)).prompt.text
    if form == "chat":
        instruction, question = prompts.messages(typed)
        return prompts.render(text, [instruction, *history, question])
    return typed + "\n"


def _say(speaker: live.Speaker, text: str, arguments: argparse.Namespace, number: int) -> str:
    (completion,) = generate.generate_texts(
        speaker.model,
        speaker.params,
        speaker.text,
        [text],
        max_new_tokens=arguments.max_new_tokens,
        rng_key=jax.random.fold_in(jax.random.key(arguments.seed), number),
        temperature=arguments.temperature,
        batch_size=1,
    )
    if arguments.form == "few_shot":
        return prompts.first_answer(completion.text)
    return completion.text


def _search_config(
    arguments: argparse.Namespace, speaker: live.Speaker
) -> self_play.SelfPlayConfig:
    """The settings of --like, or of the config that the model's tokenizer belongs to."""
    name = arguments.like or LIKE.get(speaker.metadata.tokenizer, OTHERS_LIKE)
    config = load.find(name)
    if not isinstance(config, self_play.SelfPlayConfig):
        raise ConfigError(
            f"--like names a config of `python -m search`; configs/{name}.py is a "
            f"{type(config).__name__}. Give another one, such as {OTHERS_LIKE}."
        )
    search = dataclasses.replace(config.search, use_oracle=False, root_noise=False)
    if arguments.simulations is not None:
        search = dataclasses.replace(search, num_simulations=arguments.simulations)
    if arguments.form == "few_shot":
        action = dataclasses.replace(search.action, empty_line_ends=True)
        search = dataclasses.replace(search, action=action)
    return dataclasses.replace(config, search=search, seed=arguments.seed)


if __name__ == "__main__":
    load.main("models.chat", main)
