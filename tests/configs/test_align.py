"""`make align` from end to end, with so little training that answers have the form at most."""

import json

import pytest

from configs import align, rpo_against_dpo, weak_to_strong
from configs.commands import COMMANDS
from data import attributes, json_rows, preferences
from evaluation import alignment, report
from models.transformer import TransformerConfig
from train import pipeline
from train.stopping import StopFlag


@pytest.mark.soak
def test_every_stage_feeds_the_next(tmp_path):
    small = align.pipeline(
        shape=TransformerConfig(
            vocab_size=240, width=32, num_layers=1, num_heads=2, head_dim=16, value_head_width=8
        ),
        num_dialogues=1_500,
        num_requests=16,
        base_steps=100,
        reward_steps=10,
        steer_steps=20,
        preference_steps=4,
        measured=24,
    )
    pipeline.run(small, tmp_path / "run", commands=COMMANDS, stop=StopFlag())
    stages = {path.name[3:]: path for path in (tmp_path / "run" / "stages").iterdir()}
    rows = attributes.read(str(stages["annotate"] / "rows.jsonl"))
    assert len(rows) == 1_500 and set(rows[0].attributes) == set(attributes.FIVE)
    answers = json_rows.read(str(stages["answers"] / "responses.jsonl"))
    assert len(answers) == 16 * 6 and {row.fields["requested"] for row in answers} == {None}
    pairs = preferences.read(str(stages["judge"] / "preferences.jsonl"))
    assert all(pair.reward_gap > 0 for pair in pairs)
    found = report.read(stages["evaluation"] / "report" / "report.json")
    metrics = {row.metric for row in found.rows}
    assert metrics >= {
        alignment.PEARSON, alignment.SPEARMAN, alignment.CROSS_TALK, alignment.REWARD, alignment.KL,
        alignment.RECOVERED, alignment.EQUAL_KL,
    }  # fmt: skip
    curves = [row.settings["curve"] for row in found.rows if "curve" in row.settings]
    assert [[step for step, *_ in curve] for curve in curves] == 3 * [[0, 1, 2, 3, 4]]
    assert json.loads((stages["judge"] / "summary.json").read_text())["pairs"] == len(pairs)


def test_rounds_and_seeds_are_whole_pipelines():
    rounds = weak_to_strong.get_config()
    assert [stage.name for stage in rounds.stages if "rpo_c" in stage.name] == [
        "rpo_c_1", "rpo_c_2", "rpo_c_3",
    ]  # fmt: skip
    assert len(rpo_against_dpo.get_config().stages) == 2 + 3 * rpo_against_dpo.NUM_SEEDS + 1
