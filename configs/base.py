"""The config of one training run, composed of the configs defined beside the code they steer."""

from dataclasses import dataclass
from typing import Literal

from data.hybrid import HybridConfig
from data.sources import TextSource
from models.lora import LoraConfig
from models.sharding import MeshConfig
from models.transformer import TransformerConfig
from train.alignment import PreferenceConfig, RewardConfig
from train.errors import ConfigError
from train.optimizers import OptimizersConfig
from train.recipes import LossWeights


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run: `python -m train NAME`."""

    model: TransformerConfig
    """Shape of the network."""
    tokenizer: str
    """Name of the tokenizer (see data.tokenizer)."""
    recipe: Literal["next_token", "hybrid", "preference", "reward"] = "next_token"
    """What is learned: "next_token" from text or chats; "hybrid": policy and value from search too;
    "preference": which of two answers is better (DPO, IPO, RPO); "reward": the grades of answers,
    or which one is better, by a reward head."""
    sources: tuple[TextSource, ...] = ()
    """Text to learn from; the weights are shares of the rows."""
    hybrid: HybridConfig | None = None
    """Search records of the recipe "hybrid", and its batch sizes."""
    loss_weights: LossWeights = LossWeights()
    """Weights of the parts of the hybrid loss."""
    preference: PreferenceConfig | None = None
    """Pairs and loss of the recipe "preference"."""
    reward: RewardConfig | None = None
    """Graded answers or pairs, and loss, of the recipe "reward"."""
    validation_sources: tuple[TextSource, ...] = ()
    """Held-out text; none: no evaluation while training."""
    optimizers: OptimizersConfig
    """One optimizer for the policy network, one for the value head."""
    sequence_length_tokens: int
    """Tokens of a row; documents are packed into it."""
    batch_size: int
    """Rows of a text batch, over all devices (hybrid batches: see `hybrid`)."""
    train_steps: int
    """Batches to train on."""
    seed: int = 0
    """Decides the first parameters and the order of the data."""
    initial_checkpoint: str | None = None
    """Parameters to start from (a run folder or one step); None starts from random ones."""
    lora: LoraConfig | None = None
    """Train low-rank adapters beside the frozen parameters of initial_checkpoint; None: train all.
    Any --lora.FIELD turns it on."""
    mesh: MeshConfig = MeshConfig()
    """How the work is split over devices."""
    log_every_steps: int = 10
    """Steps between lines in metrics.jsonl."""
    eval_every_steps: int = 500
    """Steps between evaluations on the validation sources."""
    eval_batches: int = 8
    """Batches of an evaluation, the same ones every time."""
    save_every_steps: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int | None = 2
    """How many of the newest checkpoints stay; None keeps all."""

    def __post_init__(self):
        for name in (
            "sequence_length_tokens",
            "batch_size",
            "train_steps",
            "log_every_steps",
            "eval_every_steps",
            "eval_batches",
            "save_every_steps",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more; got {getattr(self, name)}")
        for name in ("hybrid", "preference", "reward"):
            if (self.recipe == name) != (getattr(self, name) is not None):
                raise ConfigError(
                    f'recipe "{name}" and the field {name} belong together; got '
                    f"recipe={self.recipe!r} with {name}={getattr(self, name)}. Set both or "
                    "neither."
                )
        if (self.recipe == "reward") > (self.model.num_attributes > 0):
            raise ConfigError(
                'recipe "reward" trains a reward head; got model.num_attributes=0. Set it to 5 '
                "(the attributes of HelpSteer) or 9."
            )
