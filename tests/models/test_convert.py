"""Our commands on a folder of `transformers`, and from one form of checkpoint to the other."""

import shutil

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from configs import load
from data import folder_tokenizer, problems, records, tokenizer
from data.errors import DataError
from models import convert, huggingface, tensor_files
from models.language_model import LanguageModel
from models.transformer import TransformerConfig
from search import __main__ as search_command
from train import checkpoints
from train.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of 300 tokens, with a tokenizer of bytes and a few pairs of them."""
    path = tmp_path_factory.mktemp("checkpoints") / "llama"
    model = LanguageModel(
        TransformerConfig(
            vocab_size=300, width=16, num_layers=1, num_heads=2, head_dim=8, scale_embeddings=False
        )
    )
    huggingface.save(path, model, model.init(jax.random.key(0)), longest_text_tokens=4096)
    pairs = tokenizers.Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator(["the cat and the hat and the bat"] * 9, trainer)
    pairs.save(str(path / folder_tokenizer.PIECES))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    tensor_files.write_json(path / folder_tokenizer.SETTINGS, settings)
    return path


def test_a_folder_is_a_checkpoint(folder):
    metadata = checkpoints.read_metadata(checkpoints.find_step(folder))
    assert metadata.has_trained_value is None  # it was saved with a value head
    assert metadata.longest_text_tokens == 4096
    config, name, params = checkpoints.load_params(folder)
    text = tokenizer.load_tokenizer(name)
    assert text.fingerprint == metadata.tokenizer_fingerprint
    assert config.vocab_size == 300
    assert params["trunk"]["embedding"].shape == (300, 16)
    prompt = "the café\nand 7"
    ids = tokenizer.prompt_ids(text, prompt)
    assert ids[0] == text.bos_id == 0
    assert text.decode([*ids, text.eos_id]) == prompt
    assert text.decode([text.newline_id]) == "\n"


def test_there_and_back_is_bit_equal(folder, tmp_path):
    convert.convert(folder, tmp_path / "ours")
    convert.convert(tmp_path / "ours", tmp_path / "theirs")
    for name in (tensor_files.SINGLE, huggingface.VALUE_HEAD):
        before, after = (
            tensor_files.read_file(path / name) for path in (folder, tmp_path / "theirs")
        )
        assert before.keys() == after.keys()
        for key in before:
            np.testing.assert_array_equal(before[key], after[key])
    for name in (folder_tokenizer.PIECES, folder_tokenizer.SETTINGS):
        assert (folder / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_attention_is_swapped(folder, tmp_path):
    convert.convert(folder, tmp_path / "taylor", attention="taylor", order=4)
    config, _, _ = checkpoints.load_params(tmp_path / "taylor")
    assert (config.attention.kind, config.attention.order) == ("taylor", 4)
    with pytest.raises(ConfigError, match="none of which is this model"):
        convert.convert(tmp_path / "taylor", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_more_tokens_than_logits_are_refused(folder, tmp_path):
    other = tmp_path / "llama"
    shutil.copytree(folder, other)
    file = other / folder_tokenizer.PIECES
    larger = tokenizers.Tokenizer.from_file(str(file))
    larger.add_tokens([f"<extra {n}>" for n in range(60)])
    larger.save(str(file))
    with pytest.raises(DataError, match="the model 300"):
        huggingface.load(other)


def test_gsm8k_is_searched_with_a_llama(folder, tmp_path, data_file, monkeypatch):
    data_file("gsm8k/test.jsonl")
    monkeypatch.chdir(load.FOLDER.parent)
    small = ["--search.num-simulations", "4", "--search.action.max-step-tokens", "8",
             "--search.action.max-completion-tokens", "16", "--max-moves", "2",
             "--search.action.num-candidates", "2"]  # fmt: skip
    search_command.main(
        ["gsm8k_search", "--checkpoint", str(folder), "--limit", "2", "--batch-size", "2",
         "--run-folder", str(tmp_path / "run"), *small]
    )  # fmt: skip
    games = list(records.read_folder(tmp_path / "run" / "records"))
    asked = problems.load_problems("gsm8k", "test")[:2]
    assert [game.prompt for game in games] == [one.prompt.text for one in asked]
    assert games[0].prompt_tokens[0] == 0
