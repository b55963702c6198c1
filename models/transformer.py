"""The network: tokens of B rows and R lanes -> hidden states, logits, values and rewards."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels import taylor_attention as taylor
from models import heads, layers
from models.attention import Attention, AttentionConfig
from models.view import View

MAX_TAYLOR_FEATURES = 20_000  # times head_dim floats per head, layer and row


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a decoder-only transformer: a norm before each part, rotary positions.

    The defaults are those of models trained here; with the other fields it is Llama, Mistral, Qwen,
    GPT-NeoX or Nemotron (`models.huggingface`).
    """

    vocab_size: int
    """Rows of the embedding; at least the tokens of the tokenizer."""
    width: int
    """Channels of the residual stream."""
    num_layers: int
    """Blocks of attention and MLP."""
    num_heads: int
    """Query heads of an attention layer."""
    head_dim: int
    """Channels of a head, an even number."""
    num_kv_heads: int | None = None
    """Key and value heads: fewer than num_heads gives grouped-query attention; None: equal."""
    mlp_width: int | None = None
    """Hidden units of the MLP; None: 8/3 of the width for SwiGLU, 4 times otherwise."""
    mlp: layers.MlpKind = "swiglu"
    """Nonlinearity of the MLP: "swiglu" has a gate, "relu_squared", "gelu" and "gelu_tanh" (an
    approximation) have none."""
    attention: AttentionConfig = AttentionConfig()
    """How scores become weights."""
    tie_embeddings: bool = True
    """Whether the embedding also makes the next-token logits."""
    rope_base: float | None = 10_000.0
    """Base of the rotary positions: from 1 down to nearly 1/base radians per token. None: no
    positions; the order of tokens shows in causality and in the short convolution only."""
    rotary_fraction: float = 1.0
    """Share of a head's channels, the first ones, that positions turn."""
    rope_scaling: layers.RopeScaling | None = None
    """Slower positions for longer texts."""
    norm: layers.NormKind = "rms"
    """"rms", "layer" (with a mean and a bias), or "layer_plus_one": that, with scale - 1 kept."""
    norm_epsilon: float = 1e-6
    """Added to the mean square before its root is taken."""
    qk_norm: bool = False
    """RMSNorm of every query and key, with a scale that heads share."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases."""
    out_bias: bool = False
    """Whether the output projection of attention has one."""
    mlp_bias: bool = False
    """Whether the projections of the MLP have them."""
    parallel_residual: bool = False
    """Attention and MLP read the same stream, and both add to it."""
    scale_embeddings: bool = True
    """Multiply embeddings by the root of the width, so that tied ones start at size 1."""
    value_head_width: int = 64
    """Hidden units of the value head."""
    num_attributes: int = 0
    """Outputs of the reward head, 5 or 9 (`data.attributes`); 0: the model has none."""
    dtype: str = "float32"
    """Of activations; parameters, attention scores, logits and values are float32."""
    remat: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""

    def __post_init__(self):
        if self.rope_base is not None:
            if self.head_dim % 2 or int(self.head_dim * self.rotary_fraction) % 2:
                raise ValueError(
                    "rotary positions need an even head_dim, of which an even number turns; got "
                    f"head_dim={self.head_dim}, rotary_fraction={self.rotary_fraction}."
                )
        if not 0 < self.rotary_fraction <= 1:
            raise ValueError(f"rotary_fraction lies in (0, 1]; got {self.rotary_fraction}.")
        if self.num_heads % self.kv_heads:
            raise ValueError(
                "num_heads must be a multiple of num_kv_heads (each serves a group of query "
                f"heads); got num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}."
            )
        self.attention.check_weights_are_positive(self.dtype)
        if self.attention.kind == "taylor":
            num_features = taylor.num_features(self.head_dim, self.attention.order)
            if num_features > MAX_TAYLOR_FEATURES:
                raise ValueError(
                    f"a Taylor state holds at most {MAX_TAYLOR_FEATURES} features per head; got "
                    f"{num_features} at order={self.attention.order}, head_dim={self.head_dim}. "
                    "Take a lower order, or more heads of a smaller head_dim."
                )

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def hidden_width(self) -> int:
        if self.mlp_width is not None:
            return self.mlp_width
        return 8 * self.width // 3 if self.mlp == "swiglu" else 4 * self.width


