"""The System-2 circle on Game of 24: legal play, search, learning from search, again.

    python -m train game24_system2 --resume
    python -m train game24_system2 --show

The base model learns *random legal play*: the form of a line and the arithmetic, never a solution.
Then, round by round, a search with the oracle plays the training puzzles (631: half of those that
are not in the test set), once from the start and twice after a random first line, and the model
learns policy and value from the records of all rounds. At the end it answers the 100 test puzzles
without the oracle. Candidate lines come from the model itself, and it writes every result; the
checker of finished games is all that the system is given. Settings were chosen on the other half
("validation").
"""

import dataclasses
import functools
from collections.abc import Sequence

from configs import circle as circles
from configs.base import Experiment
from data.documents import LegalPlaySource
from data.hybrid import HybridConfig
from evaluation.standard import standard_methods
from models.transformer import TransformerConfig
from search.gumbel import SearchConfig
from search.self_play import SelfPlayConfig
from search.token_model import ActionConfig
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.pipeline import Pipeline

MODEL = TransformerConfig(
    vocab_size=109, width=96, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=16
)
# The model chooses `a op b`; it writes the result and the numbers left by itself. Lines that it
# finds less likely than 1% are left out: they are mostly illegal, and a value that was never told
# so makes a search prefer them, and the policy learn them (docs/experiments.md, 2026-11-21).
ACTION = ActionConfig(
    num_candidates=16,
    opening_tokens=3,
    min_probability=0.01,
    max_step_tokens=10,
    max_completion_tokens=26,
)
PLAY = SearchConfig(
    action=ACTION,
    use_oracle=True,
    root_noise=True,
)
ANSWER = SearchConfig(action=ACTION, value_scale=1.0)


_learner = functools.partial(OptimizerConfig, warmup_steps=20, weight_decay=0.05, b2=0.98)
BASE_OPTIMIZER = OptimizerConfig(
    peak_learning_rate=3e-3, warmup_steps=100, weight_decay=0.01, b2=0.98
)
LEARN_OPTIMIZERS = OptimizersConfig(
    policy=_learner(peak_learning_rate=1e-3), value=_learner(peak_learning_rate=2e-3)
)


def base(steps: int, rows: int, optimizer: OptimizerConfig, seed: int) -> Experiment:
    """Random legal play from four numbers, and from the three or two of later lines."""
    return Experiment(
        model=MODEL,
        tokenizer="game24",
        sources=(
            LegalPlaySource(num_plays=150_000, seed=seed, weight=8.0),
            LegalPlaySource(num_plays=30_000, seed=seed, num_numbers=3, max_number=50, weight=1.0),
            LegalPlaySource(num_plays=30_000, seed=seed, num_numbers=2, max_number=99, weight=0.5),
        ),
        optimizers=OptimizersConfig(policy=optimizer),
        sequence_length_tokens=32,
        batch_size=rows,
        train_steps=steps,
        seed=seed,
        log_every_steps=50,
    )


def text(seed: int, records: Sequence[str]) -> tuple[LegalPlaySource, ...]:
    """Whole plays beside the records, not their results alone: else a policy sharpened on 631
    puzzles gives illegal lines more than min_probability on others, and the value was never told
    that they fail.
    """
    del records
    return (LegalPlaySource(num_plays=50_000, seed=seed),)


def circle(
    *,
    base_steps: int,
    learn_steps: tuple[int, ...],
    random_moves: tuple[int, ...],
    simulations: tuple[int, ...],
    play_simulations: tuple[int, ...] = (64, 48, 6),
    ablation_splits: tuple[str, ...] = ("test", "train"),
    has_controls: bool = True,
    base_rows: int = 256,
    base_optimizer: OptimizerConfig = BASE_OPTIMIZER,
    learn_rows: tuple[int, int, int] = (96, 256, 48),
    learn_optimizers: OptimizersConfig = LEARN_OPTIMIZERS,
    seed: int = 0,
) -> Pipeline:
    """The stages of a run: base, (search, learn) per round, evaluation.

    Args:
      learn_steps: of every round, and so how many rounds there are.
      simulations, play_simulations: per move, of the answers and of the training games.
      learn_rows: of policy, value and text in a batch.
    """
    policy_batch, value_batch, text_batch = learn_rows
    lessons = HybridConfig(
        records=(),
        policy_batch=policy_batch,
        value_batch=value_batch,
        text_batch=text_batch,
        prefix_tokens=25,
        num_candidates=8,
        candidate_tokens=ACTION.num_opening_tokens,
        path_tokens=31,
        value_min_explored=0.3,
        label_once=False,
    )
    # Expected seconds are of 2 idle cores of an AMD EPYC.
    return circles.circle(
        base=base(base_steps, base_rows, base_optimizer, seed),
        play=SelfPlayConfig(
            search=dataclasses.replace(PLAY, num_simulations=play_simulations),
            random_moves=random_moves,
        ),
        text=text,
        lessons=lessons,
        learn_steps=learn_steps,
        learn_optimizers=learn_optimizers,
        methods=standard_methods(
            search=ANSWER,
            simulations=simulations,
            ablation_splits=ablation_splits,
            has_controls=has_controls,
        ),
        base_seconds=25.0 + 0.0012 * base_rows * base_steps,
        play_seconds=45.0 * len(random_moves),
        learn_seconds_per_step=0.0014 * sum(learn_rows),
        evaluation_seconds=120.0 + 0.5 * sum(simulations),
        seed=seed,
    )


def get_config() -> Pipeline:
    return circle(
        base_steps=1000,
        learn_steps=5 * (200,),
        random_moves=(0, 1, 1),
        simulations=(16, 50, 200, 400),
    )
