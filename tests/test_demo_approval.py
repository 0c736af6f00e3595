"""The approval demo as its user sees it: killed while it waits, approved from elsewhere, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import programs


def started(*words: str) -> subprocess.Popen[str]:
    """Start a command of the package."""
    return programs.Program(
        [sys.executable, "-m", "durable_swarm", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def said(*words: str, code: int = 0) -> str:
    """Run a command to its end, and give what it says."""
    process = started(*words)
    text = process.communicate(timeout=200)[0]
    assert process.returncode == code, text
    return text


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Read the lines of a process up to one that holds these words."""
    assert process.stdout is not None
    lines, end = "", time.monotonic() + 60
    while words not in lines and time.monotonic() < end:
        line = process.stdout.readline()
        assert line or process.poll() is None, lines
        lines += line
    return lines


def waiting() -> tuple[subprocess.Popen[str], str]:
    """Start the demo and wait until it asks; gives it and the id of its request."""
    process = started("demo", "approval", "--name", "Zoë")
    lines = read_until(process, "Kill it meanwhile")
    assert "Refunding 50 to Zoë ... done" in lines
    return process, next(line.split()[-1] for line in lines.splitlines() if " approve " in line)


@pytest.mark.slow
def test_approved_while_nothing_runs(tmp_path: Path) -> None:
    """Killed while it waits and approved from elsewhere, the demo goes on when started; the first refund stays."""
    process, request = waiting()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert f"{request}  approval, open" in said("inbox")
    assert "is approved by ann" in said("approve", request, "--by", "ann")
    assert said("inbox").strip() == "No open requests."
    text = said("demo", "approval")
    assert "continues; what is done is not done again" in text
    assert (text.count("Refunding 50"), text.count("Refunding 250 to Zoë ... done")) == (0, 1)
    run_id = request.partition("/")[0]
    assert "approved by ann" in said("show", run_id)


@pytest.mark.slow
def test_rejected_while_it_waits(tmp_path: Path) -> None:
    """Rejected from another process while it lives, the demo goes on at once and tells the agent the reason."""
    process, request = waiting()
    assert "is rejected" in said("reject", request, "--reason", "too much")
    text = process.communicate(timeout=200)[0]
    assert "Error: this call was rejected: too much" in text
    assert "Refunding 250" not in text
    assert "was answered already" in said("approve", request, code=1)
