"""An interrupt ends a command wherever it comes, with what is done kept."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from test_command_line import environment

HEARD = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background a shell's jobs ignore it


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupt_keeps_what_is_done_and_exits_with_130(tmp_path: Path, jobs: int) -> None:
    pytest.importorskip("tilelang")
    command = ["prove", "sinkhorn", "--layer", "L1", "--fresh", "--jobs", str(jobs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [sys.executable, "-m", "lemmata", *command]
    with subprocess.Popen(started, env=environment(tmp_path), preexec_fn=HEARD, **pipes) as process:
        assert process.stdout
        first = [process.stdout.readline() for _ in range(2)]  # off a terminal too each line comes as its layer ends
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)  # which also waits for the children, who hold the same pipes
    assert first[1].startswith("[ 1/18] L1      proved")
    assert process.returncode == 130
    assert errors == "lemmata prove: interrupted; the verdicts that are printed are kept\n"


HOLDING = """
import multiprocessing, signal, sys, types
sys.argv = ["lemmata"]
from lemmata import interrupts

def held():
    multiprocessing.get_context("spawn").Queue()  # its semaphores are tracked
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

{planted}
with interrupts.ending("ended"):
    print(held())
"""


@pytest.mark.parametrize(
    ("planted", "held"),
    [("", "True"), ("interrupts.resource_tracker = types.SimpleNamespace(ensure_running=bool)", "False")],
)
def test_interrupts_are_held_back_where_processes_start(tmp_path: Path, planted: str, held: str) -> None:
    """Else the one who waits for them does not hear them, and a command waits for its processes before it ends."""
    command = [sys.executable, "-c", HOLDING.format(planted=planted)]
    done = subprocess.run(
        command, env=environment(tmp_path), preexec_fn=HEARD, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == (f"{held}\n", 0), done.stderr


LOSING = """
import os, signal, sys, time
sys.argv = ["lemmata"]  # as a command, which starts no thread before
from lemmata.cli import _failing

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def swallowed():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt:
        raise RuntimeError("a callback's")

def finaliser():
    Last()

with _failing("bench", RuntimeError, kept="; kept"):
    {where}()
    time.sleep(60)
"""


@pytest.mark.parametrize("where", ["swallowed", "finaliser"])
def test_an_interrupt_is_heard_where_an_exception_would_be_lost(tmp_path: Path, where: str) -> None:
    command = [sys.executable, "-c", LOSING.format(where=where)]
    with subprocess.Popen(
        command, env=environment(tmp_path), preexec_fn=HEARD, stderr=subprocess.PIPE, text=True
    ) as done:
        _, errors = done.communicate(timeout=60)
    assert (done.returncode, errors) == (130, "lemmata bench: interrupted; kept\n")
