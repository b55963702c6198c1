"""Two models read one text: the next token comes from one, the value from the other.

A control of the search: how much of a gain is a better prior, how much a better value?
"""

import dataclasses

from jaxtyping import Array

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
        ours, theirs = (
            (config.vocab_size, config.attention.kind)
            for config in (self.config, self.value_config)
        )
        if ours != theirs:
            raise ValueError(
                "two models read one text only with one vocabulary and one kind of attention; got "
                f"{ours} and {theirs}. Pair a model with what it was trained from."
            )

    @property
    def models(self) -> tuple[LanguageModel, LanguageModel]:
        return LanguageModel(self.config), LanguageModel(self.value_config)

    def init(self, rng_key: Array) -> Params:
        raise NotImplementedError("a pair joins trained models; init each of `models`.")

    def abstract_params(self):
        raise NotImplementedError("a pair has no axis names; ask each of `models`.")

    @property
    def layer_configs(self) -> tuple[transformer.TransformerConfig, ...]:
        return tuple(c for model in self.models for c in model.layer_configs)

    def logits(self, params: Params, hidden) -> Array:
        return self.models[0].logits(params["policy"], hidden)

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
        return dataclasses.replace(
            policy, value_logits=value.value_logits
        ), policy_owns + value_owns
