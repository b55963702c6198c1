"""How likely continuations are after their contexts: what texts share is read once.

    requests = [Request(context, continuation), ...]            token ids
    for batch, found in Reader(model, params).read(plan(requests, ...)): ...

Continuations of one context (the choices of a question) are lanes after it. Contexts that begin
alike (the same worked examples) are paths after one prefix. All others share batches of like
length, whose shapes come from a short list, so that few programs are compiled.

Truncation is that of lm-eval: of a text longer than the model reads, its end is kept.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.language_model import LanguageModel, Params

LEAST_SHARED_TOKENS = 64  # shorter beginnings are read again in every text
LEAST_SHARING = 4  # texts, below which a common beginning is not worth a program of its own
BATCH_TOKENS = 4096
BATCHES_AT_ONCE = 2  # a single batch leaves processors idle

Tokens = tuple[int, ...]


class Request(NamedTuple):
    """A continuation that is scored after its context; both have at least one token."""

    context: Tokens
    continuation: Tokens


class Likelihood(NamedTuple):
    """log_prob: log p(continuation | context) in nats. is_greedy: greedy decoding writes it."""

    log_prob: float
    is_greedy: bool


@dataclasses.dataclass(frozen=True)
class Text:
    """A context, without the prefix of its batch, and its continuations by number of request."""

    context: Tokens
    continuations: dict[int, Tokens]

    @property
    def longest(self) -> int:
        return max(map(len, self.continuations.values()))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Texts that are read together after one prefix, which may be empty.

    shape: (W texts, T tokens, R continuations, U tokens each), with padding.
    """

    prefix: Tokens
    texts: tuple[Text, ...]
    shape: tuple[int, int, int, int]

    @property
    def requests(self) -> list[int]:
        """Numbers of the requests that are answered."""
        return [number for text in self.texts for number in text.continuations]


def plan(
    requests: Sequence[Request], *, longest_tokens: int, batch_tokens: int = BATCH_TOKENS
) -> list[Batch]:
    """The batches that answer all requests; a function of its arguments alone.

    Args:
      longest_tokens: that the model reads at once; of a longer text the beginning is left out.
      batch_tokens: of one batch, padding included; a longer text has a batch to itself.

    Raises:
      ValueError: an empty context or continuation, or a continuation longer than `longest_tokens`.
    """
    by_context: dict[Tokens, dict[int, Tokens]] = collections.defaultdict(dict)
    for number, (context, continuation) in enumerate(requests):
        if not context or not 1 <= len(continuation) <= longest_tokens:
            raise ValueError(
                f"a request has a context and 1 to {longest_tokens} tokens after it; got "
                f"{len(context)} and {len(continuation)} in request {number}. Cut it into windows."
            )
        # The last token is scored and not read.
        kept = tuple(context)[-(longest_tokens + 1 - len(continuation)) :]
        by_context[kept][number] = tuple(continuation)
    batches: list[Batch] = []
    alone: list[Text] = []
    for prefix, contexts in _clusters(sorted(by_context)):
        texts = [
            Text(context[len(prefix) :], some)
            for context in contexts
            for some in _split(len(context) - len(prefix), by_context[context], batch_tokens)
        ]
        if prefix:
            batches += _cut(prefix, texts, batch_tokens)
        else:
            alone += texts
    return [*_cut((), alone, batch_tokens), *batches]


def _split(
    length: int, continuations: dict[int, Tokens], batch_tokens: int
) -> Iterator[dict[int, Tokens]]:
    """Continuations of one context of that length in parts that fit into a batch."""
    part: dict[int, Tokens] = {}
    for number, continuation in continuations.items():
        longest = _lane_length(max(len(continuation), *map(len, part.values())) if part else 1)
        if part and padded(length) + _power_of_two(len(part) + 1) * longest > batch_tokens:
            yield part
            part = {}
        part[number] = continuation
    yield part


def _clusters(contexts: Sequence[Tokens]) -> Iterator[tuple[Tokens, list[Tokens]]]:
    """Sorted contexts in runs that begin alike, with what they share; () for those that do not.

    A run ends where the next context shares less than half of what the run has shared so far.
    """
    run, shared = list(contexts[:1]), 0
    for earlier, context in itertools.pairwise(contexts):
        common = _num_common(earlier, context)
        new = common if len(run) == 1 else min(shared, common)
        if common >= LEAST_SHARED_TOKENS and new * 2 >= shared:
            run.append(context)
            shared = new
        else:
            yield _run(run, shared)
            run, shared = [context], 0
    if run:
        yield _run(run, shared)


def _run(run: list[Tokens], shared: int) -> tuple[Tokens, list[Tokens]]:
    # Every text keeps a token of its own, after which its continuations begin.
    shared = min(shared, min(map(len, run)) - 1)
    is_worth_it = len(run) >= LEAST_SHARING and shared >= LEAST_SHARED_TOKENS
    return (run[0][:shared] if is_worth_it else ()), run


def _num_common(first: Tokens, second: Tokens) -> int:
    pairs = zip(first, second)
    return next(
        (n for n, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second))
    )


