"""Sampling: one prefill, then one cached token at a time until every row has stopped.

A row depends on its own prompt and its own random key only, so the batch it happens to share never
changes what it says. (Near-ties apart: another batch size may round a logit differently.)
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from data.tokenizer import Tokenizer, prompt_ids
from models.language_model import ModelOutputs, Params


@runtime_checkable
class CachedModel(Protocol):
    """What sampling asks of a model, `LanguageModel` or other; it must be hashable."""

    @property
    def config(self) -> Any:
        """Has a `vocab_size`."""

    def prefill(
        self, params: Params, tokens: Int[Array, "B T"], *, lengths: Int[Array, "B"], capacity: int
    ) -> tuple[ModelOutputs, Any]: ...

    def decode(
        self, params: Params, cache: Any, token: Int[Array, "B"]
    ) -> tuple[ModelOutputs, Any]: ...


class Generated(NamedTuple):
    """What came after each prompt.

    tokens: a stop token is the last of its row and is kept; after it come zeros.
    lengths: tokens generated, the stop token included; 1..M.
    log_probs: log p(token | all before) in nats under the model itself, that is at temperature 1
      over all tokens but the forbidden ones, whatever the sampling was; 0 after the end.
    """

    tokens: Int[Array, "B M"]
    lengths: Int[Array, "B"]
    log_probs: Float[Array, "B M"]


class Completion(NamedTuple):
    """One row of `Generated` as text; the token ids and their log probabilities in nats."""

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


def unwritable_tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """Ids below the model's `vocab_size` that no text holds, and that are never written.

    Special tokens other than the end of text, and the ids a tokenizer does not have.
    """
    special = (token for token in tokenizer.special_ids if token != tokenizer.eos_id)
    return (*sorted(special), *range(tokenizer.vocab_size, vocab_size))


def forbid(logits: Float[Array, "*B V"], tokens: tuple[int, ...]) -> Float[Array, "*B V"]:
    """Minus infinity for `tokens`: the others share all probability."""
    return logits.at[..., tokens].set(-jnp.inf) if tokens else logits


def filter_logits(
    logits: Float[Array, "V"],
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Float[Array, "V"]:
    """Minus infinity for all but the tokens that may be drawn.

    top_k: exactly the k most probable. top_p: the fewest most probable that together reach p
    (nucleus sampling, arXiv:1904.09751), counted within the top k. Ties go to the smaller id.
    min_p: those at least min_p times as probable as the likeliest one (arXiv:2407.01082).
    """
    order = jnp.argsort(logits, descending=True, stable=True)
    kept = jnp.ones(logits.shape, bool)  # by rank
    if top_k is not None:
        kept = jnp.arange(logits.size) < top_k
    if top_p is not None:
        probabilities = jax.nn.softmax(jnp.where(kept, logits[order], -jnp.inf))
        mass_before = jnp.cumsum(probabilities) - probabilities
        kept = kept & (mass_before < top_p)
    if min_p is not None:
        kept = kept & (logits[order] >= logits[order[0]] + math.log(min_p))
    return jnp.where(jnp.zeros_like(kept).at[order].set(kept), logits, -jnp.inf)


def sample_token(
    rng_key: Key[Array, ""],
    logits: Float[Array, "V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Int[Array, ""]:
    """One token: temperature first, then the filters. Temperature 0 takes the likeliest."""
    if temperature == 0:
        return jnp.argmax(logits).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / temperature
    if not (top_k is top_p is min_p is None):
        logits = filter_logits(logits, top_k=top_k, top_p=top_p, min_p=min_p)
    return jax.random.categorical(rng_key, logits).astype(jnp.int32)


def generate(
    model: CachedModel,
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    *,
    max_new_tokens: int,
    rng_key: Key[Array, ""] | Key[Array, "B"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_tokens: tuple[int, ...] = (),
    forbidden_tokens: tuple[int, ...] = (),
) -> Generated:
    """Continues right-padded prompts of `lengths[b]` >= 1 tokens by up to M = max_new_tokens.

    Compiled once per model, shape and setting; ends early when every row has met a stop token.

    Args:
      rng_key: one typed key (`jax.random.key`), from which row b takes `fold_in(rng_key, b)`, or
        one key per row. Step t of a row draws with `fold_in(row key, t)`.
      temperature: 0 is greedy and uses no randomness.
      forbidden_tokens: never drawn, as if the vocabulary did not have them.
    """
    vocab_size = model.config.vocab_size
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1; got {max_new_tokens}.")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 (greedy) or positive; got {temperature}.")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k must lie in 1..{vocab_size} (the vocabulary); got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1]; got {top_p}.")
    if min_p is not None and not 0 < min_p <= 1:
        raise ValueError(f"min_p must lie in (0, 1]; got {min_p}.")
    for name, ids in (("stop_tokens", stop_tokens), ("forbidden_tokens", forbidden_tokens)):
        if not all(0 <= token < vocab_size for token in ids):
            raise ValueError(f"{name} must be ids below {vocab_size}; got {ids}.")
    if len(set(forbidden_tokens)) == vocab_size:
        raise ValueError(f"forbidden_tokens must leave a token; got all {vocab_size}.")
    num_rows = tokens.shape[0]
    if rng_key.ndim == 0:
        rng_key = jax.vmap(lambda row: jax.random.fold_in(rng_key, row))(jnp.arange(num_rows))
    return _generate(
        model,
        params,
        tokens,
        lengths,
        rng_key,
        max_new_tokens=max_new_tokens,
        temperature=float(temperature),
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop_tokens=tuple(stop_tokens),
        forbidden_tokens=tuple(forbidden_tokens),
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "model", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "stop_tokens",
        "forbidden_tokens",
    ),
)  # fmt: skip
def _generate(
    model, params, tokens, lengths, row_keys,
    *, max_new_tokens, stop_tokens, forbidden_tokens, **sampling,
):  # fmt: skip
    num_rows, prompt_width = tokens.shape
    stops = jnp.asarray(stop_tokens, jnp.int32)
    rows = jnp.arange(num_rows)

    def draw(step, logits, running, generated):
        """Appends token number `step` to every running row."""
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
        logits = forbid(logits, forbidden_tokens)
        token = jax.vmap(lambda key, row: sample_token(key, row, **sampling))(keys, logits)
        log_prob = jax.nn.log_softmax(logits.astype(jnp.float32))[rows, token]
        generated = Generated(
            tokens=generated.tokens.at[:, step].set(jnp.where(running, token, 0)),
            lengths=generated.lengths + running,
            log_probs=generated.log_probs.at[:, step].set(jnp.where(running, log_prob, 0.0)),
        )
        return running & ~jnp.isin(token, stops), generated

    def unfinished(carry):
        step, _, running, _ = carry
        return (step < max_new_tokens) & running.any()

    def one_token(carry):
        step, cache, running, generated = carry
        out, cache = model.decode(params, cache, generated.tokens[:, step - 1])
        return step + 1, cache, *draw(step, out.logits, running, generated)

    out, cache = model.prefill(
        params, tokens, lengths=lengths, capacity=prompt_width + max_new_tokens
    )
    nothing = Generated(
        tokens=jnp.zeros((num_rows, max_new_tokens), jnp.int32),
        lengths=jnp.zeros(num_rows, jnp.int32),
        log_probs=jnp.zeros((num_rows, max_new_tokens)),
    )
    first = draw(0, out.at(lengths - 1).logits, jnp.ones(num_rows, bool), nothing)
    *_, generated = jax.lax.while_loop(unfinished, one_token, (1, cache, *first))
    return generated


def right_padded(
    prompts: Sequence[Sequence[int]],
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]:
    """Prompts as rows, and their lengths; T is a power of two, so that few shapes are compiled."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    width = max(16, 1 << (int(lengths.max()) - 1).bit_length())
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, lengths


