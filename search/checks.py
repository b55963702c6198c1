"""What makes a search useless, found before its first step: each is one line that says what to do.

A search runs for hours; a prompt that the model cannot follow, or logits that are not numbers, must
not show at its end.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from data import problems, tokenizer
from models import generate, language_model
from search import self_play, token_model
from train import checkpoints
from train.errors import ConfigError, DataError


def check(config: self_play.SelfPlayConfig) -> list[str]:
    """Looks at the checkpoint, the prompts and the actions of a search, and has the model read the
    first prompts.

    Returns:
      Warnings of what may be meant: values of a head that has not learned any, and texts longer
      than those of training.

    Raises:
      ConfigError: model and config do not fit each other. DataError: unusable problems, checkpoint
        or parameters.
    """
    self_play.check_prompts(config)
    metadata = checkpoints.read_metadata(checkpoints.find_step(config.checkpoint))
    action = config.search.action
    check_candidates(action, metadata.model.vocab_size)
    check_end_of_text(action, config.problem_set)
    text = tokenizer.load_tokenizer(metadata.tokenizer)
    found, numbers = self_play.load_problems(config)
    prompts = [found[number].prompt for number in numbers]
    encoded = [tokenizer.prompt_ids(text, prompt.text) for prompt in prompts]
    warnings = [
        check_value(metadata, use_value=config.search.use_value),
        check_lengths(metadata, prompts, encoded, room=action.max_completion_tokens),
    ]
    model_config, _, params = checkpoints.load_params(config.checkpoint)
    model = language_model.LanguageModel(model_config)
    check_logits(model, params, encoded[: config.batch_size], text)
    return [warning for warning in warnings if warning]


def check_candidates(action: token_model.ActionConfig, vocab_size: int) -> None:
    """There are as many different openings as a node has candidates."""
    k, length = action.num_candidates, action.num_opening_tokens
    if k > vocab_size**length:
        raise ConfigError(
            f"a node has at most as many candidates as there are openings; got num_candidates={k} "
            f"of {length} {'tokens' if length > 1 else 'token'} for a vocabulary of {vocab_size}. "
            f"Set search.action.num_candidates to {vocab_size**length} or less."
        )


def check_end_of_text(action: token_model.ActionConfig, problem_set: str) -> None:
    """Models go on to a next question after few-shot examples: the empty line is the end."""
    if problem_set.endswith("_few_shot") and not action.empty_line_ends:
        raise ConfigError(
            "an answer after few-shot examples ends with an empty line, not with the end of text; "
            f"got problem_set={problem_set} without search.action.empty_line_ends. Add "
            "--search.action.empty-line-ends."
        )


def check_value(metadata: checkpoints.Metadata, *, use_value: bool) -> str | None:
    """Every model of ours has a value head; one that was never trained says nothing."""
    if not use_value or metadata.has_trained_value is not False:
        return None
    return (
        "the value head of this model was never trained (its run learned from text alone), and "
        "the search believes it. Learn values from search records first, or set "
        "--search.no-use-value and give the search its oracle."
    )


def check_lengths(
    metadata: checkpoints.Metadata,
    prompts: Sequence[problems.Prompt],
    encoded: Sequence[Sequence[int]],
    *,
    room: int,
) -> str | None:
    """Prompts are no longer than the texts of training: rotary positions beyond those are new to
    the model. Without positions (`rope_base=None`) any length is in order.

    room: tokens of the longest completion.
    """
    known = metadata.longest_text_tokens
    if not all(encoded):
        empty = prompts[[len(ids) for ids in encoded].index(0)]
        raise DataError(
            f"a prompt has at least one token; {empty.id} has none. Leave it out with --first and "
            "--limit."
        )
    if known is None or metadata.model.rope_base is None:
        return None
    lengths = [len(ids) for ids in encoded]
    longest = int(np.argmax(lengths))
    if lengths[longest] >= known:
        raise ConfigError(
            "a prompt and its answer lie within the positions that the model was trained on; got "
            f"{known} of those, and prompts of up to {lengths[longest]} tokens "
            f"({prompts[longest].id}; {sum(n >= known for n in lengths)} of {len(lengths)} are too "
            "long). Play other problems, or train with a larger sequence_length_tokens."
        )
    if lengths[longest] + room <= known:
        return None
    return (
        f"texts may reach {lengths[longest]} + {room} tokens, and the model was trained on "
        f"{known}: what lies beyond is new to it. Lower search.action.max_completion_tokens, or "
        "train with a larger sequence_length_tokens."
    )


def check_logits(
    model: language_model.LanguageModel,
    params: language_model.Params,
    encoded: Sequence[Sequence[int]],
    text: tokenizer.Tokenizer,
) -> None:
    """The model reads these prompts, and what it says of the next token and the value is finite."""
    lengths = np.array([len(ids) for ids in encoded], np.int32)
    tokens = np.full((len(encoded), lengths.max()), text.pad_id, np.int32)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)] = ids
    logits, value = jax.device_get(_at_end(model, params, tokens, lengths))
    writable = np.ones(model.config.vocab_size, bool)
    writable[list(generate.unwritable_tokens(text, model.config.vocab_size))] = False
    bad = [
        f"{name} of {np.sum(~np.isfinite(x).all(axis=-1))} of {len(encoded)} prompts"
        for name, x in (("next-token logits", logits[:, writable]), ("value", value[:, None]))
        if not np.isfinite(x).all()
    ]
    if bad:
        raise DataError(
            "a model's logits are finite numbers; got NaN or infinity in the "
            f"{' and the '.join(bad)}. Its parameters are damaged or its training diverged: take "
            "an earlier checkpoint, or train again with a lower learning rate."
        )


@functools.partial(jax.jit, static_argnums=0)
def _at_end(model, params, tokens, lengths):
    out = model.outputs(params, tokens).at(lengths - 1)
    return out.logits, out.value_logits
