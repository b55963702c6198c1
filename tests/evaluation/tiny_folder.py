"""A random Llama with a tokenizer of its own, as a folder that we and `transformers` read."""

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data import folder_tokenizer
from models import huggingface, tensor_files
from models.language_model import LanguageModel
from models.transformer import TransformerConfig

TEXT = (
    "The following are multiple choice questions (with answers) about anatomy.\n\nA. B. C. D. "
    "Answer: Question: how many words of the text are there, and what is the right answer? Q: "
)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make(folder, *, vocab_size=320, begins=True, longest_tokens=512, template=None, scale=3.0,
         **fields):  # fmt: skip
    """Writes the folder; `begins`: every text begins with <s>. scale: of the random parameters."""
    config = {
        "vocab_size": vocab_size, "width": 16, "num_layers": 2, "num_heads": 2, "head_dim": 8,
        "scale_embeddings": False, "tie_embeddings": False,
    }  # fmt: skip
    model = LanguageModel(TransformerConfig(**(config | fields)))
    params = jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, model.init(jax.random.key(0)))
    huggingface.save(folder, model, params, longest_text_tokens=longest_tokens)
    pieces = tokenizers.Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator([TEXT] * 9, trainer)
    if begins:
        pieces.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    pieces.save(str(folder / folder_tokenizer.PIECES))
    settings = {
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>",
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest_tokens,
    }  # fmt: skip
    if template is not None:
        settings["chat_template"] = template
    tensor_files.write_json(folder / folder_tokenizer.SETTINGS, settings)
    return folder
