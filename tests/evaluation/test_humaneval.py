"""Programs of models: the reference solutions pass, and what misbehaves is locked up."""

import gzip
import json
import socket

import pytest

from data import files
from evaluation import humaneval
from evaluation.tasks import TaskOptions
from train.errors import ConfigError


@pytest.fixture(scope="module", autouse=True)
def programs_can_be_locked_up():
    try:
        humaneval.run("pass")
    except ConfigError as error:
        pytest.skip(f"needs a system that lets a process give up its network: {error}")


def test_solutions_pass_and_wrong_ones_fail(data_file):
    path = data_file(humaneval.FILE)
    questions = humaneval.load(TaskOptions(allow_code=True))
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert len(questions) == 164 and files.find(humaneval.FILE) == path
    for number in (0, 53):
        right = rows[number]["canonical_solution"]
        assert humaneval.score(questions[number], right)["accuracy"] == 1.0
        assert humaneval.score(questions[number], right + "\n\nprint(undefined)")["accuracy"] == 1.0
        assert humaneval.score(questions[number], "    return 0\n")["accuracy"] == 0.0
    with pytest.raises(ConfigError, match="--allow-code"):
        humaneval.load(TaskOptions())


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("x = 1", "passed"),
        ("raise SystemExit(0)", "failed"),
        ("import os; os._exit(0)", "failed"),
        ("assert False", "failed"),
        ("not python", "failed"),
        ("while True: pass", "too slow"),
        ("x = bytearray(2**31)", "failed"),
        ("import os; os.fork()", "failed"),
        ("import subprocess; subprocess.run(['true'], check=True)", "failed"),
        ("open('big', 'wb').write(bytes(2 * 10**6))", "failed"),
    ],
)
def test_what_a_program_may_do(program, verdict):
    assert humaneval.run(program, seconds=1) == verdict


def test_a_program_has_no_network():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = listening.getsockname()
        socket.create_connection(place, 5).close()
        program = f"import socket; socket.create_connection({place}, 5)"
        assert humaneval.run(program) == "failed"
    assert humaneval.run("import socket; socket.socket()") == "passed"
