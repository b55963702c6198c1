"""Checkpoint folders against `transformers`, which made them; or against what it said of them."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import DataError
from models import generate, huggingface, tensor_files
from tests.models import tiny_checkpoints
from tests.models.tiny_checkpoints import FAMILIES


def logits_of(model, params, tokens):
    return jax.jit(model.forward)(params, jnp.asarray(tokens))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def made(family, tmp_path):
    """(model of torch, folder)"""
    pytest.importorskip("torch", reason="needs the extra hf: pip install -e '.[hf]'")
    pytest.importorskip("transformers", reason="needs the extra hf: pip install -e '.[hf]'")
    return tiny_checkpoints.make(family, tmp_path / family), tmp_path / family


def torch_logits(theirs, tokens):
    import torch

    with torch.no_grad():
        return theirs(torch.asarray(np.asarray(tokens))).logits.numpy()


@pytest.mark.soak
def test_logits_greedy_texts_and_export_are_those_of_transformers(made, family, tmp_path):
    import torch
    import transformers

    theirs, folder = made
    model, params, tokenizer = huggingface.load(folder)
    assert tokenizer is None
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    want = torch_logits(theirs, tokens)
    np.testing.assert_allclose(logits_of(model, params, tokens), want, atol=1e-4)

    lengths = jnp.asarray([17, 30])
    out, cache = model.prefill(params, jnp.asarray(tokens[:, :30]), lengths=lengths, capacity=40)
    np.testing.assert_allclose(out.logits[1], want[1, :30], atol=1e-4)
    step = jax.jit(model.decode)
    for n in range(10):
        token = jnp.asarray([tokens[0, 17 + n], tokens[1, 30 + n]])
        out, cache = step(params, cache, token)
        np.testing.assert_allclose(out.logits[0], want[0, 17 + n], atol=1e-4)
        np.testing.assert_allclose(out.logits[1], want[1, 30 + n], atol=1e-4)

    greedy = {"max_new_tokens": 200, "min_new_tokens": 200, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        prompts = torch.asarray(tokens[:, :8])
        texts = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), **greedy)
    wanted = texts[:, 8:].numpy()
    got = generate.generate(
        model, params, jnp.asarray(tokens[:, :8]), jnp.asarray([8, 8]),
        max_new_tokens=200, rng_key=jax.random.key(0), temperature=0.0,
    )  # fmt: skip
    np.testing.assert_array_equal(got.tokens, wanted)

    again = tmp_path / "again"
    huggingface.save(again, model, params, max_file_bytes=20_000)
    assert (again / tensor_files.INDEX).is_file()
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(again)
    np.testing.assert_allclose(torch_logits(reloaded.eval(), tokens), want, atol=1e-6)
    model_again, params_again, _ = huggingface.load(again)
    assert model_again == model
    jax.tree.map(np.testing.assert_array_equal, params_again, params)


def test_golden_folders_give_their_logits(family):
    folder = tiny_checkpoints.GOLDEN / family
    model, params, _ = huggingface.load(folder)
    golden = json.loads((folder / "golden.json").read_text())
    got = logits_of(model, params, golden["tokens"])
    np.testing.assert_allclose(got[0, :: golden["every"]], golden["logits"], atol=1e-4)


@pytest.fixture
def llama(tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(tiny_checkpoints.GOLDEN / "llama", folder)
    return folder


def change_tensors(folder, change):
    file = folder / tensor_files.SINGLE
    tensors = tensor_files.read_file(file)
    change(tensors)
    tensor_files.save(file, tensors)


def change_config(folder, **fields):
    config = tensor_files.read_json(folder / "config.json")
    tensor_files.write_json(folder / "config.json", config | fields)


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, array):
    return lambda tensors: tensors.update({name: array})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(NORM), f"1 missing: {NORM}"),
        (put("model.extra.weight", np.zeros(3, np.float32)), "not of this architecture: model.ext"),
        (put(NORM, np.zeros(3, np.float32)), r"of another shape: model.norm.weight \[3\] for"),
    ],
)
def test_wrong_tensors_are_named(llama, change, message):
    change_tensors(llama, change)
    with pytest.raises(DataError, match=message):
        huggingface.load(llama)


def test_an_unknown_architecture_is_refused_with_the_known_ones(llama):
    change_config(llama, architectures=["MambaForCausalLM"], model_type="mamba")
    with pytest.raises(DataError, match="LlamaForCausalLM, MistralForCausalLM.*MambaForCausalLM"):
        huggingface.load(llama)


def test_a_truncated_file_is_refused(llama):
    file = llama / tensor_files.SINGLE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated"):
        huggingface.load(llama)


def test_a_pickle_is_refused_and_never_opened(llama):
    (llama / tensor_files.SINGLE).rename(llama / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model.bin, a pickle, which runs"):
        huggingface.load(llama)


def test_half_precision_round_trip_is_bit_equal(llama, tmp_path):
    change_tensors(
        llama, lambda tensors: tensors.update({k: v.astype("bfloat16") for k, v in tensors.items()})
    )
    model, params, _ = huggingface.load(llama)
    assert params["trunk"]["embedding"].dtype == jnp.float32
    huggingface.save(tmp_path / "saved", model, params, dtype="bfloat16")
    before = tensor_files.read_file(llama / tensor_files.SINGLE)
    after = tensor_files.read_file(tmp_path / "saved" / tensor_files.SINGLE)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        np.testing.assert_array_equal(before[name], after[name])


def test_older_words_for_positions_mean_the_same(llama):
    config = tensor_files.read_json(llama / "config.json")
    want = huggingface.read_config(llama)
    assert want.rope_scaling is not None
    parameters = config.pop("rope_parameters")
    older = {**parameters, "type": parameters["rope_type"]}
    config |= {"rope_theta": older.pop("rope_theta"), "rope_scaling": older}
    del older["rope_type"]
    tensor_files.write_json(llama / "config.json", config)
    assert huggingface.read_config(llama) == want


def test_a_model_trained_here_becomes_a_llama(build_model, tmp_path):
    model, params = build_model("softmax")
    huggingface.save(tmp_path / "saved", model, params)
    loaded, loaded_params, _ = huggingface.load(tmp_path / "saved")
    tokens = jnp.arange(20).reshape(2, 10)
    want, got = model.outputs(params, tokens), loaded.outputs(loaded_params, tokens)
    np.testing.assert_allclose(got.logits, want.logits, atol=1e-5)
    np.testing.assert_allclose(got.value_logits, want.value_logits, atol=1e-5)


def test_taylor_attention_has_no_architecture_there(build_model, tmp_path):
    model, params = build_model("taylor")
    with pytest.raises(ValueError, match="none of which is this model"):
        huggingface.save(tmp_path / "saved", model, params)
    assert not list(tmp_path.iterdir())


def test_no_folder_is_overwritten(llama):
    model, params, _ = huggingface.load(llama)
    with pytest.raises(DataError, match="exists"):
        huggingface.save(llama, model, params)


@pytest.mark.devices(4)
def test_parameters_lie_on_a_mesh():
    from models import sharding

    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2, tensor=2))
    folder = tiny_checkpoints.GOLDEN / "llama"
    _, params, _ = huggingface.load(folder, mesh=mesh)
    kernel = params["trunk"]["block_0"]["mlp"]["up"]["kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4
    _, whole, _ = huggingface.load(folder)
    jax.tree.map(np.testing.assert_array_equal, params, whole)


def test_value_head_of_another_model_is_refused(llama):
    tensor_files.save(llama / "value_head.safetensors", {"up.kernel": np.zeros((3, 2), np.float32)})
    with pytest.raises(DataError, match="value head"):
        huggingface.load(llama)
