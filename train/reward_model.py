"""A trained reward model: chats in, grades of their last answers out."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from data import answer_rows, attributes, chat
from data.chat import Prompt, TemplateName
from data.prompts import Message
from data.tokenizer import Tokenizer, load_tokenizer
from models import heads
from models.heads import Pool
from models.language_model import LanguageModel, Params
from train import checkpoints
from train.errors import ConfigError

SHORTEST_ROW = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A model with a reward head, and how it reads chats."""

    model: LanguageModel
    params: Params
    tokenizer: Tokenizer
    template: TemplateName
    pool: Pool
    length: int
    """Tokens of the longest text that it is given; longer ones are cut (`data.chat.cut`)."""

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of its outputs."""
        return attributes.names(self.model.config.num_attributes)

    def score(
        self, chats: Sequence[Sequence[Message]], *, batch_size: int = 32
    ) -> Float[np.ndarray, "n A"]:
        """Attributes of the last answer of every chat, as predicted: not clipped, not rounded."""
        arrays = answer_rows.scored_rows(chats, self.tokenizer, self.template, self.length)
        scores = np.zeros((len(chats), len(self.attributes)), np.float32)
        order = np.argsort(arrays["lengths"], kind="stable")
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            filled = np.resize(rows, batch_size)  # every batch of a length has one shape
            longest = max(SHORTEST_ROW, int(arrays["lengths"][filled].max()))
            width = min(self.length, 1 << (longest - 1).bit_length())
            got = _score(
                self.model,
                self.pool,
                self.params,
                arrays["tokens"][filled, :width],
                arrays["lengths"][filled],
            )
            scores[rows] = np.asarray(got)[: len(rows)]
        return scores

    def score_answers(
        self, prompts: Sequence[Prompt], answers: Sequence[str], *, batch_size: int = 32
    ) -> Float[np.ndarray, "n A"]:
        """The same for prompts and their answers."""
        pairs = zip(prompts, answers, strict=True)
        return self.score([chat.with_answer(*pair) for pair in pairs], batch_size=batch_size)


def load(path: Path | str) -> RewardModel:
    """The reward model in a run folder or checkpoint.

    Raises:
      ConfigError: it is no reward model. DataError: nothing readable lies there.
    """
    metadata = checkpoints.read_metadata(checkpoints.find_step(path))
    if not metadata.model.num_attributes or metadata.reward_pool is None:
        raise ConfigError(
            f'a reward model is trained with recipe "reward"; {path} holds another model. '
            "Give the run folder of a reward model."
        )
    config, name, params = checkpoints.load_params(path)
    assert metadata.template is not None and metadata.longest_text_tokens is not None
    return RewardModel(
        model=LanguageModel(config),
        params=params,
        tokenizer=load_tokenizer(name),
        template=metadata.template,  # type: ignore[arg-type]
        pool=metadata.reward_pool,  # type: ignore[arg-type]
        length=metadata.longest_text_tokens,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(model: LanguageModel, pool: Pool, params: Params, tokens: Array, lengths: Array):
    predictions = model.outputs(params, tokens).reward
    assert predictions is not None  # a reward model has a reward head
    return heads.at_end(predictions, lengths, pool)
