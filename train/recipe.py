"""What a recipe is made of: the loop asks nothing else of what is learned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grain

from data.chat import TemplateName
from models.heads import Pool
from train.step import LossFn


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Batches and loss of one run."""

    batches: Callable[[], grain.DatasetIterator]
    """Starts the endless batches from the first; the iterator can be saved and restored."""
    loss_fn: LossFn
    data_hash: str
    """Hash of all data that training can see."""
    held_out: grain.IterDataset | None = None
    """Batches that `loss_fn` is evaluated on and that training does not see."""
    needs_reference: bool = False
    """Whether the loss compares with the model that the run began with (`train.reference`)."""
    floors: Mapping[str, float] = field(default_factory=dict)
    """Metric -> what it stays above, or the run has failed silently and is stopped."""
    template: TemplateName | None = None
    """How the chats of its data are written; None: it has none, or several templates."""
    reward_pool: Pool | None = None
    """How its rewards are read off; None: it has none."""
