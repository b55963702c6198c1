"""IFEval's verdicts: recorded from the original's code, and how they add up.

Golden: what lm-eval's copy of google-research's `instructions.py` says of `RESPONSES`. Made anew by
`NLTK_DATA=FOLDER python -m tests.evaluation.test_ifeval`, with NLTK's punkt_tab in that folder.
"""

import json
import pathlib

import pytest

from data import files
from evaluation import ifeval, instructions
from evaluation.tasks import Question, TaskOptions

GOLDEN = pathlib.Path(__file__).parent / "golden" / "ifeval.json"
PER_KIND = 4  # arguments of each instruction, as they stand in the data

PROSE = (
    "Dr. Smith went to Washington, D.C. on Jan. 5th. He arrived at 3 p.m. and met Mr. Jones! "
    '"Was it worth it?" he asked... Nobody knows; the U.S. team (e.g. its captain) left early.'
)
RESPONSES = (
    "", " ", "My answer is yes.", "My answer is maybe. ", "no commas here at all", PROSE,
    PROSE.upper(), PROSE.lower(), "HELLO WORLD THIS IS A LOUD SENTENCE WITH MANY WORDS IN IT.",
    "# Title\n<<poem of joy>>\n\nSECTION 1\nfirst text [name] [address]\nSECTION 2\nsecond [date]\n"
    "SECTION 3 third\n\nP.S. do not forget the *milk* and the **bread**",
    "Section 1\none\nSection 2\ntwo\nPARAGRAPH 1 a\nPARAGRAPH 2 b\nDay 1 x\nDay 2 y",
    "* one\n* two\n* three", "- one\n- two\n - three\n* four\n** not one",
    "*so* and *so* and **bold** and ** ** and * * end", "***\nfirst\n***\nsecond\n***\nthird\n***",
    "first\n***\n\n***\nthird", "one***two", "one ****** two", "one ****** one",
    "****** a ****** b",
    "a ****** ****** b", '{"a": [1, 2, {"b": null}]}', '```json\n{"a": 1}\n```', "```JSON\n[1]```",
    "{'a': 1}", '"all of this is quoted"', '"', '"half quoted', "<<>> and << >>", "<<a>> b <<c>>",
    "weekend plans are here\n\npresident of all\n\nthird one\n\nfourth",
    "'Weekend', he said\n\nPresident!\n\nthree\n\nfour\n\nfive\n\nsix", "\n\nfirst\n\nsecond",
    "P.P.S I forgot this.", "p. p. s. small", "P. S. a blank", "P.S. one line\nand one more",
    "Sure, here it is:\n\nAny other questions?", "Is there anything else I can help with?\n",
    "Is there anything else I can help with?\"", "Bonjour, je suis un petit texte en français.",
    "Dies ist ein deutscher Satz, der nicht besonders lang ist. Und noch einer.",
    "ಇದು ಕನ್ನಡ ಭಾಷೆಯ ಒಂದು ಸಣ್ಣ ವಾಕ್ಯ.", "12345 67890",
    "eEeE ##!! mother mom correlated rock story war",
    "story story war War WAR war war war war war", "one. two. three. four. five. six. seven.",
    "A.B. C.D. wrote it. NASA and the FBI met CIA-NSA at IBM's HQ. It's OK. I DID IT.",
    "word " * 320, "Hello there. " * 12, "Line one\nLine two\nLine three, with *stars*",
    "Of course! Here you go:\nMy answer is no.\nHope that helps!",
)  # fmt: skip


def cases():
    """Instruction -> some of its arguments in the data, and those the data does not have."""
    found = {}
    rows = files.read_json_lines(ifeval.FILE, fields=("instruction_id_list", "kwargs"))
    for row in rows:
        for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            some = found.setdefault(name, [])
            arguments = {key: value for key, value in arguments.items() if value}
            if len(some) < PER_KIND and arguments not in some and is_fixed(name, arguments):
                some.append(arguments)
    return dict(sorted(found.items()))


def is_fixed(name, arguments):
    """A letter outside a-z is replaced by a random one in the original."""
    return name != "keywords:letter_frequency" or arguments["letter"].lower().isalpha()


def test_verdicts_are_those_of_the_original():
    pytest.importorskip("langdetect", reason="needs the extra eval: pip install -e '.[eval]'")
    pytest.importorskip("nltk", reason="needs the extra eval: pip install -e '.[eval]'")
    golden = json.loads(GOLDEN.read_text())
    assert {case["instruction"] for case in golden} == set(instructions.CHECKS)
    num_followed = 0
    for case in golden:
        name, arguments = case["instruction"], case["arguments"]
        for way, follows in ifeval.WAYS.items():
            got = "".join(str(int(follows(text, name, arguments))) for text in RESPONSES)
            differing = [
                RESPONSES[n] for n, (one, other) in enumerate(zip(got, case[way])) if one != other
            ]
            assert not differing, (name, arguments, way)
            num_followed += case[way].count("1")
        assert case["loose"].count("1") >= case["strict"].count("1")
    assert 300 < num_followed < 2 * len(golden) * len(RESPONSES) - 300


def test_letters_outside_the_alphabet_are_counted_as_they_are():
    check = instructions.CHECKS["keywords:letter_frequency"]
    assert check("#a#", letter="#", let_frequency=2, let_relation="at least")
    assert not check("#a!", letter="#", let_frequency=2, let_relation="at least")
    with pytest.raises(ValueError, match="at most"):
        check("#a!", letter="#", let_frequency=2, let_relation="at most")


def test_a_prompt_is_followed_when_all_of_its_instructions_are():
    gold = [
        ("punctuation:no_comma", {}),
        ("startend:quotation", {}),
        ("detectable_format:title", {}),
    ]
    question = Question(id="x", prompt="", gold=gold)
    assert ifeval.score(question, 'Sure:\n"<<a title>>"') == {
        "strict prompt accuracy": 0.0,
        "strict instruction accuracy": (2.0, 3.0),
        "loose prompt accuracy": 1.0,
        "loose instruction accuracy": (3.0, 3.0),
    }


def test_every_instruction_of_the_data_has_a_check_that_takes_its_arguments(data_file):
    data_file(ifeval.FILE)
    pytest.importorskip("langdetect", reason="needs the extra eval: pip install -e '.[eval]'")
    questions = ifeval.load(TaskOptions())
    assert len(questions) == 541
    assert sum(len(question.gold) for question in questions) == 834
    for question in questions:
        assert set(ifeval.score(question, "a, b").values()) <= {
            0.0, 1.0, *((float(a), float(b)) for b in range(1, 4) for a in range(4))
        }  # fmt: skip


def main():
    import langdetect
    import nltk
    from lm_eval.tasks.ifeval import instructions_registry, instructions_util, utils

    langdetect.DetectorFactory.seed = 0
    english = nltk.tokenize.PunktTokenizer("english")
    instructions_util._get_sentence_tokenizer = lambda: english
    golden = []
    for name, some in cases().items():
        assert name in instructions_registry.INSTRUCTION_DICT
        for arguments in some:
            asked = utils.InputExample(0, [name], "", [arguments])
            case = {"instruction": name, "arguments": arguments}
            for way in ifeval.WAYS:
                follow = getattr(utils, f"test_instruction_following_{way}")
                case[way] = "".join(
                    str(int(follow(asked, text).follow_all_instructions)) for text in RESPONSES
                )
            golden.append(case)
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = [json.dumps(case, ensure_ascii=False) for case in golden]
    GOLDEN.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
