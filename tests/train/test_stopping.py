import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from train.errors import Preempted
from train.run_folder import REPOSITORY_ROOT
from train.stopping import STOP_SIGNALS, StopFlag


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag_and_leaving_restores_the_handler(number):
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == signal.Signals(number).name
        os.kill(os.getpid(), number)  # at once: the same event twice, the process lives on
    assert signal.getsignal(number) is before


def test_the_deadline_counts_from_the_start():
    now = [100.0]
    stop = StopFlag(deadline_seconds=5.0, clock=lambda: now[0])
    now[0] = 104.9
    assert stop.requested is None
    now[0] = 105.0
    assert stop.requested == "deadline of 5 s"


def test_the_first_reason_is_reported():
    stop = StopFlag()
    stop.request("budget")
    stop.request("other")
    with pytest.raises(Preempted, match="stopped by budget at step 3; --resume continues"):
        stop.raise_preempted("step 3")


def test_a_thread_gets_no_handlers_but_the_deadline():
    found = []

    def work():
        with StopFlag(deadline_seconds=0.0) as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["deadline of 0 s"]


def test_a_second_signal_ends_the_process_at_once():
    code = """
import time
from train import stopping
with stopping.StopFlag():
    print("ready", flush=True)
    while True: time.sleep(0.01)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        first = ""
        while "saving, then stopping" not in first:
            first += process.stderr.readline()
        time.sleep(1.5)  # longer than what counts as one event
        assert process.poll() is None, "the first signal ended it"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGINT
    finally:
        process.kill()
