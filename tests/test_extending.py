"""The examples of docs/extending.md do what the page says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data import tokenizer
from evaluation import asking, tasks
from evaluation.player import Player
from evaluation.tasks import TaskOptions
from models import families, huggingface
from models.language_model import LanguageModel
from models.transformer import TransformerConfig


@pytest.fixture(scope="module")
def examples(repository_root):
    """Name of the file -> what the example defines."""
    text = (repository_root / "docs" / "extending.md").read_text("utf-8")
    found = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        assert len(block.splitlines()) <= 40
        file = block.splitlines()[0].removeprefix("# ")
        namespace = {}
        exec(compile(block, file, "exec"), namespace)
        found[file] = namespace
    return found


@pytest.fixture(scope="module")
def player():
    text = tokenizer.load_tokenizer("bytes")
    config = TransformerConfig(
        vocab_size=text.vocab_size, width=8, num_layers=1, num_heads=1, head_dim=8
    )
    model = LanguageModel(config)
    return Player(model, jax.jit(model.init)(jax.random.key(0)), text, "bytes")


def test_a_task_is_found_asked_and_scored(examples, player, tmp_path, monkeypatch):
    made = examples["evaluation/capitals.py"]
    monkeypatch.setattr(
        tasks.importlib, "import_module", lambda name: type("Module", (), {"TASKS": made["TASKS"]})
    )
    monkeypatch.setitem(tasks.MODULES, "capitals", "evaluation.capitals")
    task = tasks.find("capitals")
    samples = asking.ask(
        task, TaskOptions(), lambda: player, tmp_path / "capitals.jsonl",
        longest_tokens=64, batch_size=4, resume=False, stop=None,
    )  # fmt: skip
    rows = asking.make_rows(task, samples, file="capitals", stage="", method="m", settings={})
    assert [row.metric for row in rows] == ["accuracy", "log-likelihood"]
    assert rows[0].n == 4 and rows[1].score < -10


def test_a_loss_is_a_recipe(examples, player, monkeypatch):
    made = examples["train/recipes.py"]
    tokens = jnp.asarray([[2, 3, 4, 5, 0]])
    batch = {
        "tokens": tokens,
        "segment_ids": jnp.asarray([[1, 1, 1, 1, 0]]),
        "positions": jnp.asarray([[0, 1, 2, 3, 0]]),
        "loss_mask": jnp.asarray([[0.0, 1, 1, 1, 0]]),
    }
    recipes = made["recipes"]
    plain = recipes.Recipe(
        batches=list, loss_fn=recipes.next_token_loss(player.model), data_hash="x"
    )
    monkeypatch.setattr(recipes, "next_token_recipe", lambda *_: plain)
    recipe = made["z_loss_recipe"](None, player.model, None, weight=0.5)
    rng_key = jax.random.key(0)
    loss, metrics = jax.jit(recipe.loss_fn)(player.params, batch, rng_key)
    logits = player.model.forward(player.params, tokens[:, :4])
    want = float(jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean())
    assert float(metrics["z_loss"]) == pytest.approx(want, rel=1e-4)
    assert float(loss) == pytest.approx(float(metrics["text_loss_nats_per_token"]) + want / 2)


def test_a_benchmark_says_where_its_numbers_come_from(examples, capsys):
    made = examples["benchmarks/prefill.py"]
    assert made["measure"](16, repeats=2) > 0
    made["measure"].__globals__["measure"] = lambda length: 1000.0
    made["main"]()
    printed = capsys.readouterr().out
    assert printed.startswith("commit ") and "512 tokens: 1,000 tokens/s" in printed


def test_a_model_family_is_written_and_read(examples, tmp_path, monkeypatch):
    made = examples["models/families.py"]
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, made["STABLELM"]))
    config = TransformerConfig(
        vocab_size=20, width=16, num_layers=1, num_heads=2, head_dim=8, norm="layer",
        rotary_fraction=0.25, scale_embeddings=False, tie_embeddings=False, qkv_bias=True,
    )  # fmt: skip
    model = LanguageModel(config)
    params = jax.jit(model.init)(jax.random.key(0))
    huggingface.save(tmp_path / "model", model, params)
    raw = (tmp_path / "model" / "config.json").read_text()
    assert '"StableLmForCausalLM"' in raw and '"use_qkv_bias": true' in raw
    loaded, again, _ = huggingface.load(tmp_path / "model")
    assert families.essence(loaded.config) == families.essence(config)
    jax.tree.map(np.testing.assert_array_equal, again["trunk"], params["trunk"])
