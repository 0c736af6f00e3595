"""`durable-swarm worker`: what it says where it cannot work, and its health."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from durable_swarm import DurableSwarm
from durable_swarm.cli.app import main
from durable_swarm.cli.worker import _address, _health
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import wait_until
from tests.support import programs
from tests.support.patience import PATIENCE

APP = """
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel

clerk = Agent(name="Clerk of a worker")
swarm = DurableSwarm(ScriptedModel(["Done."]))
fixed = DurableSwarm(ScriptedModel([]), database="sqlite:///fixed.sqlite")
number = 5
"""

WRONG = {
    "appless": "give MODULE:SWARM",
    "app_of_a_worker:": "give MODULE:SWARM",
    ":swarm": "give MODULE:SWARM",
    "app_of_a_worker.py:swarm": "give its module, as in app_of_a_worker:swarm",
    "./shop/app.py:swarm": "give its module, as in shop.app:swarm",
    "no_such_app:swarm": "no module 'no_such_app'",
    "app_of_a_worker.sub:swarm": "no module 'app_of_a_worker.sub'",
    "broken_app_of_a_worker:swarm": "cannot be imported: RuntimeError: no key for the mail server. --debug shows where",
    "app_of_a_worker:number": "it has swarm, fixed",
    "app_of_a_worker:gone": "it has swarm, fixed",
    "app_of_a_worker:fixed": "names its database itself",
}


@pytest.mark.parametrize("target", WRONG)
def test_what_is_no_swarm(target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A target that is no swarm is told in one line, with what to do."""
    Path("app_of_a_worker.py").write_text(APP, encoding="utf-8")
    Path("broken_app_of_a_worker.py").write_text("raise RuntimeError('no key for the mail server')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "app_of_a_worker", raising=False)
    assert main(["worker", target, "--database", "sqlite:///other.sqlite"]) == 2
    assert WRONG[target] in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["5", "a/b", "0/5", "5/0"])
def test_a_wrong_rate(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A rate that is none is refused before anything is imported."""
    assert main(["worker", "no_such_app:swarm", "--rate", rate]) == 2
    assert "rate" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http", ":80", "0.0.0.0:", "1.2.3.4:0", "65536", "-1", "[::1]", "²"])
def test_a_wrong_address(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address for /healthz that is none is refused before anything is imported."""
    assert main(["worker", "no_such_app:swarm", f"--healthz={address}"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "answers", "refuses"),
    [("{}", "127.0.0.1", "127.0.0.2"), ("127.0.0.2:{}", "127.0.0.2", "127.0.0.1"), ("[::1]:{}", "::1", "127.0.0.1")],
)
def test_health_is_for_the_address_given(given: str, answers: str, refuses: str) -> None:
    """/healthz listens on loopback, or on the address that is given, and on no other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with _health(_address(given.format(port))):
        socket.create_connection((answers, port), timeout=5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((refuses, port), timeout=5)


@pytest.mark.slow
def test_health() -> None:
    """A worker answers /healthz, and 404 to all else; a second worker is refused the port; both kinds of end are 0."""
    Path("app.py").write_text(APP, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "durable_swarm", "worker", "app:swarm", "--healthz", port]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with programs.Program(command, env=environment, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert "its agents: Clerk" in worker.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert json.load(answer)["works"] is True
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/")
        error.value.close()
        assert error.value.code == 404
        second = programs.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (second.returncode, "cannot be used for /healthz" in second.stderr) == (2, True)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(PATIENCE) == 0


SLOW = """
import time
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel

def work() -> str:
    open("begun", "w").close()
    time.sleep(60)
    return "worked"

clerk = Agent(name="Slow Clerk", functions=[work])
swarm = DurableSwarm(ScriptedModel([["work"]]))
"""


@pytest.mark.slow
def test_the_grace_bounds_the_end() -> None:
    """A worker whose tool takes too long ends soon after its grace, though no thread can be stopped; it logs times."""
    Path("slow_app.py").write_text(SLOW, encoding="utf-8")
    with DurableSwarm(ScriptedModel([])) as swarm:
        swarm.enqueue("Slow Clerk", [{"role": "user", "content": "Go."}], run_id="r")
    command = [sys.executable, "-m", "durable_swarm", "worker", "slow_app:swarm", "--grace", "0.5"]
    limits = ["--concurrency", "3", "--queue-concurrency", "5", "--rate", "7/60"]
    with programs.Program([*command, *limits], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        try:
            wait_until(Path("begun").exists)
            worker.send_signal(signal.SIGTERM)
            out, err = worker.communicate(timeout=PATIENCE)
        finally:
            worker.kill()
    assert worker.returncode == 0
    assert "3 runs at once, 5 in all workers, of which all begin 7 in 60 s" in out
    assert re.search(r"^\d{4}-\d\d-\d\d \S+ WARNING r took longer than 0\.5 s", err, re.MULTILINE)


def test_a_worker_without_agents() -> None:
    """A program that defines no agent is refused: it could execute nothing."""
    Path("empty_app.py").write_text("from durable_swarm import DurableSwarm\nswarm = DurableSwarm()\n")
    command = [sys.executable, "-m", "durable_swarm", "worker", "empty_app:swarm"]
    ended = programs.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert ended.returncode == 2
    assert ended.stderr == ("Error: empty_app:swarm defines no agent to execute; import its agents in its module.\n")
