"""docs/records.md: its example runs without our code, and it names every field."""

import dataclasses
import re
import subprocess
import sys

from data import records
from tests.data import synthetic_records


def test_the_example_reads_records_without_our_code(repository_root, tmp_path):
    text = (repository_root / "docs" / "records.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert not re.search(r"^(import|from) (data|search|models|train)", code, re.MULTILINE)
    games = [synthetic_records.random_record(seed) for seed in range(3)]
    records.write_shard(tmp_path / "records" / "a.arrayrecord", games)
    done = subprocess.run(
        [sys.executable, "-c", f"folder = {str(tmp_path / 'records')!r}\n{code}"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == sum(1 + 2 * len(game.positions) for game in games)
    last = games[0].completion.split("\n")[-1]
    assert lines[0] == f"{games[0].prompt.strip()} -> {last} {games[0].outcome}"
    assert lines[1] == f"  after 0 tokens: value {games[0].positions[0].root_value}"


def test_every_field_is_documented(repository_root):
    text = (repository_root / "docs" / "records.md").read_text()
    for kind in (records.SearchRecord, records.Position, records.Leaf, records.Tree):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in text, (kind, field.name)