def unembed(hidden: Float[Array, "*B D"], kernel: Float[Array, "D V"]) -> Float[Array, "*B V"]:
    """Next-token logits in float32; the hidden states say how precise the product is."""
    precision = layers.precision_of(hidden.dtype)
    return jnp.matmul(hidden.astype(jnp.float32), kernel, precision=precision)


class Block(nn.Module):
    config: TransformerConfig

    @nn.compact
    def __call__(self, x, view, prefix, lane):
        c = self.config
        attend = Attention(
            c.attention,
            c.num_heads,
            c.kv_heads,
            c.head_dim,
            c.rope_base,
            c.dtype,
            rotary_fraction=c.rotary_fraction,
            rope_scaling=c.rope_scaling,
            qkv_bias=c.qkv_bias,
            out_bias=c.out_bias,
            qk_norm_epsilon=c.norm_epsilon if c.qk_norm else None,
            name="attention",
        )
        mlp = layers.Mlp(c.hidden_width, c.mlp, c.dtype, use_bias=c.mlp_bias, name="mlp")
        mlp_norm = layers.norm(c.norm, c.norm_epsilon, "mlp_norm")
        y, own = attend(
            layers.norm(c.norm, c.norm_epsilon, "attention_norm")(x), view, prefix, lane
        )
        if c.parallel_residual:
            return x + y + mlp(mlp_norm(x)), own
        x = x + y
        return x + mlp(mlp_norm(x)), own


class Trunk(nn.Module):
    """Embedding, blocks, final norm and next-token logits: the policy network."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B R T"],
        view: View,
        prefix: tuple | None = None,
        lanes: tuple | None = None,
    ) -> tuple[Float[Array, "B R T D"], Float[Array, "B R T V"], tuple]:
        c = self.config
        init = nn.with_logical_partitioning(
            nn.initializers.normal(stddev=c.width**-0.5), ("vocab", "embed")
        )
        table_VD = self.param("embedding", init, (c.vocab_size, c.width))
        x = table_VD[tokens].astype(c.dtype)
        if c.scale_embeddings:
            x = x * c.width**0.5
        block = nn.remat(Block) if c.remat else Block
        owns = []
        for i in range(c.num_layers):
            past = None if prefix is None else prefix[i]
            lane = None if lanes is None else lanes[i]
            x, own = block(c, name=f"block_{i}")(x, view, past, lane)
            owns.append(own)
        hidden = layers.norm(c.norm, c.norm_epsilon, "final_norm")(x)
        if c.tie_embeddings:
            logits = unembed(hidden, table_VD.T)
        else:
            project = layers.dense(
                (c.vocab_size,), ("embed", "vocab"), "float32", "unembed", model_dtype=c.dtype
            )
            logits = project(hidden.astype(jnp.float32))
        return hidden, logits, tuple(owns)


class Network(nn.Module):
    """Policy network under "trunk", value head under "value_head": each has its own optimizer.

    A reward model has a "reward_head" too, which learns with its trunk.
    """

    config: TransformerConfig

    def setup(self):
        self.trunk = Trunk(self.config)
        self.value_head = heads.ValueHead(self.config.value_head_width)
        if self.config.num_attributes:
            self.reward_head = heads.RewardHead(self.config.num_attributes)

    def __call__(self, *args, stop_value_gradient: bool = False, **kwargs):
        hidden, logits, owns = self.trunk(*args, **kwargs)
        state = jax.lax.stop_gradient(hidden) if stop_value_gradient else hidden
        value_logits = self.value_head(state)
        reward = self.reward_head(hidden) if self.config.num_attributes else None
        return hidden, logits, value_logits, reward, owns
