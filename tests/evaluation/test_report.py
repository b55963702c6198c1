import csv
import dataclasses
import io
import itertools
import json

import pytest
from matplotlib.axes import Axes

from evaluation import collect, plots, report
from train.errors import ConfigError, DataError

DESIGN_FIELDS = [
    "task", "split", "stage", "method", "metric", "score", "low", "high", "n", "simulations",
    "use_oracle", "use_value", "forward_passes_per_problem", "seconds_per_problem", "settings",
]  # fmt: skip


def make_row(**changes) -> report.Row:
    fields = {
        "task": "game24", "split": "test", "stage": "", "method": "search", "metric": "accuracy",
        "score": 0.5, "low": 0.3, "high": 0.7, "n": 10, "simulations": 50, "use_oracle": False,
        "use_value": True, "forward_passes_per_problem": 1234.5, "seconds_per_problem": 0.25,
        "settings": {"limit": None},
    }  # fmt: skip
    return report.Row(**fields | changes)


ROWS = (
    make_row(method="greedy", simulations=None, use_value=False, forward_passes_per_problem=30.0),
    make_row(simulations=16, score=0.4, seconds_per_problem=None),
    make_row(),
    make_row(simulations=(64, 8)),
    make_row(use_oracle=True, use_value=False, split="train"),
    make_row(method="search, base model", use_oracle=True),
)


def make_comparison(**changes) -> report.Comparison:
    fields = {
        "task": "game24", "split": "test", "stage": "", "first": "search, 50 simulations",
        "second": "greedy", "n": 10, "only_first": (4,), "only_second": (1,), "p_values": (0.375,),
    }  # fmt: skip
    return report.Comparison(**fields | changes)


def make_report(*rows: report.Row, comparisons=()) -> report.Report:
    return report.Report(
        command="python -m evaluation x", commit="abc", hardware="a", rows=rows,
        comparisons=comparisons,
    )  # fmt: skip


def test_report_json_has_the_fields_of_the_design_and_comes_back(tmp_path):
    made = make_report(*ROWS, comparisons=(make_comparison(),))
    path = report.write(tmp_path, made)
    raw = json.loads(path.read_text())
    assert list(raw) == ["command", "commit", "hardware", "rows", "comparisons", "schema_version"]
    assert raw["schema_version"] == 1
    assert all(list(row) == DESIGN_FIELDS for row in raw["rows"])
    assert report.read(path) == made
    del raw["comparisons"]  # an older report
    path.write_text(json.dumps(raw))
    assert report.read(path) == make_report(*ROWS)
    names = ["accuracy.png", "report.json", "table.csv", "table.md"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "changes",
    [{"n": 1.5}, {"score": "1"}, {"use_oracle": 1}, {"simulations": "50"}, {"low": 0.6},
     {"high": 1.2}, {"settings": None}],
)  # fmt: skip
def test_a_row_of_the_wrong_form_is_refused(changes):
    with pytest.raises(DataError, match="Correct the row"):
        make_row(**changes)


@pytest.mark.parametrize(
    "change",
    [lambda raw: raw.update(schema_version=2), lambda raw: raw["rows"][0].pop("low"),
     lambda raw: raw["rows"][0].update(colour="red"), lambda raw: raw.pop("commit")],
)  # fmt: skip
def test_a_file_of_another_schema_is_refused(tmp_path, change):
    path = report.write(tmp_path, make_report(*ROWS))
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"report\.json"):
        report.read(path)


