"""A disk that fails under a run: full, broken, taken away, without power."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, step
from durable_swarm.engine.database import connection, outages, urls
from durable_swarm.engine.database.locks import FileLocks
from durable_swarm.engine.records import names
from durable_swarm.testing import ScriptedModel
from faults import power
from faults.disk import sweep
from tests.crash.lives import Lives
from tests.crash.matrix import LONG
from tests.engine.helpers import connected, rows, user, wait_until
from tests.support.patience import PATIENCE

SMALL = 3
"""Megabytes of the small disk."""


# Faults at the calls that write the file


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scenario"), [("kill", "journey"), ("torn", "together_async")][: 2 if LONG else 1])
def test_a_kill_within_a_write_leaves_a_sound_file(
    kind: str, scenario: str, lives: Lives, tmp_path: Path, failing_disk: None
) -> None:
    """Killed at any write to the file, also in the middle of one: the file is sound and the run goes on."""
    figures = sweep(lives, tmp_path, scenario, kind, every=17)
    assert figures.wrong == []
    assert sum(verdict.kills for verdict in figures.verdicts) == len(figures.verdicts) > 10


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scenario"), [("enospc", "journey"), ("eio", "together_async")][: 2 if LONG else 1])
def test_one_failed_write_is_nothing(
    kind: str, scenario: str, lives: Lives, tmp_path: Path, failing_disk: None
) -> None:
    """A single write that fails neither ends a run nor repeats anything; at most a start is refused."""
    figures = sweep(lives, tmp_path, scenario, kind, every=29)
    assert figures.wrong == []
    assert len(figures.verdicts) > 10


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scenario"), [("full", "journey"), ("read-only", "together_async")])
def test_a_disk_that_fails_for_a_while_is_waited_for(
    kind: str, scenario: str, lives: Lives, tmp_path: Path, failing_disk: None
) -> None:
    """While nothing can be written the run waits; soon after the cause is mended it ends, and nothing was repeated."""
    figures = sweep(lives, tmp_path, scenario, kind, every=70, first=20, seconds=2)
    assert figures.wrong == []
    assert figures.waited


# A power cut


@pytest.mark.slow
def test_a_power_cut_loses_nothing_acknowledged(lives: Lives, tmp_path: Path, failing_disk: None) -> None:
    """Whatever a power cut does to what was not synced: the file is sound and has every acknowledged checkpoint."""
    figures = power.cut(lives, tmp_path, "journey", every=7, recover=70)
    assert figures.wrong == []
    assert figures.acknowledged > 100
    assert figures.recovered > 3


def test_a_program_that_does_not_sync_is_found_out(lives: Lives, tmp_path: Path, failing_disk: None) -> None:
    """The same cuts show lost checkpoints as soon as the journal is not synced."""
    assert power.cut(lives, tmp_path, "journey", every=29, unsynced=[("S", "w")]).lost > 0


# In this process


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes; where none can be mounted the test is skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}m", "tmpfs", str(disk)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root on Linux can mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all space there is, and give what to delete for it."""
    made = disk / "filler"
    with made.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return made


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["run", "start"])
def test_a_run_waits_for_space(colour: str, small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a full disk the run waits and says why, with one line of log; with space it goes on, nothing is repeated."""
    made: list[int] = []
    reasons: list[str | None] = []

    @step
    def pay(number: int) -> str:
        made.append(number)
        if number == 1:
            filler = fill(small_disk)
            threading.Thread(target=free, args=(filler,)).start()
        return "paid " * 5000

    def free(filler: Path) -> None:
        time.sleep(2)
        reasons.append(swarm.get("r").waits_for)
        filler.unlink()

    model = ScriptedModel([[("pay", {"number": number})] for number in range(3)] + ["Paid."])
    agent = Agent(functions=[pay])
    with DurableSwarm(model, database=f"sqlite:///{small_disk}/runs.sqlite") as swarm:
        if colour == "run":
            response = swarm.run(agent, user(), run_id="r")
        else:
            response = swarm.start(agent, user(), run_id="r").result(timeout=PATIENCE)
        assert swarm.get("r").waits_for is None
    assert response.messages[-1]["content"] == "Paid."
    assert made == [0, 1, 2]
    assert "is full" in str(reasons[0])
    assert "Free some space" in str(reasons[0])
    told = [record.levelno for record in caplog.records if record.name == "durable_swarm"]
    assert told == [logging.ERROR, logging.WARNING]


@pytest.mark.slow
def test_nothing_starts_on_a_full_disk(small_disk: Path) -> None:
    """A run that cannot be recorded is refused at once, with what to do; with space it can be started."""
    agent = Agent(functions=[])
    with DurableSwarm(ScriptedModel(["Done."]), database=f"sqlite:///{small_disk}/runs.sqlite") as swarm:
        swarm.runs()
        filler = fill(small_disk)
        for start in (swarm.run, swarm.start):
            with pytest.raises(ConfigurationError, match=r"is full\. Free some space"):
                start(agent, user("x" * 300_000), run_id="r")
        filler.unlink()
        assert swarm.run(agent, user("x" * 300_000), run_id="r").messages[-1]["content"] == "Done."


@pytest.mark.slow
def test_a_database_that_is_taken_away_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the file is gone nothing is recorded into nowhere: the run waits, and goes on when the file is back."""
    file, away = tmp_path / "runs.sqlite", tmp_path / "away.sqlite"
    made: list[int] = []

    def look(number: int) -> str:
        made.append(number)
        if number == 1:
            file.rename(away)
            wait_until(lambda: "deleted or replaced" in caplog.text)
            threading.Timer(1, away.rename, [file]).start()
        return "seen"

    model = ScriptedModel([[("look", {"number": number})] for number in range(3)] + ["Done."])
    with DurableSwarm(model, database=f"sqlite:///{file}") as swarm:
        assert swarm.run(Agent(functions=[look]), user(), run_id="r").messages[-1]["content"] == "Done."
    assert made == [0, 1, 2]
    assert rows(f"sqlite:///{file}", "status") == [("SUCCESS",)]
    recorded = [name for (name,) in rows(f"sqlite:///{file}", "function_name", "operation_outputs")]
    assert recorded.count(names.TOOL) == 3


def test_another_file_in_place_of_the_database_is_not_used(tmp_path: Path) -> None:
    """Connections are made to the file that was opened first, never to one that came in its place."""
    url = urls.choose(f"sqlite:///{tmp_path}/runs.sqlite")
    engine = connection.connect(url, create=True)
    engine.dispose()
    (tmp_path / "runs.sqlite").rename(tmp_path / "old.sqlite")
    with connected(f"sqlite:///{tmp_path}/runs.sqlite") as other:
        other.exec_driver_sql("CREATE TABLE t (a)")
    with pytest.raises(Exception, match="deleted or replaced") as refused:
        engine.connect()
    assert outages.passes(refused.value)


def test_locks_survive_the_deletion_of_their_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A lock file that is deleted is made again, with the locks that were held, and the log says so."""
    path = tmp_path / "runs.sqlite.lock"
    ours = FileLocks(str(path))
    assert ours.take("worker")
    path.unlink()
    assert ours.take("worker")
    assert "deleted or replaced" in caplog.text
    known = "import sys; from durable_swarm.engine.database.locks import FileLocks"
    probe = f"{known}; print(FileLocks(sys.argv[1]).take('worker'))"
    other = subprocess.run([sys.executable, "-c", probe, str(path)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "False"
    ours.close()
