"""The architectures that `transformers` and this network share: configs and tensor names, by table.

    family = by_architecture("LlamaForCausalLM")
    family.read(config_json) -> TransformerConfig;  family.write(config) -> config_json
    family.tensors(config)   -> {name in the file: Tensor(paths of our parameters, shape there)}

The values of a linear layer lie as [out, in] there, and as [in, ...heads] here.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from data.errors import DataError
from models import layers
from models.attention import AttentionConfig
from models.language_model import LanguageModel
from models.transformer import TransformerConfig

Json = dict[str, Any]
Path = tuple[str, ...]
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "weight"}
GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    paths: of the parameters in it, below "trunk"; several share the rows of a head in turn.
    shapes: theirs here. shape: of the tensor there.
    """

    paths: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """modules: name of each of our modules there; {} stands for the number of the block."""

    architecture: str
    model_type: str
    modules: Mapping[str, str]
    read: Callable[[Json], TransformerConfig]
    write: Callable[[TransformerConfig], Json]

    def tensors(self, config: TransformerConfig) -> dict[str, Tensor]:
        """Every tensor of the policy network by its name in the file, in the order of our tree."""
        trunk = nn.unbox(LanguageModel(config).abstract_params())["trunk"]
        together: dict[str, list[tuple[Path, tuple[int, ...]]]] = {}
        for key_path, leaf in jax.tree_util.tree_flatten_with_path(trunk)[0]:
            path = tuple(entry.key for entry in key_path)
            together.setdefault(self._name(path), []).append((path, leaf.shape))
        found = {}
        for name, parts in together.items():
            # The order of the parts is that of the table, the one in the file.
            parts = sorted(parts, key=lambda part: list(self.modules).index(_module(part[0])[0]))
            shapes = tuple(shape for _, shape in parts)
            rows = [_shape_there(path, shape) for path, shape in parts]
            shape = (sum(row[0] for row in rows), *rows[0][1:])
            found[name] = Tensor(tuple(path for path, _ in parts), shapes, shape)
        return found

    def _name(self, path: Path) -> str:
        module, block = _module(path)
        if module not in self.modules:
            raise ValueError(f"{self.architecture} has no place for {'/'.join(path)}.")
        return f"{self.modules[module].format(block)}.{LEAVES[path[-1]]}"


def _module(path: Path) -> tuple[str, str]:
    """("block_3", "attention", "query", "kernel") -> ("attention/query", "3")."""
    if path == ("embedding",):
        return "embedding", ""
    head, *rest = path[:-1]
    if head.startswith("block_"):
        return "/".join(rest), head.removeprefix("block_")
    return head, ""


def num_inputs(path: Path, shape: tuple[int, ...]) -> int:
    """How many of the first axes of a kernel are its input: [heads, head_dim, width] has two."""
    return len(shape) - 1 if path[-2] == "out" else 1


def _shape_there(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape if path[-1] == "embedding" else (math.prod(shape),)
    n = num_inputs(path, shape)
    return math.prod(shape[n:]), math.prod(shape[:n])


def by_architecture(config: Json, where: object) -> Family:
    """The family of a config.json.

    Raises:
      DataError: it names none that is known.
    """
    names = [*(config.get("architectures") or ()), config.get("model_type")]
    for family in FAMILIES:
        if family.architecture in names or family.model_type in names:
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    raise DataError(
        f"a checkpoint folder holds one of {known}; got {names} in {where}. Convert it to one of "
        "those, if it is the same network."
    )


def of_config(config: TransformerConfig) -> tuple[Family, Json]:
    """The first family whose config.json says all that this config says, and that config.json.

    Raises:
      ValueError: there is none.
    """
    wanted = essence(config)
    for family in FAMILIES:
        written = family.write(wanted)
        with contextlib.suppress(ValueError):  # what it reads as may be no model at all
            if family.read(written) == wanted:
                return family, written
    known = ", ".join(family.architecture for family in FAMILIES)
    raise ValueError(
        f"a checkpoint folder holds one of {known}, none of which is this model: {wanted}. Keep it "
        "in this project's own form."
    )


def essence(config: TransformerConfig) -> TransformerConfig:
    """The config with its defaults filled in, without what says how it is computed."""
    return dataclasses.replace(
        config,
        num_kv_heads=config.kv_heads,
        mlp_width=config.hidden_width,
        dtype="float32",
        remat=False,
        value_head_width=64,
    )


# ------------------------------------------------------------------------------- config.json


def _read(c: Json, **fields: Any) -> TransformerConfig:
    """What all families say in the same words."""
    width, heads = c["hidden_size"], c["num_attention_heads"]
    window = fields.pop("window", None)
    shared = {
        "vocab_size": c["vocab_size"],
        "width": width,
        "num_layers": c["num_hidden_layers"],
        "num_heads": heads,
        "head_dim": c.get("head_dim") or width // heads,
        "num_kv_heads": c.get("num_key_value_heads") or heads,
        "mlp_width": c["intermediate_size"],
        "tie_embeddings": c.get("tie_word_embeddings", False),
        "attention": AttentionConfig(window_tokens=window or 0),
        "scale_embeddings": False,
    }
    return TransformerConfig(**(shared | _read_rope(c) | fields))


def _write(config: TransformerConfig, epsilon: str, **fields: Any) -> Json:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.hidden_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_embeddings,
        epsilon: config.norm_epsilon,
        **_write_rope(config),
        **fields,
    }