def generate_texts(
    model: CachedModel,
    params: Params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    max_new_tokens: int,
    rng_key: Key[Array, ""],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_tokens: tuple[int, ...] | None = None,
    batch_size: int = 64,
) -> list[Completion]:
    """Continues each text; the n-th draws from `fold_in(rng_key, n)` however the batches fall.

    Only tokens that a text can hold are drawn (all but `unwritable_tokens`).
    Texts of like length share a batch; prompts are padded to a power of two and batches to
    `batch_size` rows, so that few shapes are compiled. For several samples repeat the text.

    Args:
      stop_tokens: ends a completion; the end-of-text token if None.
    """
    stop_tokens = (tokenizer.eos_id,) if stop_tokens is None else tuple(stop_tokens)
    prompts = [prompt_ids(tokenizer, text) for text in texts]
    if empty := [n for n, prompt in enumerate(prompts) if not prompt]:
        raise ValueError(f"text {empty[0]} has no tokens; a prompt needs at least one.")
    row_keys = jax.vmap(lambda n: jax.random.fold_in(rng_key, n))(jnp.arange(len(texts)))
    completions: dict[int, Completion] = {}
    by_length = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    for start in range(0, len(prompts), batch_size):
        rows = by_length[start : start + batch_size]
        padded_rows = rows + [rows[-1]] * (batch_size - len(rows))  # copies end with the original
        tokens, lengths = right_padded([prompts[n] for n in padded_rows])
        generated = generate(
            model,
            params,
            jnp.asarray(tokens),
            jnp.asarray(lengths),
            max_new_tokens=max_new_tokens,
            rng_key=row_keys[jnp.asarray(padded_rows)],
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            stop_tokens=stop_tokens,
            forbidden_tokens=unwritable_tokens(tokenizer, model.config.vocab_size),
        )
        new_tokens, new_lengths, log_probs = jax.device_get(generated)
        for row, n in enumerate(rows):
            length = int(new_lengths[row])
            ids = new_tokens[row, :length].tolist()
            completions[n] = Completion(
                text=tokenizer.decode(ids),
                tokens=tuple(ids),
                log_probs=tuple(log_probs[row, :length].tolist()),
            )
    return [completions[n] for n in range(len(texts))]
