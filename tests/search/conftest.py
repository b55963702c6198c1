"""Untrained models as checkpoints, for tests of the commands that search."""

import jax
import pytest

from data import tokenizer
from models import language_model, transformer
from train import checkpoints

METADATA = ("longest_text_tokens", "has_trained_value")


@pytest.fixture
def save_model(tmp_path):
    """`save_model("bytes", longest_text_tokens=64)` -> folder of a checkpoint.

    change: what is done to the parameters before they are saved. The rest is of the model's config
    or of the metadata, whoever has it.
    """

    def save(name="game24", *, change=lambda params: params, **fields):
        text = tokenizer.load_tokenizer(name)
        of_metadata = {f: fields.pop(f) for f in METADATA if f in fields}
        config = transformer.TransformerConfig(
            **{
                "vocab_size": text.vocab_size, "width": 8, "num_layers": 1, "num_heads": 1,
                "head_dim": 8, **fields,
            }
        )  # fmt: skip
        metadata = checkpoints.Metadata(
            model=config,
            tokenizer=name,
            tokenizer_fingerprint=text.fingerprint,
            data_hash="",
            **of_metadata,
        )
        params = language_model.LanguageModel(config).init(jax.random.key(0))
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        checkpoints.save_params(folder, change(params), metadata, dtype="float32")
        return folder

    return save