def _read_rope(c: Json, fraction: float = 1.0) -> dict[str, Any]:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` of older files."""
    given: Json = c.get("rope_parameters") or c.get("rope_scaling") or {}
    theta = given.get("rope_theta", c.get("rope_theta", c.get("rotary_emb_base", 10_000.0)))
    share: Any = c.get("partial_rotary_factor", c.get("rotary_pct", fraction))
    return {
        "rope_base": None if theta is None else float(theta),
        "rotary_fraction": float(given.get("partial_rotary_factor", share)),
        "rope_scaling": _read_scaling(given, c),
    }


def _read_scaling(given: Json, c: Json) -> layers.RopeScaling | None:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default" and not any(isinstance(value, dict) for value in given.values()):
        return None
    if kind not in ("linear", "llama3", "yarn") or given.get("truncate") is False:
        raise DataError(
            "positions are scaled by linear, llama3, or yarn with whole indices, the same in all "
            f"layers; got {given}. Such a model cannot be read."
        )
    factor = float(given["factor"])
    original: Any = given.get("original_max_position_embeddings") or c.get(
        "max_position_embeddings"
    )
    if kind == "linear":
        return layers.RopeScaling(kind="linear", factor=factor)
    if kind == "llama3":
        return layers.RopeScaling(
            kind="llama3",
            factor=factor,
            original_positions=original,
            low=given["low_freq_factor"],
            high=given["high_freq_factor"],
        )
    return layers.RopeScaling(
        kind="yarn",
        factor=factor,
        original_positions=original,
        low=given.get("beta_slow") or 1.0,
        high=given.get("beta_fast") or 32.0,
        attention_factor=_attention_factor(given, factor),
    )


def _attention_factor(given: Json, factor: float) -> float:
    """YaRN, arXiv:2309.00071, eq. 22, and its two-part form in DeepSeek-V2, arXiv:2405.04434."""
    if given.get("attention_factor") is not None:
        return given["attention_factor"]

    def longer(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return longer(given["mscale"]) / longer(given["mscale_all_dim"])
    return longer(1.0)


def _write_rope(config: TransformerConfig) -> Json:
    """In the words of transformers 5 and in those of versions before it."""
    scaling = config.rope_scaling
    given: Json = {"rope_type": "default" if scaling is None else scaling.kind}
    if scaling is not None:
        given["factor"] = scaling.factor
        if scaling.kind != "linear":
            given["original_max_position_embeddings"] = scaling.original_positions
        if scaling.kind == "llama3":
            given |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
        if scaling.kind == "yarn":
            given |= {"beta_slow": scaling.low, "beta_fast": scaling.high}
            given["attention_factor"] = scaling.attention_factor
    part = {}
    if config.rotary_fraction != 1:
        part = {"partial_rotary_factor": config.rotary_fraction}
    older = None if scaling is None else {**given, "type": scaling.kind}
    theta = {"rope_theta": config.rope_base}
    return {"rope_parameters": {**given, **theta, **part}, **theta, **part, "rope_scaling": older}


def _activation(c: Json, known: Mapping[str, str]) -> Any:
    act = c.get("hidden_act", next(iter(known)))
    if act not in known:
        raise DataError(
            f"the MLP of this architecture has one of the activations {list(known)}; got {act!r}. "
            "Such a model cannot be read."
        )
    return known[act]


def _window(c: Json) -> int | None:
    """Of Qwen: all layers have it, or none."""
    if not c.get("use_sliding_window") or c.get("sliding_window") is None:
        return None
    layers_full = min(c.get("max_window_layers", 0), c["num_hidden_layers"])
    kinds = set(c.get("layer_types") or ())
    is_everywhere = kinds == {"sliding_attention"} if kinds else layers_full == 0
    is_nowhere = kinds == {"full_attention"} if kinds else layers_full == c["num_hidden_layers"]
    if not is_everywhere and not is_nowhere:
        raise DataError(
            "all layers have the same window here; got use_sliding_window with "
            f"max_window_layers={c.get('max_window_layers')}, layer_types={sorted(kinds)}. Set "
            "use_sliding_window to false for texts shorter than the window."
        )
    return c["sliding_window"] if is_everywhere else None


def _gated(c: Json, **fields: Any) -> TransformerConfig:
    """Llama and what came after it."""
    epsilon = c.get("rms_norm_eps", 1e-6)
    return _read(c, mlp=_activation(c, {"silu": "swiglu"}), norm_epsilon=epsilon, **fields)


def _qkv_and_out(c: Json) -> dict[str, bool]:
    bias = c.get("attention_bias", False)
    return {"qkv_bias": bias, "out_bias": bias, "mlp_bias": c.get("mlp_bias", False)}


def _write_window(config: TransformerConfig) -> Json:
    window = config.attention.window_tokens
    if not window:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}


def _write_neox(config: TransformerConfig) -> Json:
    theirs = {ours: name for name, ours in reversed(GELU.items())}
    written = _write(config, "layer_norm_eps", hidden_act=theirs.get(config.mlp, "gelu"))
    del written["num_key_value_heads"], written["head_dim"]
    return written | {
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel_residual,
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rope_base,
    }


def _read_neox(c: Json) -> TransformerConfig:
    bias = c.get("attention_bias", True)
    return _read(
        c,
        **_read_rope(c, fraction=0.25),
        mlp=_activation(c, GELU),
        norm="layer",
        norm_epsilon=c.get("layer_norm_eps", 1e-5),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        parallel_residual=c.get("use_parallel_residual", True),
    )


def _read_nemotron(c: Json) -> TransformerConfig:
    return _read(
        c,
        **_read_rope(c, fraction=0.5),
        **_qkv_and_out(c),
        mlp=_activation(c, {"relu2": "relu_squared"}),
        norm="layer_plus_one",
        norm_epsilon=c.get("norm_eps", 1e-5),
    )


# ------------------------------------------------------------------------------------- names

LLAMA_MODULES = {
    "embedding": "model.embed_tokens",
    "attention_norm": "model.layers.{}.input_layernorm",
    "attention/query": "model.layers.{}.self_attn.q_proj",
    "attention/key": "model.layers.{}.self_attn.k_proj",
    "attention/value": "model.layers.{}.self_attn.v_proj",
    "attention/query_norm": "model.layers.{}.self_attn.q_norm",
    "attention/key_norm": "model.layers.{}.self_attn.k_norm",
    "attention/out": "model.layers.{}.self_attn.o_proj",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    "mlp/gate": "model.layers.{}.mlp.gate_proj",
    "mlp/up": "model.layers.{}.mlp.up_proj",
    "mlp/down": "model.layers.{}.mlp.down_proj",
    "final_norm": "model.norm",
    "unembed": "lm_head",
}
NEOX_MODULES = {
    "embedding": "gpt_neox.embed_in",
    "attention_norm": "gpt_neox.layers.{}.input_layernorm",
    "attention/query": "gpt_neox.layers.{}.attention.query_key_value",
    "attention/key": "gpt_neox.layers.{}.attention.query_key_value",
    "attention/value": "gpt_neox.layers.{}.attention.query_key_value",
    "attention/out": "gpt_neox.layers.{}.attention.dense",
    "mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
    "mlp/up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "mlp/down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
    "unembed": "embed_out",
}
FAMILIES = (
    Family(
        "LlamaForCausalLM",
        "llama",
        LLAMA_MODULES,
        lambda c: _gated(c, **_qkv_and_out(c)),
        lambda config: _write(
            config,
            "rms_norm_eps",
            hidden_act="silu",
            attention_bias=config.qkv_bias,
            mlp_bias=config.mlp_bias,
        ),
    ),
    Family(
        "MistralForCausalLM",
        "mistral",
        LLAMA_MODULES,
        lambda c: _gated(c, window=c.get("sliding_window", 4096)),
        lambda config: _write(
            config,
            "rms_norm_eps",
            hidden_act="silu",
            sliding_window=config.attention.window_tokens or None,
        ),
    ),
    Family(
        "Qwen2ForCausalLM",
        "qwen2",
        LLAMA_MODULES,
        lambda c: _gated(c, window=_window(c), qkv_bias=True),
        lambda config: _write(config, "rms_norm_eps", hidden_act="silu", **_write_window(config)),
    ),
    Family(
        "Qwen3ForCausalLM",
        "qwen3",
        LLAMA_MODULES,
        lambda c: _gated(c, window=_window(c), qk_norm=True, **_qkv_and_out(c)),
        lambda config: _write(
            config,
            "rms_norm_eps",
            hidden_act="silu",
            attention_bias=config.qkv_bias,
            **_write_window(config),
        ),
    ),
    Family("GPTNeoXForCausalLM", "gpt_neox", NEOX_MODULES, _read_neox, _write_neox),
    Family(
        "NemotronForCausalLM",
        "nemotron",
        LLAMA_MODULES,
        _read_nemotron,
        lambda config: _write(
            config,
            "norm_eps",
            hidden_act="relu2",
            attention_bias=config.qkv_bias,
            mlp_bias=config.mlp_bias,
        ),
    ),
)
