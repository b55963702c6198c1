"""The language model as pure functions: whole sequences, one token after a cache, many lanes.

Every way of reading gives the same numbers (tests/models): `outputs` over a text equals `prefill`
of its start and `decode` of the rest, R `branch` lanes equal R separate texts, and so do W paths.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from kernels import taylor_attention as taylor
from models import cache as caches
from models import heads, transformer
from models.cache import Leaf
from models.view import View, age_in_lane, causal_age

Params = dict
AnyCache = caches.Cache | caches.PathCache


@struct.dataclass
class ModelOutputs:
    """Row t speaks of the text up to and including token t.

    logits: `[..., V]` float32, of the next token. value_logits: `[...]` float32.
    hidden: `[..., D]`. reward: `[..., A]` float32, attributes of the text (`data.attributes`); None
    without a reward head.
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

    def init_value_head(self, rng_key: Array) -> Params:
        """A fresh value head alone: beside a policy network that was trained without one."""
        head = heads.ValueHead(self.config.value_head_width)
        return nn.unbox(head.init(rng_key, jnp.zeros((1, self.config.width)))["params"])

    def abstract_params(self):
        """Shapes of the parameters, boxed with their logical axis names; nothing is allocated."""
        rng_key = jax.random.key(0)
        return jax.eval_shape(lambda: self.network.init(rng_key, *self._dummy()))["params"]

    def _dummy(self):
        one = jnp.zeros((1, 1, 1), jnp.int32)
        return one, View(positions=one, age=causal_age(1))

    def _apply(self, params: Params, *args, **kwargs) -> tuple[ModelOutputs, tuple]:
        hidden, logits, value_logits, reward, owns = self.network.apply(
            {"params": params}, *args, **kwargs
        )
        outputs = ModelOutputs(
            logits=logits, value_logits=value_logits, hidden=hidden, reward=reward
        )
        return outputs, owns

    def _sequence(self, params, tokens, segment_ids, positions, **kwargs):
        """A batch of whole texts is one lane without a prefix."""
        length = tokens.shape[1]
        age = causal_age(length)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
        if segment_ids is not None:
            same_document = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
            age = jnp.where(same_document, age, -1)
        view = View(positions=positions[:, None], age=age, segment_ids=segment_ids)
        out, owns = self._apply(params, tokens[:, None], view, **kwargs)
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

    def logits(self, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Next-token logits of the `hidden` of outputs."""
        trunk = params["trunk"]
        tied = self.config.tie_embeddings
        return transformer.unembed(
            hidden, trunk["embedding"].T if tied else trunk["unembed"]["kernel"]
        )

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
        out, owns = self._sequence(params, tokens, None, None)
        empty = self.empty_cache(tokens.shape[0], capacity)
        return out, self.fold(empty, owns, lengths)

    def fold(self, cache: caches.Cache, owns: tuple, lengths: Int[Array, "B"]) -> caches.Cache:
        """Adds `lengths[b]` tokens that were read after the cache, `[B, 1, T, ...]` per layer."""
        layers = tuple(
            caches.append(layer, own, cache.length, lengths, c.attention.log_decay(c.kv_heads))
            for c, layer, own in zip(self.layer_configs, cache.layers, owns, strict=True)
        )
        return caches.Cache(layers=layers, length=cache.length + lengths)

    @property
    def layer_configs(self) -> tuple[transformer.TransformerConfig, ...]:
        """One per layer that a cache holds."""
        return (self.config,) * self.config.num_layers

    def empty_cache(self, batch: int, capacity: int) -> caches.Cache:
        """Before the first token. A Taylor state has the same size at every capacity."""
        layers = tuple(_empty_prefix(c, batch, capacity) for c in self.layer_configs)
        return caches.Cache(layers=layers, length=jnp.zeros((batch,), jnp.int32))

    def empty_paths(self, prefix: caches.Cache, num_paths: int, capacity: int) -> caches.PathCache:
        """W texts of up to `capacity` tokens each after every row of a prefix."""
        batch = prefix.length.shape[0]
        lanes = self.empty_lanes(batch, num_paths, capacity).layers
        return caches.PathCache(
            prefix=prefix,
            layers=jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lanes),
            length=jnp.zeros((batch * num_paths,), jnp.int32),
        )

    def extend(
        self,
        params: Params,
        cache: AnyCache,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
    ) -> tuple[ModelOutputs, AnyCache]:
        """Reads `lengths[b]` more tokens of each row or path (the rest is padding)."""
        length = tokens.shape[1]
        if isinstance(cache, caches.PathCache):
            return self._extend_paths(params, cache, tokens, lengths)
        positions = cache.length[:, None] + jnp.arange(length)
        view = View(
            positions=positions[:, None], age=causal_age(length), prefix_length=cache.length
        )
        out, owns = self._apply(params, tokens[:, None], view, prefix=cache.layers)
        return _first_lane(out), self.fold(cache, owns, lengths)

    def _extend_paths(self, params, cache: caches.PathCache, tokens, lengths):
        """A path that grows is a lane of its prefix."""
        length, layers = tokens.shape[1], cache.layers_of_prefix
        filled, prefix_length = cache.length_of_prefix, cache.prefix.length
        positions = (prefix_length[:, None] + filled)[..., None] + jnp.arange(length)
        view = View(
            positions=positions,
            age=age_in_lane(filled, length, layers[0].key_values.key.shape[2]),
            prefix_length=prefix_length,
            filled=filled,
        )
        out, layers = self._apply(
            params, tokens.reshape(positions.shape), view, prefix=cache.prefix.layers, lanes=layers
        )
        out, layers = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (out, layers))
        return out, dataclasses.replace(cache, layers=layers, length=cache.length + lengths)

    def decode(
        self, params: Params, cache: AnyCache, token: Int[Array, "B"]
    ) -> tuple[ModelOutputs, AnyCache]:
        """Reads one more token of every row or path; outputs `[B, ...]`."""
        out, cache = self.extend(params, cache, token[:, None], jnp.ones_like(token))
        return jax.tree.map(lambda x: x[:, 0], out), cache

    def empty_lanes(self, batch: int, num_lanes: int, capacity: int) -> caches.Lanes:
        """R lanes of up to `capacity` tokens each after a prefix."""
        layers = tuple(
            caches.LaneLayer(
                key_values=_no_key_values(c, batch, num_lanes, capacity),
                inputs=_no_inputs(c, batch, num_lanes, capacity),
            )
            for c in self.layer_configs
        )
        return caches.Lanes(layers=layers, filled=jnp.zeros((), jnp.int32))

    def branch(
        self, params: Params, cache: AnyCache, lanes: caches.Lanes, token: Int[Array, "B R"]
    ) -> tuple[ModelOutputs, caches.Lanes]:
        """Reads one more token in each of the R lanes of a row or path; outputs `[B, R, ...]`."""
        prefix, path_length = cache, None
        if isinstance(cache, caches.PathCache):
            prefix, path_length = cache.prefix, cache.length_of_prefix
        start = prefix.length[:, None] + (0 if path_length is None else path_length)
        # The R lanes of W paths are W * R lanes of a prefix.
        positions = jnp.repeat(start, token.shape[1], axis=1)[..., None] + lanes.filled
        capacity = lanes.layers[0].key_values.key.shape[2]
        view = View(
            positions=positions,
            age=age_in_lane(lanes.filled[None, None], 1, capacity),
            prefix_length=prefix.length,
            path_length=path_length,
            filled=lanes.filled,
        )
        of_prefix = jax.tree.map(
            lambda x: x.reshape(*positions.shape[:2], *x.shape[2:]), lanes.layers
        )
        out, layers = self._apply(
            params,
            token.reshape(positions.shape),
            view,
            prefix=cache.layers_before_lanes,
            lanes=of_prefix,
        )
        out, layers = jax.tree.map(lambda x: x.reshape(*token.shape, *x.shape[2:]), (out, layers))
        out = jax.tree.map(lambda x: x[:, :, 0], out)
        return out, caches.Lanes(layers=layers, filled=lanes.filled + 1)

    def read_lanes(
        self, params: Params, cache: AnyCache, tokens: Int[Array, "B R T"]
    ) -> ModelOutputs:
        """Reads T tokens in each of R lanes that begin after a row or path; nothing is kept.

        Outputs `[B, R, T, ...]`: what `branch` says token by token.
        """
        length = tokens.shape[2]
        prefix, path_length = cache, None
        if isinstance(cache, caches.PathCache):
            prefix, path_length = cache.prefix, cache.length_of_prefix
        start = prefix.length[:, None] + (0 if path_length is None else path_length)
        positions = jnp.repeat(start, tokens.shape[1], axis=1)[..., None] + jnp.arange(length)
        view = View(
            positions=positions,
            age=causal_age(length),
            prefix_length=prefix.length,
            path_length=path_length,
        )
        out, _ = self._apply(
            params, tokens.reshape(positions.shape), view, prefix=cache.layers_before_lanes
        )
        return jax.tree.map(lambda x: x.reshape(*tokens.shape, *x.shape[3:]), out)

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
        logits = out.at(lengths - 1).logits[:, None, None]
        logits = jnp.broadcast_to(logits, (num_rows, num_lanes, 1, logits.shape[-1]))
        if width > 1:  # what follows the last token of a branch is not asked
            positions = lengths[:, None, None] + jnp.arange(width - 1)
            view = View(
                positions=jnp.broadcast_to(positions, (num_rows, num_lanes, width - 1)),
                age=causal_age(width - 1),
                prefix_length=lengths,
            )
            prefix = tuple(
                _as_prefix(c, own, lengths) for c, own in zip(self.layer_configs, owns, strict=True)
            )
            inner, _ = self._apply(params, branches[:, :, :-1], view, prefix=prefix)
            logits = jnp.concatenate([logits, inner.logits], axis=2)
        log_probs = jax.nn.log_softmax(logits)
        log_probs = jnp.take_along_axis(log_probs, branches[..., None], axis=-1)[..., 0]
        return jnp.where(jnp.arange(width) < branch_lengths[..., None], log_probs, 0.0)


def _first_lane(out: ModelOutputs) -> ModelOutputs:
    return jax.tree.map(lambda x: x[:, 0], out)


def _empty_prefix(config, batch: int, capacity: int) -> caches.PrefixLayer:
    c = config.attention
    inputs = _no_inputs(config, batch, c.short_conv_width - 1)
    if c.kind == "softmax":
        return caches.PrefixLayer(past=_no_key_values(config, batch, capacity), inputs=inputs)
    state = taylor.empty_state(
        batch_size=batch,
        num_kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        value_dim=config.head_dim,
        order=c.order,
    )
    window = _no_key_values(config, batch, c.window_tokens) if c.window_tokens else None
    return caches.PrefixLayer(past=state, window=window, inputs=inputs)


def _as_prefix(config, own: caches.LaneLayer, lengths: Int[Array, "B"]) -> caches.PrefixLayer:
    """The tokens of whole ragged texts, read as one lane, as explicit keys of a prefix."""
    own = jax.tree.map(lambda x: x[:, 0], own)
    none = _no_inputs(config, lengths.shape[0], config.attention.short_conv_width - 1)
    return caches.PrefixLayer(past=own.key_values, inputs=caches.latest(none, own.inputs, lengths))


def _no_key_values(config, *shape: int) -> caches.KeyValues:
    zeros = jnp.zeros((*shape, config.kv_heads, config.head_dim), config.dtype)
    return caches.KeyValues(key=zeros, value=zeros)


def _no_inputs(config, *shape: int) -> tuple:
    """Of the short convolution, before a text begins."""
    if not config.attention.short_conv_width:
        return ()
    heads = (config.num_heads, config.kv_heads, config.kv_heads)
    return tuple(jnp.zeros((*shape, n, config.head_dim), config.dtype) for n in heads)
