"""The language model as pure functions: whole sequences, one token after a cache, many lanes.

Every way of reading gives the same numbers (tests/models): `outputs` over a text equals `prefill`
of its start and `decode` of the rest, and R `branch` lanes equal R separate texts.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from kernels import taylor_attention as taylor
from models import cache as caches
from models import transformer
from models.cache import Leaf

Params = dict


@struct.dataclass
class ModelOutputs:
    """Row t speaks of the text up to and including token t.

    logits: `[..., V]` float32, of the next token. value_logits: `[...]` float32.
    hidden: `[..., D]`. reward: None here; reward models fill it.
    """

    logits: Leaf
    value_logits: Leaf
    hidden: Leaf
    reward: Leaf | None = None

    @property
    def value(self) -> Float[Array, "*B"]:
        """P(the finished text will be correct), in [0, 1]."""
        return jax.nn.sigmoid(self.value_logits)

    def at(self, index: Int[Array, "B"]) -> "ModelOutputs":
        """`[B, T, ...]` -> `[B, ...]`: row `index[b]` of each text (lengths - 1: its last)."""
        return jax.tree.map(lambda x: x[jnp.arange(x.shape[0]), index], self)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Holds the configuration only; parameters go in and out of every function."""

    config: transformer.TransformerConfig

    @property
    def network(self) -> transformer.Network:
        return transformer.Network(self.config)

    def init(self, rng_key: Array) -> Params:
        """Fresh parameters {"trunk": ..., "value_head": ...}: a plain tree of arrays."""
        return nn.unbox(self.network.init(rng_key, *self._dummy())["params"])

    def abstract_params(self):
        """Shapes of the parameters, boxed with their logical axis names; nothing is allocated."""
        rng_key = jax.random.key(0)
        return jax.eval_shape(lambda: self.network.init(rng_key, *self._dummy()))["params"]

    def _dummy(self):
        return jnp.zeros((1, 1, 1), jnp.int32), jnp.zeros((1, 1, 1), jnp.int32), _causal(1)

    def _apply(self, params: Params, *args, **kwargs) -> tuple[ModelOutputs, tuple]:
        hidden, logits, value_logits, owns = self.network.apply({"params": params}, *args, **kwargs)
        return ModelOutputs(logits=logits, value_logits=value_logits, hidden=hidden), owns

    def _sequence(self, params, tokens, segment_ids, positions, **kwargs):
        """A batch of whole texts is one lane without a prefix."""
        length = tokens.shape[1]
        mask = _causal(length)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        if segment_ids is not None:
            mask = mask & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
        out, owns = self._apply(
            params, tokens[:, None], positions[:, None], mask, segment_ids=segment_ids, **kwargs
        )
        return _first_lane(out), owns

    def outputs(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        *,
        segment_ids: Int[Array, "B T"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        stop_value_gradient: bool = False,
    ) -> ModelOutputs:
        """Everything the model says about whole texts, `[B, T, ...]`.

        segment_ids: tokens see earlier tokens of their own segment only (packed documents).
        stop_value_gradient: the value head learns, the trunk under it does not.
        """
        out, _ = self._sequence(
            params, tokens, segment_ids, positions, stop_value_gradient=stop_value_gradient
        )
        return out

    def forward(self, params: Params, tokens, *, segment_ids=None, positions=None):
        """Next-token logits `[B, T, V]` of whole texts."""
        return self.outputs(params, tokens, segment_ids=segment_ids, positions=positions).logits

    def prefill(
        self, params: Params, tokens: Int[Array, "B T"], *, lengths: Int[Array, "B"], capacity: int
    ) -> tuple[ModelOutputs, caches.Cache]:
        """Reads right-padded prompts; outputs `[B, T, ...]`, a cache of `capacity` slots."""
        if capacity < tokens.shape[1]:
            raise ValueError(
                f"the cache must hold the prompt: {capacity=} < {tokens.shape[1]} prompt tokens. "
                "Give prefill a larger capacity."
            )
        return self.extend(params, self.empty_cache(tokens.shape[0], capacity), tokens, lengths)

    def empty_cache(self, batch: int, capacity: int) -> caches.Cache:
        """Before the first token. A Taylor state has the same size at every capacity."""
        c = self.config
        one_layer: caches.KeyValues | taylor.TaylorState
        if c.attention.kind == "taylor":
            one_layer = taylor.empty_state(
                batch_size=batch,
                num_kv_heads=c.kv_heads,
                head_dim=c.head_dim,
                value_dim=c.head_dim,
                order=c.attention.order,
            )
        else:
            zeros = jnp.zeros((batch, capacity, c.kv_heads, c.head_dim), c.dtype)
            one_layer = caches.KeyValues(key=zeros, value=zeros)
        return caches.Cache(
            layers=(one_layer,) * c.num_layers, length=jnp.zeros((batch,), jnp.int32)
        )

    def extend(
        self,
        params: Params,
        cache: caches.Cache,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
    ) -> tuple[ModelOutputs, caches.Cache]:
        """Reads `lengths[b]` more tokens of each row (the rest is padding)."""
        length = tokens.shape[1]
        positions = cache.length[:, None] + jnp.arange(length)
        out, owns = self._apply(
            params,
            tokens[:, None],
            positions[:, None],
            _causal(length),
            prefix=cache.layers,
            prefix_mask=_prefix_mask(cache),
        )
        layers = tuple(
            caches.append(past, jax.tree.map(lambda x: x[:, 0], own), cache.length, lengths)
            for past, own in zip(cache.layers, owns, strict=True)
        )
        return _first_lane(out), caches.Cache(layers=layers, length=cache.length + lengths)

    def decode(
        self, params: Params, cache: caches.Cache, token: Int[Array, "B"]
    ) -> tuple[ModelOutputs, caches.Cache]:
        """Reads one more token of every row; outputs `[B, ...]`."""
        out, cache = self.extend(params, cache, token[:, None], jnp.ones_like(cache.length))
        return jax.tree.map(lambda x: x[:, 0], out), cache

    def empty_lanes(self, batch: int, num_lanes: int, capacity: int) -> caches.Lanes:
        """R lanes of up to `capacity` tokens each after a prefix."""
        c = self.config
        zeros = jnp.zeros((batch, num_lanes, capacity, c.kv_heads, c.head_dim), c.dtype)
        one_layer = caches.KeyValues(key=zeros, value=zeros)
        return caches.Lanes(layers=(one_layer,) * c.num_layers, filled=jnp.zeros((), jnp.int32))

    def branch(
        self, params: Params, cache: caches.Cache, lanes: caches.Lanes, token: Int[Array, "B R"]
    ) -> tuple[ModelOutputs, caches.Lanes]:
        """Reads one more token in each of R lanes that share the cache; outputs `[B, R, ...]`."""
        capacity = lanes.layers[0].key.shape[2]
        mask = jnp.arange(capacity)[None, None, None, :] <= lanes.filled
        positions = cache.length[:, None, None] + lanes.filled
        out, layers = self._apply(
            params,
            token[..., None],
            jnp.broadcast_to(positions, (*token.shape, 1)),
            mask,
            prefix=cache.layers,
            prefix_mask=_prefix_mask(cache),
            lanes=lanes.layers,
            filled=lanes.filled,
        )
        out = jax.tree.map(lambda x: x[:, :, 0], out)
        return out, caches.Lanes(layers=layers, filled=lanes.filled + 1)

    def score_branches(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        branches: Int[Array, "B R U"],
        branch_lengths: Int[Array, "B R"],
    ) -> Float[Array, "B R U"]:
        """log p(branch token | text, earlier branch tokens) for R branches after each ragged text.

        Zero at the padding of a branch. One pass over the text and one over all branches, so the
        text is read (and differentiated) once, however many branches it has.
        """
        num_rows, num_lanes, width = branches.shape
        out, owns = self._sequence(params, tokens, None, None)
        past = tuple(jax.tree.map(lambda x: x[:, 0], own) for own in owns)
        prefix_mask = jnp.arange(tokens.shape[1]) < lengths[:, None]
        logits = out.at(lengths - 1).logits[:, None, None]
        logits = jnp.broadcast_to(logits, (num_rows, num_lanes, 1, logits.shape[-1]))
        if width > 1:  # what follows the last token of a branch is not asked
            positions = lengths[:, None, None] + jnp.arange(width - 1)
            inner, _ = self._apply(
                params,
                branches[:, :, :-1],
                jnp.broadcast_to(positions, (num_rows, num_lanes, width - 1)),
                _causal(width - 1),
                prefix=past,
                prefix_mask=prefix_mask,
            )
            logits = jnp.concatenate([logits, inner.logits], axis=2)
        log_probs = jax.nn.log_softmax(logits)
        log_probs = jnp.take_along_axis(log_probs, branches[..., None], axis=-1)[..., 0]
        return jnp.where(jnp.arange(width) < branch_lengths[..., None], log_probs, 0.0)


def _causal(length: int) -> Bool[Array, "1 1 T T"]:
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


def _prefix_mask(cache: caches.Cache) -> Bool[Array, "B S"] | None:
    if isinstance(cache.layers[0], taylor.TaylorState):
        return None  # every key of a state is seen
    return jnp.arange(cache.layers[0].key.shape[1]) < cache.length[:, None]


def _first_lane(out: ModelOutputs) -> ModelOutputs:
    return jax.tree.map(lambda x: x[:, 0], out)
