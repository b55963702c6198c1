"""Checkpoints of llama2.c (github.com/karpathy/llama2.c, `legacy_export`, version 0), read only.

    model, params, tokenizer = llama2c.load("stories15M.bin")

The file is 7 little-endian int32 (width, mlp_width, layers, heads, kv_heads, vocab_size, which is
negative where the output has weights of its own, and positions), then float32 arrays without names:
`_arrays` says which. `tokenizer.model` (SentencePiece) beside the file is its tokenizer.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data import folder_tokenizer
from data.errors import DataError
from data.tokenizer import Tokenizer
from models.language_model import LanguageModel, Params
from models.transformer import TransformerConfig

SUFFIX = ".bin"
HEADER_BYTES = 7 * 4


def is_file(path: Path) -> bool:
    return path.suffix == SUFFIX and path.is_file()


def load(path: Path | str) -> tuple[LanguageModel, Params, Tokenizer | None]:
    """The model, its parameters in float32 with a fresh value head, and its tokenizer or None.

    Raises:
      DataError: the header is none, or the file is not as long as the header says.
    """
    path = Path(path)
    config, positions, tied = _read_header(path)
    model = LanguageModel(config)
    arrays = list(_arrays(config, positions, tied))
    size = HEADER_BYTES + 4 * sum(math.prod(shape) for _, shape in arrays)
    if path.stat().st_size != size:
        raise DataError(
            f"a llama2.c file of {config.num_layers} layers of width {config.width} has {size} "
            f"bytes; {path} has {path.stat().st_size}. It is truncated, or of another version."
        )
    found, offset = {}, HEADER_BYTES
    for name, shape in arrays:
        found[name] = np.memmap(path, "<f4", "r", offset, shape)
        offset += found[name].nbytes
    trunk = {
        "embedding": jnp.asarray(found["embedding"]),
        "final_norm": {"scale": jnp.asarray(found["final_norm"])},
    }
    for i in range(config.num_layers):
        trunk[f"block_{i}"] = _block(
            config, {name: a[i] for name, a in found.items() if "/" in name}
        )
    if not tied:
        trunk["unembed"] = {"kernel": jnp.asarray(found["unembed"].T)}
    has_tokenizer = folder_tokenizer.is_in(path.parent)
    return (
        model,
        {"trunk": trunk, "value_head": model.init_value_head(jax.random.key(0))},
        folder_tokenizer.load(path.parent) if has_tokenizer else None,
    )


def longest_text(path: Path | str) -> int:
    """Positions that the model was trained on."""
    return _read_header(Path(path))[1]


def _read_header(path: Path) -> tuple[TransformerConfig, int, bool]:
    """The network, its positions, and whether its output shares the embedding."""
    with path.open("rb") as file:
        header = np.frombuffer(file.read(HEADER_BYTES), "<i4")
    if len(header) == 7:
        width, mlp_width, num_layers, num_heads, num_kv_heads, vocab_size, positions = map(
            int, header
        )
        counts = (width, mlp_width, num_layers, num_heads, num_kv_heads, positions)
        if vocab_size and min(counts) > 0 and width % num_heads == 0:
            config = TransformerConfig(
                vocab_size=abs(vocab_size),
                width=width,
                num_layers=num_layers,
                num_heads=num_heads,
                head_dim=width // num_heads,
                num_kv_heads=num_kv_heads,
                mlp_width=mlp_width,
                tie_embeddings=vocab_size > 0,
                scale_embeddings=False,
                norm_epsilon=1e-5,
            )
            return config, positions, vocab_size > 0
    raise DataError(
        "a llama2.c file of version 0 begins with 7 int32 such as 288 768 6 6 6 32000 256; "
        f"{path} begins with {header.tolist()}. Export it with `--version 0`."
    )


def _arrays(
    config: TransformerConfig, positions: int, tied: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file; linear layers lie as [out, in]."""
    layers, width, hidden = config.num_layers, config.width, config.hidden_width
    width_kv = config.kv_heads * config.head_dim
    yield "embedding", (config.vocab_size, width)
    yield "attention_norm/scale", (layers, width)
    yield "attention/query", (layers, width, width)
    yield "attention/key", (layers, width_kv, width)
    yield "attention/value", (layers, width_kv, width)
    yield "attention/out", (layers, width, width)
    yield "mlp_norm/scale", (layers, width)
    yield "mlp/gate", (layers, hidden, width)
    yield "mlp/down", (layers, width, hidden)
    yield "mlp/up", (layers, hidden, width)
    yield "final_norm", (width,)
    yield "angles", (2, positions, config.head_dim // 2)  # cosines and sines, unused
    if not tied:
        yield "unembed", (config.vocab_size, width)


def _block(config: TransformerConfig, arrays: dict[str, np.ndarray]) -> Params:
    width, head_dim = config.width, config.head_dim

    def heads(name: str, is_rotated: bool) -> Params:
        rows = arrays[name].reshape(-1, head_dim, width)
        if is_rotated:  # there channels 2i and 2i + 1 turn together, here i and i + head_dim / 2
            rows = np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1)
        return {"kernel": jnp.asarray(rows.transpose(2, 0, 1))}

    out = arrays["attention/out"].T.reshape(config.num_heads, head_dim, width)
    return {
        "attention_norm": {"scale": jnp.asarray(arrays["attention_norm/scale"])},
        "attention": {
            "query": heads("attention/query", True),
            "key": heads("attention/key", True),
            "value": heads("attention/value", False),
            "out": {"kernel": jnp.asarray(out)},
        },
        "mlp_norm": {"scale": jnp.asarray(arrays["mlp_norm/scale"])},
        "mlp": {
            name: {"kernel": jnp.asarray(arrays[f"mlp/{name}"].T)}
            for name in ("gate", "up", "down")
        },
    }