def test_markdown_has_a_line_per_row_and_the_origin():
    lines = report.to_markdown(make_report(*ROWS)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(ROWS)
    assert len({line.count("|") for line in table}) == 1
    assert table[4] == (
        "| search | test | 50 |  | yes | 50.0% | 30–70 | 10 | 1,234 | 0.250 |"
    )  # fmt: skip
    assert "`python -m evaluation x`, commit abc, a." in lines


def test_markdown_shows_paired_tests():
    assert "McNemar" not in report.to_markdown(make_report(*ROWS))
    several = make_comparison(only_first=(4, 9), only_second=(1, 0), p_values=(0.375, 0.00391))
    clear = make_comparison(only_first=(30,), only_second=(0,), p_values=(2e-9,))
    text = report.to_markdown(make_report(*ROWS, comparisons=(several, clear)))
    assert "| search, 50 simulations | greedy | test | 4, 9 | 1, 0 | 10 | 0.375, 0.004 |" in text
    assert "| 30 | 0 | 10 | < 0.001 |" in text


def test_markdown_shows_task_and_stage_only_where_they_differ():
    assert "stage" not in report.to_markdown(make_report(*ROWS))
    two = make_report(make_row(stage="round 1"), make_row(stage="round 2"))
    assert "| round 2 | search |" in report.to_markdown(two)


def test_the_number_of_texts_is_shown_where_it_tells_rows_apart():
    few, many = (
        make_row(method="beam", simulations=None, settings={"num_samples": n}) for n in (3.25, 41.6)
    )
    other = make_row(method="best-of-n", simulations=None, settings={"num_samples": 58.1})
    assert "texts" not in report.to_markdown(make_report(*ROWS, few, other))
    lines = report.to_markdown(make_report(*ROWS, few, many, other)).splitlines()
    assert lines[0].startswith("| method | split | simulations | texts | oracle |")
    found = [line.split(" | ")[3] for line in lines if line.startswith("| be")]
    assert found == ["3.2", "42", "58"]
    assert "Texts: samples, or what a beam keeps, on average." in "".join(lines)
    searched = [line for line in lines if line.startswith("| search ")]
    assert all(line.split(" | ")[3] == "" for line in searched)


def test_methods_of_several_costs_are_lines(tmp_path, monkeypatch):
    """One line per method and one name, dotted where the checker chooses."""
    drawn, names = [], []
    errorbar, annotate = Axes.errorbar, Axes.annotate
    monkeypatch.setattr(
        Axes, "errorbar",
        lambda self, x, y, *a, **k: drawn.append((x, y, k)) or errorbar(self, x, y, *a, **k),
    )  # fmt: skip
    monkeypatch.setattr(
        Axes, "annotate",
        lambda self, text, *a, **k: names.append((text, k)) or annotate(self, text, *a, **k),
    )  # fmt: skip
    searches = [
        make_row(simulations=n, forward_passes_per_problem=20.0 * n, score=0.3 + n / 1000)
        for n in (400, 50)
    ]
    sampled = [
        make_row(
            method=method, simulations=None, use_oracle=method == "pass@n", use_value=False,
            forward_passes_per_problem=cost,
        )
        for method in ("majority", "pass@n") for cost in (8000.0, 1000.0)
    ]  # fmt: skip
    plots.accuracy([*ROWS[:1], *searches, *sampled], tmp_path / "plot.png")
    lines = {(tuple(x), k["linestyle"]) for x, _, k in drawn if "linestyle" in k}
    assert lines == {
        ((30.0,), "solid"), ((1000.0, 8000.0), "solid"), ((1000.0, 8000.0), "dotted"),
    }  # fmt: skip
    assert sorted(text for text, _ in names) == ["greedy", "majority", "pass@n", "search"]
    places = sorted(k["xytext"] for text, k in names if text != "greedy")
    assert len({x for x, _ in places}) == 1
    gaps = [b - a for (_, a), (_, b) in itertools.pairwise(places)]
    assert min(gaps) >= plots.LABEL_HEIGHT - 1e-9


def test_csv_holds_every_field():
    lines = list(csv.DictReader(io.StringIO(report.to_csv(make_report(*ROWS)))))
    assert len(lines) == len(ROWS)
    assert list(lines[0]) == DESIGN_FIELDS
    assert lines[3]["simulations"] == "64, 8"
    assert json.loads(lines[0]["settings"]) == {"limit": None}


def test_labels_of_a_plot_keep_their_distance():
    heights = [1.0, 0.99, 0.98, 0.5, 0.03, 0.02, 0.0]
    placed = plots.spread(heights, gap=0.05)
    assert placed[3] == 0.5
    ordered = sorted(placed)
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0 and ordered[-1] <= 1
    assert sorted(range(7), key=lambda i: -placed[i]) == list(range(7))


def write_run(folder, *rows, comparisons=()):
    """A run folder with report.json alone: no table, no plot."""
    found = make_report(*rows, comparisons=comparisons)
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "report.json").write_text(json.dumps(dataclasses.asdict(found)))
    return folder


