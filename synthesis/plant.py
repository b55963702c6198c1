"""Writes data of the planted world (`data.planted`), whose truth is known: a stage of pipelines.

RUN/labelled.jsonl    prompt, response and its five attributes
RUN/unlabelled.jsonl  prompt and response of other dialogues
RUN/prompts.jsonl     prompt
RUN/pairs.jsonl       prompt, chosen, rejected and their true rewards
"""

from dataclasses import dataclass
from pathlib import Path

from data import attributes, json_rows, planted
from train.errors import ConfigError
from train.stopping import StopFlag


@dataclass(frozen=True, kw_only=True)
class PlantConfig:
    """One run of `python -m synthesis plant`."""

    num_labelled: int = 12_000
    """Dialogues with attributes."""
    num_unlabelled: int = 12_000
    """Dialogues without."""
    num_prompts: int = 500
    """Requests alone."""
    num_pairs: int = 1_000
    """Pairs of answers."""
    split: planted.Split = "train"
    """Which requests."""
    weights: str = "nemotron4_340b"
    """What makes the true reward of the attributes: a name of data.attributes.WEIGHTS."""
    seed: int = 0
    """Decides everything."""

    def __post_init__(self):
        counts = (self.num_labelled, self.num_unlabelled, self.num_prompts, self.num_pairs)
        if min(counts) < 0:
            raise ConfigError(f"there are 0 rows or more of each kind; got {counts}.")


def run(
    config: PlantConfig, run_folder: Path, /, *, resume: bool = False, stop: StopFlag | None = None
) -> Path:
    """Writes the files; returns their folder."""
    del resume, stop  # takes seconds
    split, seed = config.split, 4 * config.seed
    labelled = planted.dialogues(config.num_labelled, seed=seed, split=split)
    json_rows.write(
        run_folder / "labelled.jsonl",
        (
            {"prompt": one.prompt, "response": one.response}
            | dict(zip(attributes.FIVE, one.attributes.as_tuple(), strict=True))
            for one in labelled
        ),
    )
    unlabelled = planted.dialogues(config.num_unlabelled, seed=seed + 1, split=split)
    json_rows.write(
        run_folder / "unlabelled.jsonl",
        ({"prompt": one.prompt, "response": one.response} for one in unlabelled),
    )
    prompts = planted.requests(config.num_prompts, seed=seed + 2, split=split)
    json_rows.write(run_folder / "prompts.jsonl", ({"prompt": text} for text in prompts))
    weights = weights_of(config.weights)
    pairs = planted.pairs(config.num_pairs, weights, seed=seed + 3, split=split)
    json_rows.write(
        run_folder / "pairs.jsonl",
        (
            {
                "prompt": better.prompt,
                "chosen": better.response,
                "rejected": worse.response,
                "chosen_reward": planted.true_reward(better.attributes, weights),
                "rejected_reward": planted.true_reward(worse.attributes, weights),
            }
            for better, worse in pairs
        ),
    )
    return run_folder


def weights_of(name: str) -> tuple[float, ...]:
    """The weights of that name, in the order of the five attributes."""
    return tuple(attributes.WEIGHTS[name][each] for each in attributes.FIVE)
