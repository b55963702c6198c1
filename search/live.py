"""One problem, answered greedily and by a search that can be watched; what was found is printed.

The search has no oracle: it follows the model's own value. A checker, if there is one, speaks only
of the finished answers.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike

from data import problems, tokenizer
from models import generate, language_model
from search import checks, self_play, token_model
from train import checkpoints

# (tokens [B, M], lengths [B], values [B]) of texts that a search has just written.
Watch = Callable[[ArrayLike, ArrayLike, ArrayLike], None]
Checker = Callable[[str], bool]


class Progress:
    """Prints where a running search is, now and then."""

    def __init__(self, text: tokenizer.Tokenizer):
        self._text = text
        self.start(every_seconds=1.0)

    def start(self, *, every_seconds: float) -> None:
        """A new search begins."""
        self._every_seconds = every_seconds
        self._started = self._printed = time.monotonic()
        self._count = 0

    def __call__(self, tokens: ArrayLike, lengths: ArrayLike, values: ArrayLike) -> None:
        tokens, lengths, values = map(np.asarray, (tokens, lengths, values))
        self._count += len(lengths)
        now = time.monotonic()
        if now - self._printed < self._every_seconds:
            return
        self._printed = now
        text = self._text.decode(tokens[0, : lengths[0]].tolist())
        print(
            f"  ... {self._count} texts in {now - self._started:.0f} s, P(solved) "
            f"{float(values[0]):.2f} after: {_in_one_line(text)[-80:]}",
            flush=True,
        )


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A model that was loaded to answer.

    progress: is told of what a watched search does. It is one and the same for all searches of a
    speaker, since every other one would be compiled anew.
    """

    model: language_model.LanguageModel
    params: language_model.Params
    text: tokenizer.Tokenizer
    metadata: checkpoints.Metadata
    progress: Progress


def load(checkpoint: str) -> Speaker:
    """The model of a run folder or checkpoint.

    Raises:
      DataError, ConfigError: as `checkpoints.load_params`.
    """
    metadata = checkpoints.read_metadata(checkpoints.find_step(checkpoint))
    config, name, params = checkpoints.load_params(checkpoint)
    text = tokenizer.load_tokenizer(name)
    return Speaker(language_model.LanguageModel(config), params, text, metadata, Progress(text))


def check(speaker: Speaker, prompt: problems.Prompt, config: self_play.SelfPlayConfig) -> list[str]:
    """As `checks.check`, of one prompt."""
    action = config.search.action
    checks.check_candidates(action, speaker.model.config.vocab_size)
    encoded = [tokenizer.prompt_ids(speaker.text, prompt.text)]
    warnings = [
        checks.check_value(speaker.metadata, use_value=config.search.use_value),
        checks.check_lengths(
            speaker.metadata, [prompt], encoded, room=action.max_completion_tokens
        ),
    ]
    checks.check_logits(speaker.model, speaker.params, encoded, speaker.text)
    return [warning for warning in warnings if warning]


def show(
    speaker: Speaker,
    prompt: problems.Prompt,
    config: self_play.SelfPlayConfig,
    *,
    checker: Checker | None = None,
    every_seconds: float | None = 1.0,
) -> str:
    """Prints the greedy answer, the searched one, what the search thought before every step of it,
    and what both cost.

    Args:
      config: settings of the search; its problems and its checkpoint are not used.
      checker: says whether a completion is right.
      every_seconds: between lines on a search that is running; None: no such lines.

    Returns:
      The searched answer.
    """
    action = config.search.action
    (greedy,) = generate.generate_texts(
        speaker.model,
        speaker.params,
        speaker.text,
        [prompt.text],
        max_new_tokens=action.max_completion_tokens,
        rng_key=jax.random.key(0),
        temperature=0.0,
        batch_size=1,
    )
    print(f"without search: {_answer(greedy.text, checker)}", flush=True)
    dynamics = token_model.for_tokenizer(speaker.model, action, speaker.text)
    if every_seconds is not None:
        speaker.progress.start(every_seconds=every_seconds)
        dynamics = _watched(dynamics, speaker.progress)
    (game,) = self_play.play(
        dynamics,
        speaker.params,
        [prompt],
        [0],
        speaker.text,
        config,
        jax.random.key(config.seed),
    )
    jax.effects_barrier()  # no line of progress comes after the answer
    record = game.record
    simulations = config.search.num_simulations
    print(f"with {simulations} simulations a move: {_answer(record.completion, checker)}")
    ends = [position.offset for position in record.positions[1:]]
    for position, end in zip(record.positions, [*ends, len(record.completion_tokens)]):
        step = speaker.text.decode(record.completion_tokens[position.offset : end])
        print(f"  P(solved) {position.root_value:.2f}  {_in_one_line(step)}")
    read = len(record.prompt_tokens) + len(greedy.tokens)
    print(f"  the model read {game.evaluations} tokens (without search {read})")
    return record.completion


def _answer(completion: str, checker: Checker | None) -> str:
    verdict = "" if checker is None else "right  " if checker(completion) else "wrong  "
    return verdict + _in_one_line(completion)


def _in_one_line(text: str) -> str:
    return text.removesuffix("\n").replace("\n", " | ")


def _unwatched(*_: Any) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class _WatchedModel(token_model.TokenModel):
    """The same dynamics; `watch` is told of every text that an action gives."""

    watch: Watch = _unwatched

    def act(self, params, state, action):
        child = super().act(params, state, action)
        jax.debug.callback(self.watch, child.tokens, child.length, child.value)
        return child


def _watched(model: token_model.TokenModel, watch: Watch) -> _WatchedModel:
    same = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return _WatchedModel(**same, watch=watch)
