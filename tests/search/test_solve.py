import jax
import pytest

from data import tokenizer
from data.errors import DataError
from models import language_model, transformer
from search import solve
from train import checkpoints
from train.errors import ConfigError

TEXT = tokenizer.load_tokenizer("game24")
CONFIG = transformer.TransformerConfig(
    vocab_size=TEXT.vocab_size, width=16, num_layers=1, num_heads=2, head_dim=8
)


@pytest.fixture
def checkpoint(tmp_path):
    metadata = checkpoints.Metadata(
        model=CONFIG, tokenizer="game24", tokenizer_fingerprint=TEXT.fingerprint, data_hash=""
    )
    params = language_model.LanguageModel(CONFIG).init(jax.random.key(0))
    checkpoints.save_params(tmp_path / "model", params, metadata, dtype="float32")
    return str(tmp_path / "model")


def test_an_untrained_model_is_wrong_both_ways(checkpoint, capsys):
    solve.main([checkpoint, "4", "5", "6", "10", "--simulations", "2"])
    out = capsys.readouterr().out
    assert "without search: wrong" in out and "with 2 simulations a move: wrong" in out
    assert "P(solved) 0." in out and "tokens" in out


def test_unusable_puzzles_are_one_clear_line(checkpoint, capsys):
    with pytest.raises(DataError, match="must have a solution; got \\(1, 1, 1, 1\\)"):
        solve.main([checkpoint, "1", "1", "1", "1"])
    for numbers in (["4", "5", "6"], ["4", "5", "6", "14"]):
        with pytest.raises(ConfigError, match="four numbers from 1 to 13"):
            solve.main([checkpoint, *numbers])
    with pytest.raises(DataError, match="does not exist"):
        solve.main([checkpoint + "x", "4", "5", "6", "10"])
    assert capsys.readouterr().out == ""
