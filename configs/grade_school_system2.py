"""The System-2 circle on generated word problems: worked solutions, search, learning from search.

    python -m train grade_school_system2 --resume
    python -m train grade_school_system2 --show

The base model learns worked solutions (and calculations alone: arithmetic is what it lacks) until
it answers about a third of the problems greedily. Then, round by round, a search with the oracle
plays problems of which only the answers are known, and the model learns policy and value from what
was found. An action is a token and those after it that the model is sure of, so a move is one
choice among digits or words. At the end the test problems are answered without the oracle, and with
it for the ablation. The rows are those of NeMo-Aligner's search on GSM8K (greedy 31%, 69.1% at 200
and 73% at 400 simulations; after learning greedy 62%, with the value 71.3%, with the oracle 78.0%,
with both 90.2%), on easier problems and with a model of 0.4M parameters.
"""

import dataclasses
import functools
from collections.abc import Sequence

from configs import circle
from configs.base import Experiment
from data import grade_school
from data.documents import RecordTextSource
from data.grade_school import CalculationSource, GradeSchoolSource
from data.hybrid import HybridConfig
from data.sources import TextSource
from evaluation.methods import AnyMethod, BestOfN, Greedy, Search
from evaluation.standard import standard_methods
from models.transformer import TransformerConfig
from search.gumbel import SearchConfig
from search.self_play import SelfPlayConfig
from search.token_model import ActionConfig
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.pipeline import Pipeline
from train.recipes import LossWeights

MODEL = TransformerConfig(
    vocab_size=387, width=96, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=16
)
PROMPT_TOKENS = 56  # of the longest prompt of three steps; it has 52
ACTION = ActionConfig(
    kind="forced_run",
    num_candidates=8,
    forced_probability=0.9,
    min_probability=0.01,
    max_step_tokens=40,
    max_completion_tokens=112,
)
MAX_MOVES = 16
PLAY = SearchConfig(action=ACTION, use_oracle=True, root_noise=True)
ANSWER = SearchConfig(action=ACTION, value_scale=1.0)

_muon = functools.partial(OptimizerConfig, kind="muon", b2=0.98)
_stories = functools.partial(
    GradeSchoolSource,
    num_problems=20_000,
    max_steps=grade_school.SHORT_STEPS,
    largest=grade_school.SMALL,
)


SOLUTIONS: tuple[TextSource, ...] = (
    _stories(),
    CalculationSource(
        num_problems=40_000,
        max_steps=grade_school.SHORT_STEPS,
        largest=grade_school.SMALL,
        weight=0.3,
    ),
)


def base(steps: int, seed: int = 0) -> Experiment:
    """Problems with their solutions, and calculations without a story."""
    return Experiment(
        model=MODEL,
        tokenizer="grade_school",
        sources=SOLUTIONS,
        validation_sources=(_stories(num_problems=500, split="validation"),),
        optimizers=OptimizersConfig(
            policy=_muon(peak_learning_rate=2e-2, warmup_steps=20, weight_decay=0.01)
        ),
        sequence_length_tokens=256,
        batch_size=32,
        train_steps=steps,
        seed=seed,
        log_every_steps=25,
        eval_every_steps=100,
    )


def text(seed: int, records: Sequence[str]) -> tuple[TextSource, ...]:
    """The text of the base model again, and the solutions that search found: what is learned beyond
    the base comes from search. (The policy learns from choices alone, which are few; between them
    a text is whole.)
    """
    del seed
    return (*SOLUTIONS, *(RecordTextSource(path=folder) for folder in records))


LESSONS = HybridConfig(
    records=(),
    policy_batch=32,
    value_batch=32,
    text_batch=16,
    policy_from="solved",
    prefix_tokens=PROMPT_TOKENS + ACTION.max_completion_tokens,
    num_candidates=8,
    candidate_tokens=ACTION.num_opening_tokens,
    path_tokens=PROMPT_TOKENS + ACTION.max_completion_tokens,
    value_min_explored=0.3,
    label_once=False,
)


def table(
    simulations: Sequence[int], base_simulations: Sequence[int], num_problems: int
) -> tuple[AnyMethod, ...]:
    """The standard table, and the base model with the oracle at other sizes."""
    methods = standard_methods(
        search=ANSWER,
        simulations=simulations,
        max_moves=MAX_MOVES,
        limit=num_problems,
        ablation_splits=("test",),
    )
    searched = dataclasses.replace(ANSWER, use_oracle=True, use_value=False)
    more = tuple(
        Search(
            model="base",
            search=dataclasses.replace(searched, num_simulations=number),
            max_moves=MAX_MOVES,
            limit=num_problems,
        )
        for number in base_simulations
    )
    longest = ACTION.max_completion_tokens
    return tuple(
        dataclasses.replace(method, max_completion_tokens=longest)
        if isinstance(method, Greedy | BestOfN)
        else method
        for method in methods + more
    )


def get_config() -> Pipeline:
    return circle.circle(
        base=base(250),
        play=SelfPlayConfig(
            problem_set="grade_school_small",
            limit=512,
            search=dataclasses.replace(PLAY, num_simulations=32),
            max_moves=MAX_MOVES,
        ),
        text=text,
        lessons=LESSONS,
        learn_steps=(100, 150),
        learn_optimizers=OptimizersConfig(
            policy=_muon(peak_learning_rate=1.5e-3, warmup_steps=10, weight_decay=0.05),
            value=_muon(peak_learning_rate=3e-3, warmup_steps=10, weight_decay=0.05),
        ),
        loss_weights=LossWeights(text=5.0),
        methods=table((16, 50, 200, 400), base_simulations=(200, 400), num_problems=100),
        new_problems=True,
        base_seconds=250.0,
        play_seconds=400.0,
        learn_seconds_per_step=2.5,
        evaluation_seconds=900.0,
    )