def _cut(prefix: Tokens, texts: list[Text], batch_tokens: int) -> Iterator[Batch]:
    """The longest first: what does not fit into memory fails at once."""
    texts = sorted(texts, key=lambda text: (-len(text.context), -text.longest, text.context))
    while texts:
        width = padded(len(texts[0].context))
        taken: list[Text] = []
        lanes, longest = 1, 1
        for text in texts:
            new_lanes = max(lanes, _power_of_two(len(text.continuations)))
            new_longest = max(longest, _lane_length(text.longest))
            per_text = width + (new_lanes * new_longest if new_longest > 1 else 0)
            if taken and (len(taken) + 1) * per_text > batch_tokens:
                break
            taken.append(text)
            lanes, longest = new_lanes, new_longest
        texts = texts[len(taken) :]
        rows = padded(len(taken))
        yield Batch(prefix=prefix, texts=tuple(taken), shape=(rows, width, lanes, longest))


def padded(length: int) -> int:
    """The least of 8, 16, 24, 32, 40, 48, 56, 64, 80, ... (eighths of powers of two) that holds it.

    At most a quarter of a batch is padding, an eighth of a long one.
    """
    step = max(8, 1 << max(length - 1, 1).bit_length() >> 3)
    return -(-length // step) * step


def _lane_length(length: int) -> int:
    """Of a continuation with its padding."""
    return _power_of_two(length) if length <= 8 else padded(length)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model that reads batches."""

    model: LanguageModel
    params: Params

    def read(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, dict[int, Likelihood]]]:
        """Batches in their order, with the likelihoods by number of request."""
        prefixes = _Prefixes(self.model, self.params)
        waiting: collections.deque = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(BATCHES_AT_ONCE) as pool:
            for batch in batches:
                cache = prefixes(batch.prefix) if batch.prefix else None
                waiting.append((batch, pool.submit(self._read_one, batch, cache)))
                if len(waiting) >= BATCHES_AT_ONCE:
                    done, found = waiting.popleft()
                    yield done, found.result()
            for done, found in waiting:
                yield done, found.result()

    def score(self, requests: Sequence[Request], **planned: Any) -> list[Likelihood]:
        """The likelihoods of all requests (arguments of `plan`)."""
        found: dict[int, Likelihood] = {}
        for _, likelihoods in self.read(plan(requests, **planned)):
            found |= likelihoods
        return [found[number] for number in range(len(requests))]

    def _read_one(self, batch: Batch, cache: Any) -> dict[int, Likelihood]:
        rows, width, lanes, longest = batch.shape
        tokens = np.zeros((rows, width), np.int32)
        lengths = np.ones(rows, np.int32)
        branches = np.zeros((rows, lanes, longest), np.int32)
        branch_lengths = np.zeros((rows, lanes), np.int32)
        for row, text in enumerate(batch.texts):
            lengths[row] = len(text.context)
            tokens[row, : len(text.context)] = text.context
            for lane, continuation in enumerate(text.continuations.values()):
                branches[row, lane, : len(continuation)] = continuation
                branch_lengths[row, lane] = len(continuation)
        log_probs, is_greedy = jax.device_get(
            _read(self.model, self.params, cache, tokens, lengths, branches, branch_lengths)
        )
        return {
            number: Likelihood(float(log_probs[row, lane]), bool(is_greedy[row, lane]))
            for row, text in enumerate(batch.texts)
            for lane, number in enumerate(text.continuations)
        }


class _Prefixes:
    """The cache of the newest prefix; batches of one prefix follow one another."""

    def __init__(self, model: LanguageModel, params: Params):
        self._model, self._params = model, params
        self._newest: tuple[Tokens, Any] = ((), None)

    def __call__(self, prefix: Tokens) -> Any:
        if self._newest[0] != prefix:
            tokens = np.zeros((1, max(64, _power_of_two(len(prefix)))), np.int32)
            tokens[0, : len(prefix)] = prefix
            cache = _read_prefix(self._model, self._params, tokens, np.array([len(prefix)]))
            self._newest = (prefix, cache)
        return self._newest[1]


@functools.partial(jax.jit, static_argnums=0)
def _read_prefix(model, params, tokens, lengths):
    return model.prefill(params, tokens, lengths=lengths, capacity=tokens.shape[1])[1]


@functools.partial(jax.jit, static_argnums=0)
def _read(model, params, prefix, tokens, lengths, branches, branch_lengths):
    """Sums of log-probabilities `[W, R]`, and whether every token was the likeliest one.

    Logits are taken where a continuation is scored and nowhere else.
    """
    rows, width = tokens.shape
    if prefix is None:
        out, cache = model.prefill(params, tokens, lengths=lengths, capacity=width)
    else:
        paths = model.empty_paths(prefix, rows, width)
        out, cache = model.extend(params, paths, tokens, lengths)

    def of_tokens(hidden, chosen):
        logits = model.logits(params, hidden)
        picked = jnp.take_along_axis(logits, chosen, axis=-1)
        return picked - jax.nn.logsumexp(logits, axis=-1, keepdims=True), (
            chosen == jnp.argmax(logits, axis=-1, keepdims=True)
        )

    at_end = out.hidden[jnp.arange(rows), lengths - 1]
    log_probs, is_likeliest = of_tokens(at_end, branches[..., 0])  # [W, R]
    if branches.shape[2] > 1:
        lanes = model.read_lanes(params, cache, branches[..., :-1])
        inner, inner_likeliest = of_tokens(lanes.hidden, branches[..., 1:, None])
        exists = jnp.arange(1, branches.shape[2]) < branch_lengths[..., None]
        log_probs += jnp.where(exists, inner[..., 0], 0.0).sum(-1)
        is_likeliest &= (inner_likeliest[..., 0] | ~exists).all(-1)
    return log_probs, is_likeliest
