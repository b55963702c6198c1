"""The System-2 circle on Game of 24: legal play, search, learning from search, again.

    python -m train game24_system2 --resume
    python -m train game24_system2 --show

The base model learns *random legal play*: the form of a line and the arithmetic, never a solution.
Then, round by round, a search with the oracle plays the training puzzles (631, half of those not in
the test set), and the model learns policy and value from the records of all rounds. At the end it
answers the 100 test puzzles without the oracle. Candidate lines come from the model itself, and it
writes every result; the checker of finished games is all that the system is given.
"""

from configs.base import Experiment
from data.documents import LegalPlaySource
from data.hybrid import HybridConfig, RecordSource
from evaluation.run import EvaluationConfig
from evaluation.standard import standard_methods
from models.transformer import TransformerConfig
from search.gumbel import SearchConfig
from search.self_play import SelfPlayConfig
from search.token_model import ActionConfig
from train.optimizers import AdamWConfig, OptimizersConfig
from train.pipeline import Pipeline, Stage

MODEL = TransformerConfig(
    vocab_size=109, width=96, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=16
)
# The model chooses `a op b`; it writes the result and the numbers left by itself.
ACTION = ActionConfig(
    num_candidates=16, opening_tokens=3, max_step_tokens=12, max_completion_tokens=26
)
PLAY = SearchConfig(
    action=ACTION,
    num_simulations=(64, 48, 6),
    max_considered_actions=15,
    use_oracle=True,
    root_noise=True,
)
ANSWER = SearchConfig(action=ACTION, max_considered_actions=15, value_scale=1.0)


def base(steps: int, seed: int) -> Experiment:
    """Random legal play from four numbers, and from the three or two of later lines."""
    return Experiment(
        model=MODEL,
        tokenizer="game24",
        sources=(
            LegalPlaySource(num_plays=150_000, seed=seed, weight=8.0),
            LegalPlaySource(num_plays=30_000, seed=seed, num_numbers=3, max_number=50, weight=1.0),
            LegalPlaySource(num_plays=30_000, seed=seed, num_numbers=2, max_number=99, weight=0.5),
        ),
        optimizers=OptimizersConfig(
            policy=AdamWConfig(
                peak_learning_rate=3e-3, warmup_steps=100, weight_decay=0.01, b2=0.98
            )
        ),
        sequence_length_tokens=32,
        batch_size=256,
        train_steps=steps,
        seed=seed,
        log_every_steps=50,
    )


def learn(previous: str, round_number: int, steps: int, seed: int) -> Experiment:
    """Policy and value from the records of all rounds so far; a round weighs half of the next."""
    optimizer = {"warmup_steps": 20, "weight_decay": 0.05, "b2": 0.98}
    return Experiment(
        model=MODEL,
        tokenizer="game24",
        recipe="hybrid",
        sources=(LegalPlaySource(num_plays=50_000, seed=seed, loss="results"),),
        hybrid=HybridConfig(
            records=tuple(
                RecordSource(path=f"stage:search{n}/records", weight=0.5 ** (round_number - n))
                for n in range(1, round_number + 1)
            ),
            policy_batch=128,
            value_batch=128,
            text_batch=64,
            prefix_tokens=24,
            num_candidates=ACTION.num_candidates,
            candidate_tokens=ACTION.opening_tokens,
            path_tokens=32,
        ),
        optimizers=OptimizersConfig(
            policy=AdamWConfig(peak_learning_rate=1e-3, **optimizer),
            value=AdamWConfig(peak_learning_rate=2e-3, **optimizer),
        ),
        sequence_length_tokens=32,
        batch_size=64,
        train_steps=steps,
        seed=seed + round_number,
        initial_checkpoint=previous,
        log_every_steps=25,
    )


def circle(
    *,
    base_steps: int,
    rounds: int,
    learn_steps: int,
    simulations: tuple[int, ...],
    seed: int = 0,
) -> Pipeline:
    """The stages of a run: base, (search, learn) per round, evaluation."""
    stages = [Stage(name="base", command="train", config=base(base_steps, seed))]
    model = "stage:base"
    for n in range(1, rounds + 1):
        play = SelfPlayConfig(
            checkpoint=model,
            search=PLAY if n > 1 else SearchConfig(**{**vars(PLAY), "use_value": False}),
            random_moves=(0, 1),
            seed=seed + n,
        )
        stages.append(Stage(name=f"search{n}", command="search", config=play))
        config = learn(model, n, learn_steps, seed)
        stages.append(Stage(name=f"learn{n}", command="train", config=config))
        model = f"stage:learn{n}"
    table = EvaluationConfig(
        checkpoint=model,
        base_checkpoint="stage:base",
        methods=standard_methods(search=ANSWER, simulations=simulations),
        stage=f"after {rounds} rounds",
        batch_size=50,
    )
    stages.append(Stage(name="evaluation", command="evaluation", config=table))
    return Pipeline(stages=tuple(stages))


def get_config() -> Pipeline:
    return circle(base_steps=1250, rounds=5, learn_steps=250, simulations=(16, 50, 200, 400))
