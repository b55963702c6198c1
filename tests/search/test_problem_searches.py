"""GSM8K and MATH-500 searched end to end, on real problems, by an untrained model of bytes."""

import pytest

from configs import load
from data import gsm8k, math500, problems, prompts, records
from data.errors import DataError
from search import __main__ as command

# One short line is a move; the model writes nonsense, and that is as good as any other text here.
SHORT = [
    "--limit", "2", "--batch-size", "2", "--max-moves", "2", "--search.num-simulations", "2",
    "--search.action.num-candidates", "3", "--search.action.opening-tokens", "1",
    "--search.action.max-step-tokens", "4", "--search.action.max-completion-tokens", "8",
]  # fmt: skip


@pytest.fixture
def search(tmp_path, save_model):
    """`search(config, *overrides)` -> records, by a model whose tokenizer is `name`."""

    def run(config, *overrides, name="bytes"):
        folder = tmp_path / "run"
        arguments = [config, *SHORT, *overrides, "--checkpoint", save_model(name)]
        command.main([str(word) for word in [*arguments, "--run-folder", folder]])
        return list(records.read_folder(folder))

    return run


@pytest.mark.parametrize("kind", ["step", pytest.param("forced_run", marks=pytest.mark.soak)])
def test_gsm8k_is_searched_with_the_oracle_and_without(search, data_file, kind):
    data_file(gsm8k.FILES["test"])
    overrides = ["--search.action.kind", kind]
    if kind == "step":
        overrides += ["--search.use-oracle", "--search.no-use-value"]
    games = search("gsm8k_search", *overrides)
    assert [game.problem_id for game in games] == ["gsm8k/test/0", "gsm8k/test/1"]
    assert games[0].prompt.endswith("farmers' market?\n")
    assert all(len(game.completion_tokens) <= 8 and game.positions for game in games)
    assert {game.outcome for game in games} == ({0.0} if kind == "step" else {None})


@pytest.mark.slow
def test_math500_is_searched_with_its_own_checker(search, data_file):
    data_file(math500.FILE)
    games = search("math_search", "--search.use-oracle", "--search.no-use-value")
    assert games[0].problem_id == "math500/test/precalculus/807.json"
    assert [game.outcome for game in games] == [0.0, 0.0]


@pytest.mark.soak
def test_prompts_may_be_examples(search, data_file):
    data_file(gsm8k.FILES["test"])
    few_shot = ["--problem-set", "gsm8k_few_shot", "--search.action.empty-line-ends"]
    games = search("gsm8k_search", *few_shot, "--limit", "1", "--batch-size", "1")
    assert games[0].prompt == problems.load_problems("gsm8k_few_shot", "test")[0].prompt.text


def test_forms_check_as_the_plain_problems_do(data_file):
    data_file(gsm8k.FILES["test"])
    plain, shown, asked = (
        problems.load_problems(name, "test")[0]
        for name in ("gsm8k", "gsm8k_few_shot", "gsm8k_chat")
    )
    assert prompts.few_shot(plain).prompt == shown.prompt
    assert prompts.chat(plain).prompt == asked.prompt
    assert asked.prompt.text.startswith("<|im_start|>system\nSolve")
    for problem in (plain, shown, asked):
        assert problem.verify("18 eggs\n#### 18") and not problem.verify("#### 17")
    assert shown.verify("#### 18\n\nQuestion: Why?\nAnswer: #### 3")


def test_a_tokenizer_that_cannot_read_the_problems_is_refused(search, data_file):
    data_file(gsm8k.FILES["test"])
    unreadable = next(n for n, row in enumerate(gsm8k.split("test")) if not row.question.isascii())
    with pytest.raises(DataError, match=r"'grade_school' cannot read .* tokenizer bytes"):
        search("gsm8k_search", "--first", str(unreadable), name="grade_school")
    with pytest.raises(DataError, match=r"'game24' cannot read .* checkpoint that was trained on"):
        search("gsm8k_search", name="game24")


@pytest.mark.parametrize("name", ["gsm8k_search", "math_search", "grade_school_search"])
def test_an_answer_is_searched_without_oracle_and_noise(name):
    search = load.find(name).search
    assert not search.use_oracle and not search.root_noise
