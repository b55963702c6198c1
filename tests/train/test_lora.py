"""Adapters beside a frozen base: what is trained, kept, merged and given to peft."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import load
from models import huggingface, lora, quantized, sharding
from models.language_model import LanguageModel
from models.lora import LoraConfig
from models.transformer import TransformerConfig
from train import checkpoints, export, loop, optimizers, peft, recipes
from train import step as steps
from train.errors import ConfigError, DataError, Preempted
from train.optimizers import OptimizerConfig, OptimizersConfig
from train.stopping import StopFlag

needs_qwix = pytest.mark.skipif(
    importlib.util.find_spec("qwix") is None, reason="needs qwix, of the extra hf"
)
KINDS = [
    None,
    pytest.param("nf4", marks=needs_qwix),
    pytest.param("int8", marks=[needs_qwix, pytest.mark.slow]),
]
MODEL = LanguageModel(
    TransformerConfig(
        vocab_size=32, width=16, num_layers=2, num_heads=4, head_dim=8, num_kv_heads=2,
        mlp_width=32, tie_embeddings=False,
    )
)  # fmt: skip
CONFIG = LoraConfig(rank=2, alpha=3.0, tile_size=8)
TOKENS = np.random.default_rng(0).integers(0, 32, (8, 12)).astype(np.int32)
BATCH = {
    "tokens": TOKENS,
    "loss_mask": np.ones(TOKENS.shape, np.float32),
    "segment_ids": np.ones(TOKENS.shape, np.int32),
    "positions": np.tile(np.arange(12, dtype=np.int32), (8, 1)),
}


def random_adapters(split):
    """Trained parameters with a B that is not zero."""
    trained = split.init(jax.random.key(1))
    leaves, tree = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


@pytest.fixture(scope="module")
def base(minuscule, tmp_path_factory):
    """A trained run without adapters."""
    folder = tmp_path_factory.mktemp("base")
    loop.run(minuscule(validation_sources=()), folder)
    return folder


@pytest.fixture(scope="module")
def adapted(minuscule, base):
    """`adapted(kind)`: an experiment with adapters on that base."""

    def make(kind=None, **changes):
        config = LoraConfig(rank=2, alpha=4.0, quantize_base=kind, tile_size=2)
        return minuscule(**({"lora": config, "initial_checkpoint": str(base)} | changes))

    return make


@pytest.fixture(scope="module")
def trained(adapted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    loop.run(adapted(), folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged_and_the_reference_is_the_base(kind):
    config = dataclasses.replace(CONFIG, quantize_base=kind)
    split, params = lora.split(MODEL, config), jax.jit(MODEL.init)(jax.random.key(0))
    frozen = lora.frozen_params(params, config)
    joined = split.join(random_adapters(split), frozen)
    forward = jax.jit(MODEL.forward)
    got, reference = forward(joined, TOKENS), forward(lora.reference_params(joined), TOKENS)
    np.testing.assert_allclose(forward(lora.merge(joined, MODEL), TOKENS), got, atol=1e-4)
    assert np.max(np.abs(got - reference)) > 0.1  # the adapters do something
    at_start = split.join(split.init(jax.random.key(1)), frozen)
    np.testing.assert_allclose(forward(at_start, TOKENS), reference, atol=1e-6)
    if kind is None:
        np.testing.assert_array_equal(reference, forward(params, TOKENS))
    else:
        error = np.max(np.abs(reference - forward(params, TOKENS)))
        assert 1e-4 < error < (2.5 if kind == "nf4" else 0.2)


def test_only_the_targets_have_adapters():
    config = dataclasses.replace(CONFIG, targets=r"block_1/attention/(query|out)")
    adapters = lora.split(MODEL, config).init(jax.random.key(0))["adapters"]
    assert jax.tree.map(jnp.shape, adapters) == {
        "block_1": {
            "attention": {
                "query": {"lora_a": (16, 2), "lora_b": (2, 32)},
                "out": {"lora_a": (32, 2), "lora_b": (2, 16)},
            }
        }
    }
    with pytest.raises(ValueError, match="must match the whole path of a projection; got 'query'"):
        lora.split(MODEL, dataclasses.replace(CONFIG, targets="query"))


def test_trained_memory_is_below_two_percent_at_width_1024():
    model = LanguageModel(
        TransformerConfig(vocab_size=32_000, width=1024, num_layers=4, num_heads=16, head_dim=64)
    )
    policy = OptimizerConfig(peak_learning_rate=1e-3)
    optimizer = optimizers.make_optimizer(OptimizersConfig(policy=policy), train_steps=1)

    def size(config):
        init = lora.split(model, config).init
        state = jax.eval_shape(lambda: steps.init_state(jax.random.key(0), init, optimizer))
        return sum(
            quantized.num_bytes(tree) for tree in (state.params, state.opt_state)
        )  # nothing is allocated

    assert size(LoraConfig(rank=8)) < 0.02 * size(None)


@needs_qwix
def test_a_base_of_four_bits_takes_an_eighth():
    model = LanguageModel(
        TransformerConfig(vocab_size=32, width=1024, num_layers=1, num_heads=16, head_dim=64,
                          mlp_width=2048)
    )  # fmt: skip

    def size(kind):
        boxed = lora.split(model, LoraConfig(quantize_base=kind)).boxed_frozen
        return quantized.num_bytes(lora.kernels(boxed["trunk"]))

    assert size("nf4") / size(None) == (4 + 32 / 64) / 32


def run_steps(config, mesh, params):
    split, loss_fn = lora.split(MODEL, config), recipes.next_token_loss(MODEL)
    policy = OptimizerConfig(peak_learning_rate=1e-2, weight_decay=0.1)
    optimizer = optimizers.make_optimizer(OptimizersConfig(policy=policy), train_steps=10)
    abstract = jax.eval_shape(lambda: steps.init_state(jax.random.key(0), split.init, optimizer))
    shardings = steps.state_shardings(abstract, split.boxed, mesh, split.boxed_frozen)
    state = steps.init_state(jax.random.key(0), split.init, optimizer)
    frozen = lora.frozen_params(params, config)
    before = jax.device_get(frozen)
    state = jax.device_put(dataclasses.replace(state, frozen=frozen), shardings)
    batch = jax.device_put(BATCH, sharding.batch_shardings(BATCH, mesh))
    train_step, losses = steps.jit_train_step(loss_fn, optimizer, shardings, split.join), []
    for _ in range(6):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.frozen), before)
    return state, losses


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_and_the_base_keeps_its_bits_without_optimizer_state(kind):
    config = dataclasses.replace(CONFIG, quantize_base=kind)
    mesh = sharding.make_mesh(sharding.MeshConfig())
    state, losses = run_steps(config, mesh, jax.jit(MODEL.init)(jax.random.key(0)))
    assert losses[-1] < losses[0] - 0.1
    moments = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    assert not any("trunk" in jax.tree_util.keystr(path) for path, _ in moments)
    assert np.any(state.params["adapters"]["block_0"]["attention"]["query"]["lora_b"])


@pytest.mark.devices(8)
@pytest.mark.slow
@pytest.mark.soak
def test_adapters_on_eight_devices_equal_one():
    kind = None if importlib.util.find_spec("qwix") is None else "nf4"
    config = dataclasses.replace(CONFIG, quantize_base=kind)
    params = jax.jit(MODEL.init)(jax.random.key(0))
    many = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    one = sharding.make_mesh(sharding.MeshConfig(), devices=jax.devices()[:1])
    (got, got_losses), (want, want_losses) = (run_steps(config, m, params) for m in (many, one))
    lora_a = got.params["adapters"]["block_0"]["mlp"]["down"]["lora_a"]
    assert lora_a.addressable_shards[0].data.shape == (16, 2)  # [32, 2], cut over `tensor`
    np.testing.assert_allclose(got_losses, want_losses, rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(jax.device_get(a), jax.device_get(b), atol=5e-4),
        got.params, want.params,
    )  # fmt: skip


def validation(folder):
    name = "validation_text_loss_nats_per_token"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_a_run_learns_beside_its_base_and_checkpoints_adapters_alone(base, trained):
    losses = validation(trained)
    assert losses[-1] < losses[0]
    metadata, params = checkpoints.load_saved(trained)
    assert set(params) == {"adapters", "value_head"}
    assert metadata.base_fingerprint == checkpoints.params_fingerprint(
        checkpoints.load_params(base)[2]
    )
    _, _, merged = checkpoints.load_params(trained)
    _, _, plain = checkpoints.load_params(base)
    assert jax.tree.structure(merged) == jax.tree.structure(plain)
    np.testing.assert_array_equal(merged["trunk"]["embedding"], plain["trunk"]["embedding"])
    kernels = [p["trunk"]["block_0"]["mlp"]["up"]["kernel"] for p in (merged, plain)]
    assert not np.array_equal(*kernels)


@needs_qwix
def test_a_run_learns_beside_a_base_of_four_bits(adapted, tmp_path):
    loop.run(adapted("nf4"), tmp_path)
    losses = validation(tmp_path)
    assert losses[-1] < losses[0]


def test_a_stopped_run_with_adapters_resumes_bit_for_bit(adapted, trained, tmp_path):
    with pytest.raises(Preempted):
        loop.run(adapted(), tmp_path, stop=StopFlag(deadline_seconds=0.0))
    loop.run(adapted(), tmp_path, resume=True)
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoints.load_saved(tmp_path)[1],
        checkpoints.load_saved(trained)[1],
    )
    assert validation(tmp_path) == validation(trained)


def test_adapters_without_their_base_are_refused(adapted, base, trained, tmp_path):
    with pytest.raises(ConfigError, match="lora without initial_checkpoint"):
        loop.run(adapted(initial_checkpoint=None), tmp_path / "none")
    metadata, params = checkpoints.load_saved(trained)
    gone = dataclasses.replace(metadata, base_path="nowhere/6")
    checkpoints.save_params(tmp_path / "gone", params, gone, dtype="float32")
    with pytest.raises(DataError, match=r"adapters need the base .*nowhere/6, which is not there"):
        checkpoints.load_params(tmp_path / "gone")
    early = checkpoints.with_base(metadata, tmp_path, base / "checkpoints" / "4", params)
    early = dataclasses.replace(early, base_fingerprint=metadata.base_fingerprint)
    checkpoints.save_params(tmp_path / "other", params, early, dtype="float32")
    with pytest.raises(DataError, match="now has fingerprint"):
        checkpoints.load_params(tmp_path / "other")


def test_an_export_is_a_plain_model(trained, tmp_path):
    export.export(trained, tmp_path / "whole", dtype="float32")
    assert checkpoints.read_metadata(tmp_path / "whole").lora is None
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoints.load_params(tmp_path / "whole")[2],
        checkpoints.load_params(trained)[2],
    )


def test_without_qwix_a_quantised_base_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "qwix", None)
    with pytest.raises(ValueError, match=r"needs the package qwix.*\.\[hf\]"):
        lora.split(MODEL, dataclasses.replace(CONFIG, quantize_base="nf4"))
    lora.split(MODEL, CONFIG)


def test_any_field_on_the_command_line_turns_adapters_on():
    config, _ = load.override(load.find("tiny"), ["--lora.rank", "4"], program="train")
    assert config.lora == LoraConfig(rank=4)
    config, _ = load.override(load.find("tiny"), [], program="train")
    assert config.lora is None
    with pytest.raises(ConfigError, match=r"Did you mean --lora\.rank"):
        load.override(load.find("tiny"), ["--lora.rnk", "4"], program="train")


# The 16 levels of NormalFloat, QLoRA (arXiv:2305.14314), appendix E.
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


@needs_qwix
def test_four_bits_are_the_nearest_published_levels_times_the_largest_of_a_tile():
    kernel = np.random.default_rng(0).normal(size=(8, 16, 24)).astype(np.float32)
    flat = kernel.reshape(128, 24)
    tiles = flat.reshape(2, 64, 24)
    scale = np.abs(tiles).max(axis=1, keepdims=True)
    nearest = np.abs(tiles[..., None] / scale[..., None] - NF4).argmin(axis=-1)
    want = (NF4[nearest] * scale).reshape(128, 24)
    array = jnp.asarray(kernel)
    got = quantized.dequantize(quantized.quantize(array, 2, kind="nf4", tile_size=64))
    np.testing.assert_allclose(got, want, atol=1e-6)
    error = np.abs(got - flat).reshape(tiles.shape) / scale
    assert 0.1 < error.max() <= (1 - 0.6961928) / 2 + 1e-6
    with pytest.raises(ValueError, match="tile_size must divide the inputs.*got 48 for 128"):
        quantized.quantize(array, 2, kind="nf4", tile_size=48)


def test_adapters_go_to_peft_and_come_back_the_same(base, trained, tmp_path):
    peft.main(["export", str(trained), str(tmp_path / "out"), "--base-model", "llama"])
    peft.main(["import", str(tmp_path / "out"), str(base), str(tmp_path / "back")])
    jax.tree.map(
        np.testing.assert_array_equal,
        checkpoints.load_params(tmp_path / "back")[2],
        checkpoints.load_params(trained)[2],
    )


@pytest.mark.parametrize("what", ["missing", "extra", "shape", "torn", "pickle", "dora"])
def test_foreign_adapters_are_one_clear_error(base, trained, tmp_path, what):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "out"
    peft.export_adapters(trained, folder, base_model="llama")
    file = folder / peft.WEIGHTS_FILE
    tensors = load_file(file)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    if what == "missing":
        del tensors[name]
    elif what == "extra":
        tensors[name.replace("layers.0", "layers.7")] = tensors[name]
    elif what == "shape":
        tensors[name] = tensors[name][:, 1:].copy()
    save_file(tensors, file)
    if what == "torn":
        file.write_bytes(file.read_bytes()[:-9])
    elif what == "pickle":
        file.rename(folder / "adapter_model.bin")
    elif what == "dora":
        settings = json.loads((folder / peft.CONFIG_FILE).read_text()) | {"use_dora": True}
        (folder / peft.CONFIG_FILE).write_text(json.dumps(settings))
    message = {
        "missing": r"0\.mlp\.up_proj\.lora_A\.weight is missing",
        "extra": r"7\.mlp\.up_proj\.lora_A\.weight has no place",
        "shape": r"is \[2, 15\] and should be \[2, 16\]",
        "torn": "cannot be read",
        "pickle": "can run code, and is not read",
        "dora": "has use_dora=True",
    }[what]
    with pytest.raises((ConfigError, DataError), match=message):
        peft.import_adapters(folder, base, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.slow
def test_peft_gives_the_same_logits(tmp_path):
    needs = "needs torch, transformers and peft, of the extra hf"
    torch = pytest.importorskip("torch", reason=needs)
    transformers = pytest.importorskip("transformers", reason=needs)
    library = pytest.importorskip("peft", reason=needs)
    c = MODEL.config
    split, params = lora.split(MODEL, CONFIG), jax.jit(MODEL.init)(jax.random.key(0))
    trained = random_adapters(split)
    metadata = checkpoints.Metadata(
        model=c, tokenizer="bytes", data_hash="x", lora=CONFIG,
        tokenizer_fingerprint=peft.checkpoints.tokenizers.load_tokenizer("bytes").fingerprint,
    )  # fmt: skip
    checkpoints.save_params(tmp_path / "ours", trained, metadata, dtype="float32")
    peft.export_adapters(tmp_path / "ours", tmp_path / "peft", base_model="llama")

    huggingface.save(tmp_path / "base", MODEL, params, None)
    llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    tokens = torch.tensor(TOKENS.astype(np.int64))
    with torch.no_grad():
        base = llama(tokens).logits.numpy()
        adapted = library.PeftModel.from_pretrained(llama, tmp_path / "peft")(tokens).logits.numpy()
    forward = jax.jit(MODEL.forward)
    joined = split.join(trained, lora.frozen_params(params, CONFIG))
    np.testing.assert_allclose(forward(params, TOKENS), base, atol=1e-4)
    np.testing.assert_allclose(forward(joined, TOKENS), adapted, atol=1e-4)
    assert np.max(np.abs(adapted - base)) > 0.1
