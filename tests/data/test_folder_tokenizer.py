"""Tokenizers of folders against `transformers` and SentencePiece, on the questions of MT-bench."""

import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data import files, folder_tokenizer, tokenizer
from data.errors import DataError

TEMPLATE = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}[INST] {{ message['content'] | trim }} [/INST]{% else %}
 {{ message['content'] }}{{ eos_token }}{% endif %}
{% endfor %}
{% if add_generation_prompt %} {{ messages | length }}:{% endif %}"""
TEXTS = ["the cat and the hat and the bat, 7 times 8", "a naïve café\n\tand more of the hat"] * 9


def write_pairs(folder):
    pairs = tokenizers.Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator(TEXTS, trainer)
    pairs.save(str(folder / folder_tokenizer.PIECES))


@pytest.fixture
def pairs(tmp_path):
    write_pairs(tmp_path)
    settings = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "chat_template": TEMPLATE,
    }
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / folder_tokenizer.SETTINGS).write_text(json.dumps(settings))
    return folder_tokenizer.load(tmp_path)


@pytest.fixture
def sentences(tmp_path):
    (tmp_path / "text").write_text("\n".join(TEXTS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=320,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / folder_tokenizer.SETTINGS).write_text(json.dumps(settings))
    return folder_tokenizer.load(tmp_path)


@pytest.fixture(params=["pairs", "sentences"])
def either(request):
    return request.getfixturevalue(request.param)


def test_a_text_comes_back(either):
    assert isinstance(either, tokenizer.Tokenizer)
    for text in TEXTS[:2]:
        ids = either.encode(text)
        assert either.decode([*ids, either.eos_id]) == text
        assert tokenizer.prompt_ids(either, text)[:1] != [either.eos_id]
    assert either.decode([either.newline_id]) == "\n"
    assert either.eos_id in either.special_ids
    assert tokenizer.load_tokenizer(str(either.folder)).fingerprint == either.fingerprint


def test_texts_of_sentence_pieces_begin_with_their_token(sentences):
    assert tokenizer.prompt_ids(sentences, "hat")[0] == sentences.bos_id == 1
    assert sentences.special_ids == (0, 1, 2)


@pytest.fixture(scope="module")
def questions(data_file):
    data_file("eval/mt_bench/question.jsonl")
    rows = files.read_json_lines("eval/mt_bench/question.jsonl", fields=("turns",))
    return [row["turns"] for row in rows]


def test_ids_and_chats_are_those_of_transformers(pairs, questions):
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[hf]'")
    theirs = transformers.AutoTokenizer.from_pretrained(pairs.folder)
    for turns in questions:
        for turn in turns:
            ids = pairs.encode(turn)
            assert ids == theirs.encode(turn, add_special_tokens=False)
            assert pairs.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == turn
        first, second = ({"role": "user", "content": turn} for turn in turns)
        chat = [first, {"role": "assistant", "content": "So be it."}, second]
        want = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert pairs.chat(chat) == want


def test_ids_of_sentence_pieces_are_those_of_their_library(sentences, questions):
    theirs = sentencepiece.SentencePieceProcessor(
        model_file=str(sentences.folder / folder_tokenizer.SENTENCES)
    )
    for turns in questions:
        for turn in turns:
            ids = sentences.encode(turn)
            assert ids == theirs.encode(turn)
            assert sentences.decode(ids) == turn


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
     "{{ raise_exception('roles must alternate') }}"],
)  # fmt: skip
def test_a_template_stays_in_the_sandbox_and_may_refuse(tmp_path, template):
    write_pairs(tmp_path)
    (tmp_path / folder_tokenizer.SETTINGS).write_text("{}")
    (tmp_path / folder_tokenizer.TEMPLATE).write_text(template)
    with pytest.raises(DataError, match="chat template .* refuses"):
        folder_tokenizer.load(tmp_path).chat([{"role": "user", "content": "hi"}])


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer.json or tokenizer.model"):
        folder_tokenizer.load(tmp_path)
