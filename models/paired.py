"""Two models read one text: the next token comes from one, the value from the other.

A control of the search: how much of a gain is a better prior, how much a better value?
"""

import dataclasses

from jaxtyping import Array

from models import cache as caches
from models import transformer
from models.language_model import LanguageModel, ModelOutputs, Params


@dataclasses.dataclass(frozen=True)
class PairedModel(LanguageModel):
    """Logits (and hidden) of a model of `config`, values of a model of `value_config`.

    Parameters are {"policy": ..., "value": ...}, each those of a whole `LanguageModel`. A cache or
    lane holds the layers of both, the policy's first. For reading only: it has no axis names, so
    it is not trained or saved.
    """

    value_config: transformer.TransformerConfig

    def __post_init__(self):
        sizes = self.config.vocab_size, self.value_config.vocab_size
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"two models read one text only with one vocabulary; got {sizes[0]} and {sizes[1]} "
                "tokens. Pair models that were trained with the same tokenizer."
            )

    @property
    def models(self) -> tuple[LanguageModel, LanguageModel]:
        return LanguageModel(self.config), LanguageModel(self.value_config)

    def init(self, rng_key: Array) -> Params:
        raise NotImplementedError(
            "a pair is made of trained models; init each of `models` instead."
        )

    def abstract_params(self):
        raise NotImplementedError("a pair has no axis names; ask each of `models` instead.")

    def empty_cache(self, batch: int, capacity: int) -> caches.Cache:
        policy, value = (model.empty_cache(batch, capacity) for model in self.models)
        return policy.replace(layers=policy.layers + value.layers)

    def empty_lanes(self, batch: int, num_lanes: int, capacity: int) -> caches.Lanes:
        policy, value = (model.empty_lanes(batch, num_lanes, capacity) for model in self.models)
        return policy.replace(layers=policy.layers + value.layers)

    def _apply(
        self, params: Params, *args, prefix=None, lanes=None, **kwargs
    ) -> tuple[ModelOutputs, tuple]:
        n = self.config.num_layers
        both = zip(self.models, ("policy", "value"), (slice(0, n), slice(n, None)), strict=True)
        (policy, policy_owns), (value, value_owns) = (
            model._apply(
                params[name],
                *args,
                prefix=None if prefix is None else prefix[part],
                lanes=None if lanes is None else lanes[part],
                **kwargs,
            )
            for model, name, part in both
        )
        return policy.replace(value_logits=value.value_logits), policy_owns + value_owns