def test_collect_averages_rows_of_equal_runs(tmp_path):
    scores = (0.4, 0.5, 0.6)
    runs = [write_run(tmp_path / str(s), make_row(score=s), ROWS[0]) for s in scores]
    combined = collect.collect(runs)
    first, second = combined.rows
    assert first.score == pytest.approx(0.5)
    assert first.settings["scores"] == list(scores)
    assert first.low < 0.3 and first.high > 0.7  # Student's interval of these three is wider
    assert first.seconds_per_problem == pytest.approx(0.25)
    assert dataclasses.replace(second, settings={}, low=0, high=1) == dataclasses.replace(
        ROWS[0], settings={}, low=0, high=1
    )


def test_collect_joins_paired_tests_that_all_runs_have(tmp_path):
    runs = []
    for seed, p in enumerate((0.5, 0.25)):
        tests = (make_comparison(only_first=(seed,), p_values=(p,)),)
        tests += (make_comparison(second="best"),) * (1 - seed)
        runs.append(write_run(tmp_path / str(seed), *ROWS, comparisons=tests))
    (joined,) = collect.collect(runs).comparisons
    assert (joined.only_first, joined.only_second) == ((0, 1), (1, 1))
    assert joined.p_values == (0.5, 0.25)


def test_collect_averages_runs_of_other_seeds_but_not_of_other_settings(tmp_path):
    def settings(seed, scale):
        return {"seed": seed, "num_samples": 30 + seed, "search": {"value_scale": scale}}

    first = write_run(tmp_path / "a", ROWS[0], make_row(settings=settings(1, 0.1)))
    second = write_run(tmp_path / "b", ROWS[0], make_row(settings=settings(2, 0.1)))
    assert len(collect.collect([first, second]).rows) == 2
    other = write_run(tmp_path / "c", ROWS[0], make_row(settings=settings(2, 0.3)))
    with pytest.raises(DataError, match=r"on test, settings.search.value_scale: 0.1 -> 0.3"):
        collect.collect([first, other])
    plain = write_run(tmp_path / "d", ROWS[0], make_row())
    for field, value in (("simulations", 51), ("use_oracle", True), ("use_value", False)):
        other = write_run(tmp_path / field, ROWS[0], make_row(**{field: value}))
        with pytest.raises(DataError, match=field):
            collect.collect([plain, other])


def test_collect_replaces_another_report_only_when_asked_to(tmp_path):
    runs = [str(write_run(tmp_path / str(s), make_row(score=s))) for s in (0.4, 0.5)]
    out = tmp_path / "out"
    (out / "params").mkdir(parents=True)
    (out / "params" / "weights").write_text("mine")
    for _ in range(2):  # the same report may be written again
        collect.main([*runs, "--out", str(out)])
    before = (out / "report.json").read_bytes()
    with pytest.raises(ConfigError, match=r"rows.0.score: 0.45 -> 0.4.*--overwrite"):
        collect.main([runs[0], "--out", str(out)])
    assert (out / "report.json").read_bytes() == before
    collect.main([runs[0], "--out", str(out), "--overwrite"])
    assert sorted(path.name for path in out.iterdir()) == [
        "accuracy.png", "params", "report.json", "run-0.json", "table.csv", "table.md",
    ]  # fmt: skip
    assert (out / "params" / "weights").read_text() == "mine"


def test_collect_takes_the_last_evaluation_of_a_pipeline(tmp_path):
    write_run(tmp_path / "stages" / "02-before", make_row(score=0.4))
    last = write_run(tmp_path / "stages" / "07-after", make_row())
    assert collect.find_report(tmp_path) == last / "report" / "report.json"


def test_collect_refuses_runs_that_measured_other_things(tmp_path):
    runs = [write_run(tmp_path / "a", make_row()), write_run(tmp_path / "b", make_row(n=11))]
    with pytest.raises(DataError, match="one config"):
        collect.collect(runs)
    with pytest.raises(DataError, match="has none"):
        collect.collect([tmp_path / "c"])
