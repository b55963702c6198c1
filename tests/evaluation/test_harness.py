"""Our numbers against lm-eval's own backend for transformers, on one random model.

Golden: what that backend said (`python -m tests.evaluation.test_harness` makes it anew).
"""

import json
import pathlib

import numpy as np
import pytest

from evaluation import asking, choices, run, tasks
from evaluation.tasks import TaskOptions
from tests.evaluation import tiny_folder

GOLDEN = pathlib.Path(__file__).parent / "golden" / "harness.json"
SUBJECTS = ("anatomy", "global_facts")
LIMIT = 6
NAMES = [*(f"mmlu_{subject}" for subject in SUBJECTS), "truthfulqa_mc1", "truthfulqa_mc2"]
FIELDS = {"longest_tokens": 1024, "vocab_size": 400}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder.make(tmp_path_factory.mktemp("models") / "llama", **FIELDS)


def harness_module():
    pytest.importorskip("lm_eval", reason="needs the extra eval: pip install -e '.[eval]'")
    from evaluation import harness

    return harness


def our_model(folder, **fields):
    harness = harness_module()
    return harness.HarnessModel(run.load_player(str(folder)), longest_tokens=1024, **fields)


def responses(found):
    """Task -> for each question the log-likelihoods of its choices, or the text."""
    said = {}
    for name, samples in found["samples"].items():
        by_question = {}
        for sample in samples:
            by_question[sample["doc_id"]] = [
                each[0][0] if isinstance(each[0], list | tuple) else each[0]
                for each in sample["resps"]
            ]
        said[name] = [by_question[number] for number in sorted(by_question)]
    return said


def scores(found):
    """Task -> metric -> score, without what is no score."""
    return {
        name: {key: value for key, value in results.items() if "," in key and "stderr" not in key}
        for name, results in found["results"].items()
    }


@pytest.mark.soak
@pytest.mark.parametrize("shots", [None, 5])
def test_tasks_of_lm_eval_get_the_numbers_of_its_own_backend(folder, data_file, shots):
    data_file(choices.MMLU_FILE)
    theirs = their_results(folder, shots)
    harness = harness_module()
    options = harness.Options(tasks=tuple(names(shots)), num_fewshot=shots, limit=LIMIT,
                              max_new_tokens=40)  # fmt: skip
    ours = harness.evaluate(options, our_model(folder))
    for name, metrics in scores(theirs).items():
        for metric, score in metrics.items():
            assert scores(ours)[name][metric] == pytest.approx(score, abs=1e-4), (name, metric)
    wanted, got = responses(theirs), responses(ours)
    for name, per_question in wanted.items():
        for want, have in zip(per_question, got[name], strict=True):
            if isinstance(want[0], str):
                assert want == have
            else:
                np.testing.assert_allclose(have, want, atol=1e-3)


def names(shots):
    return [f"mmlu_{subject}" for subject in SUBJECTS] if shots is None else [*NAMES, "gsm8k"]


def their_results(folder, shots=None, asked=None):
    pytest.importorskip("torch", reason="needs the extra hf: pip install -e '.[hf]'")
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    harness = harness_module()
    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    with harness.local_datasets():
        return lm_eval.simple_evaluate(
            model=model,
            tasks=asked or names(shots),
            num_fewshot=shots,
            limit=LIMIT,
            gen_kwargs={"max_gen_toks": 40},
            bootstrap_iters=0,
        )


def our_own(folder, tmp_path):
    """The same questions as our own tasks ask them."""
    player = run.load_player(str(folder))
    found = {}
    for name, options in (
        ("mmlu", TaskOptions(subjects=SUBJECTS)),
        ("truthfulqa_mc", TaskOptions(limit=LIMIT)),
    ):
        task = tasks.find(name)
        questions = task.questions(options)
        first = [q for q in questions if int(q.id.rpartition("/")[2]) < LIMIT]
        cut = tasks.Task(name=name, kind="choose", load=lambda _, first=first: first,
                         score=task.score)  # fmt: skip
        found[name] = asking.ask(
            cut, options, lambda: player, tmp_path / f"{name}.jsonl",
            longest_tokens=1024, batch_size=4, resume=False, stop=None,
        )  # fmt: skip
    return found


def test_our_own_tasks_get_the_numbers_that_lm_eval_got(folder, data_file, tmp_path):
    data_file(choices.MMLU_FILE)
    golden = json.loads(GOLDEN.read_text())
    found = our_own(folder, tmp_path)
    per_subject = {
        f"mmlu_{subject}": [s for s in found["mmlu"] if s.category == subject]
        for subject in SUBJECTS
    }
    for name, samples in per_subject.items():
        got = [[log_prob for log_prob, _ in sample.response] for sample in samples]
        np.testing.assert_allclose(got, golden["responses"][name], atol=1e-3)
        accuracy = np.mean([sample.scores["accuracy"] for sample in samples])
        assert accuracy == pytest.approx(golden["scores"][name]["acc,none"])
    for kind in ("mc1", "mc2"):
        name = f"truthfulqa_{kind}"
        score = np.mean([s.scores[f"{kind} accuracy"] for s in found["truthfulqa_mc"]])
        assert score == pytest.approx(golden["scores"][name]["acc,none"], abs=1e-4)
        for sample, want in zip(found["truthfulqa_mc"], golden["responses"][name], strict=True):
            got = [log_prob for log_prob, _ in sample.response]
            assert all(min(abs(x - y) for y in got) < 1e-3 for x in want)


def main():
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder = tiny_folder.make(pathlib.Path(place) / "llama", **FIELDS)
        found = their_results(folder, asked=NAMES)
    golden = {"responses": responses(found), "scores": scores(found)}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
