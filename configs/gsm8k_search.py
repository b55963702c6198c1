"""Plays GSM8K's test problems with any checkpoint, without the oracle: a line of a solution a move.

    python -m search gsm8k_search --checkpoint runs/NAME --limit 50
    python -m search.inspect runs/gsm8k_search --check gsm8k

The tokenizer of the checkpoint must read GSM8K's text, as "bytes" does, and the files lie where
docs/data.md says. Prompts are the question and a line end, the form of `Gsm8kSource`; for a model
that was not trained on it:

    --problem-set gsm8k_few_shot --search.action.empty-line-ends
    --problem-set gsm8k_chat

`--search.action.kind forced_run --max-moves 64` searches token by token, passing over those that
the model is sure of; it needs no line ends. Games to learn from are played on training problems:
`--split train --search.use-oracle --search.root-noise`, with `--search.no-use-value` as long as the
value has learned nothing. Nothing in the records of a search without the oracle is checked.
"""

from search.gumbel import SearchConfig
from search.self_play import SelfPlayConfig
from search.token_model import ActionConfig

# Of GSM8K's solutions 99% have at most 9 lines and 748 bytes, of their lines 99% at most 172 bytes.
MAX_MOVES = 12
ACTION = ActionConfig(
    num_candidates=8,
    opening_tokens=4,
    max_step_tokens=192,
    max_completion_tokens=768,
)


def get_config() -> SelfPlayConfig:
    return SelfPlayConfig(
        problem_set="gsm8k",
        split="test",
        search=SearchConfig(action=ACTION, num_simulations=50),
        max_moves=MAX_MOVES,
        batch_size=16,
    )
