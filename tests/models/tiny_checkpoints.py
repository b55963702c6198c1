"""`python -m tests.models.tiny_checkpoints`: writes the golden folders with `transformers`.

One randomly initialised model of every family, small enough to be kept; CI compares with what
`transformers` said of them. Made with transformers 5.23.0 and torch 2.13.0.
"""

import json
import pathlib
import shutil

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHARED = {
    "vocab_size": 64,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 32, "head_dim": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
PARTIAL = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
# Name -> (model_type, fields of its config).
FAMILIES = {
    "llama": ("llama", GROUPED | {"rope_parameters": LLAMA3}),
    "llama_biased": (
        "llama",
        GROUPED
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
    "mistral": ("mistral", GROUPED | {"sliding_window": 7}),
    "qwen2": ("qwen2", GROUPED | {"rope_parameters": YARN}),
    "qwen3": ("qwen3", GROUPED | {"tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", {"intermediate_size": 48, "rope_parameters": PARTIAL | {
        "partial_rotary_factor": 0.34}}),
    "gpt_neox_serial": ("gpt_neox", {"intermediate_size": 48, "use_parallel_residual": False,
        "hidden_act": "gelu_new", "rope_parameters": PARTIAL | {"partial_rotary_factor": 1.0}}),
    "nemotron": ("nemotron", GROUPED | {"rope_parameters": PARTIAL}),
}  # fmt: skip


def make(family, folder):
    """Saves a random model of `transformers` in `folder`; returns it."""
    import torch
    import transformers

    model_type, fields = FAMILIES[family]
    config = transformers.AutoConfig.for_model(model_type, **(SHARED | fields))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases, too, say something
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    return model


def main():
    import torch

    for family in FAMILIES:
        folder = GOLDEN / family
        shutil.rmtree(folder, ignore_errors=True)
        model = make(family, folder)
        tokens = torch.randint(0, 64, (1, 30), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            logits = model(tokens).logits[0, ::5]
        rounded = [[round(value, 6) for value in row] for row in logits.tolist()]
        golden = {"tokens": tokens.tolist(), "every": 5, "logits": rounded}
        (folder / "golden.json").write_text(json.dumps(golden) + "\n")
        (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
