import jax
import numpy as np
import pytest

from data import tokenizer
from models import language_model, transformer
from train import checkpoints, export
from train.errors import ConfigError

TEXT = tokenizer.load_tokenizer("game24")
CONFIG = transformer.TransformerConfig(
    vocab_size=TEXT.vocab_size, width=16, num_layers=1, num_heads=2, head_dim=8
)


def test_exported_parameters_are_the_same_in_half_the_bytes(tmp_path, capsys):
    params = language_model.LanguageModel(CONFIG).init(jax.random.key(0))
    metadata = checkpoints.Metadata(
        model=CONFIG, tokenizer="game24", tokenizer_fingerprint=TEXT.fingerprint, data_hash="x"
    )
    checkpoints.save_params(tmp_path / "whole", params, metadata, dtype="float32")
    export.main([str(tmp_path / "whole"), str(tmp_path / "small")])
    assert "MB" in capsys.readouterr().out
    config, name, loaded = checkpoints.load_params(tmp_path / "small")
    assert (config, name) == (CONFIG, "game24")
    for got, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(got, want, rtol=2**-8)
        assert not np.array_equal(got, want) or np.all(want == 1)
    for path in (tmp_path / "small").rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        export.export(tmp_path / "whole", tmp_path / "small")


def test_parameters_are_written_in_a_known_dtype(tmp_path):
    with pytest.raises(ConfigError, match="one of bfloat16, float16, float32; got 'bfloat'"):
        export.main([str(tmp_path / "whole"), str(tmp_path / "small"), "--dtype", "bfloat"])
    assert not (tmp_path / "small").exists()
