"""The oracle: the checkers of a problem set, callable from inside a jitted search.

A search without the oracle never receives this object, and `data.problems.Prompt`, which it does
receive, carries nothing of the answer.
"""

import dataclasses
import functools

import numpy as np

from data import problems, tokenizer


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Judges texts by problem number. Equal fields are equal oracles, so jit compiles once."""

    problem_set: str
    split: str
    tokenizer_name: str

    @functools.cached_property
    def problems(self) -> list[problems.Problem]:
        return problems.load_problems(self.problem_set, self.split)

    def __call__(
        self, numbers: np.ndarray, tokens: np.ndarray, lengths: np.ndarray, ended: np.ndarray
    ) -> np.ndarray:
        """Outcomes `[B]` (1.0 right, 0.0 wrong or not ended) of completions `[B, M]`.

        `numbers`: `[B]`, which problem each row is about. Plain numpy: this runs on the host while
        the device waits, where calling JAX could deadlock.
        """
        text = tokenizer.load_tokenizer(self.tokenizer_name)
        outcomes = np.zeros(len(numbers), np.float32)
        for row in np.flatnonzero(ended):
            ids = tokens[row, : lengths[row]].tolist()
            if max(ids) >= text.vocab_size or text.pad_id in ids:
                continue  # no text: decoding would fail, or read past what was written
            outcomes[row] = self.problems[int(numbers[row])].verify(text.decode(ids))
        return outcomes
