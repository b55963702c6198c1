"""Files of llama2.c against a plain numpy forward pass over the same arrays."""

import jax
import numpy as np
import pytest

from data.errors import DataError
from models import convert, huggingface, llama2c
from train.errors import ConfigError

WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB, POSITIONS = 24, 40, 2, 4, 2, 19, 16
HEAD_DIM = WIDTH // HEADS


def write(path, *, tied):
    """A random file, and its arrays by the names of llama2.c."""
    rng = np.random.default_rng(0)
    width_kv = KV_HEADS * HEAD_DIM
    shapes = {
        "token_embedding_table": (VOCAB, WIDTH),
        "rms_att_weight": (LAYERS, WIDTH),
        "wq": (LAYERS, WIDTH, WIDTH),
        "wk": (LAYERS, width_kv, WIDTH),
        "wv": (LAYERS, width_kv, WIDTH),
        "wo": (LAYERS, WIDTH, WIDTH),
        "rms_ffn_weight": (LAYERS, WIDTH),
        "w1": (LAYERS, HIDDEN, WIDTH),
        "w2": (LAYERS, WIDTH, HIDDEN),
        "w3": (LAYERS, HIDDEN, WIDTH),
        "rms_final_weight": (WIDTH,),
        "freq_cis": (2, POSITIONS, HEAD_DIM // 2),
    }
    if not tied:
        shapes["wcls"] = (VOCAB, WIDTH)
    arrays = {name: rng.normal(0, 0.5, shape).astype("<f4") for name, shape in shapes.items()}
    header = [WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCAB if tied else -VOCAB, POSITIONS]
    blobs = [np.array(header, "<i4"), *arrays.values()]
    path.write_bytes(b"".join(blob.tobytes() for blob in blobs))
    return {"wcls": arrays["token_embedding_table"], **arrays}


def rms_norm(x, weight):
    return x / np.sqrt(np.mean(x**2) + 1e-5) * weight


def turn(x, position):
    """Pairs of neighbouring channels of every head, as the loop of run.c turns them."""
    x = x.astype(np.float64)
    for i in range(0, x.size, 2):
        angle = position / 10_000 ** ((i % HEAD_DIM) / HEAD_DIM)
        a, b = x[i], x[i + 1]
        x[i] = a * np.cos(angle) - b * np.sin(angle)
        x[i + 1] = a * np.sin(angle) + b * np.cos(angle)
    return x


def plain_logits(arrays, tokens):
    """Token by token, head by head."""
    keys, values, logits = [], [], []
    for position, token in enumerate(tokens):
        x = arrays["token_embedding_table"][token].astype(np.float64)
        keys.append([])
        values.append([])
        for n in range(LAYERS):
            y = rms_norm(x, arrays["rms_att_weight"][n])
            query = turn(arrays["wq"][n] @ y, position).reshape(HEADS, -1)
            keys[-1].append(turn(arrays["wk"][n] @ y, position).reshape(KV_HEADS, -1))
            values[-1].append((arrays["wv"][n] @ y).reshape(KV_HEADS, -1))
            heads = []
            for h in range(HEADS):
                k = h * KV_HEADS // HEADS
                scores = np.array([query[h] @ seen[n][k] for seen in keys]) / np.sqrt(HEAD_DIM)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                heads.append(sum(w * seen[n][k] for w, seen in zip(weights, values, strict=True)))
            x = x + arrays["wo"][n] @ np.concatenate(heads)
            y = rms_norm(x, arrays["rms_ffn_weight"][n])
            gate = arrays["w1"][n] @ y
            x = x + arrays["w2"][n] @ (gate / (1 + np.exp(-gate)) * (arrays["w3"][n] @ y))
        logits.append(arrays["wcls"] @ rms_norm(x, arrays["rms_final_weight"]))
    return np.array(logits)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_a_plain_forward_pass(tmp_path, tied):
    arrays = write(tmp_path / "tiny.bin", tied=tied)
    model, params, tokenizer = llama2c.load(tmp_path / "tiny.bin")
    assert tokenizer is None
    tokens = np.array([3, 18, 0, 7, 7, 2])
    logits = jax.jit(model.forward)(params, tokens[None])[0]
    np.testing.assert_allclose(logits, plain_logits(arrays, tokens), atol=1e-4)


def test_it_becomes_a_folder(tmp_path):
    write(tmp_path / "tiny.bin", tied=True)
    convert.main([str(tmp_path / "tiny.bin"), str(tmp_path / "folder")])
    model, params, _ = llama2c.load(tmp_path / "tiny.bin")
    same, loaded, _ = huggingface.load(tmp_path / "folder")
    assert same.config == model.config
    assert huggingface.longest_text(tmp_path / "folder") == POSITIONS
    jax.tree.map(np.testing.assert_array_equal, loaded["trunk"], params["trunk"])
    with pytest.raises(ConfigError, match="Convert twice"):
        convert.convert(tmp_path / "tiny.bin", tmp_path / "other", attention="taylor")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[:-4], "is truncated, or of another version"),
        (lambda whole: whole[:20], "begins with 7 int32"),
        (lambda whole: b"ak42" + whole, "begins with 7 int32|is truncated, or of another"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    write(tmp_path / "tiny.bin", tied=True)
    whole = (tmp_path / "tiny.bin").read_bytes()
    (tmp_path / "tiny.bin").write_bytes(change(whole))
    with pytest.raises(DataError, match=message):
        llama2c.load(tmp_path / "tiny.bin")
