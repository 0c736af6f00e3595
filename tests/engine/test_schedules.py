"""Schedules: each occurrence is one run, from however many processes, and what was missed is made up for as asked."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm
from durable_swarm.cli import main
from durable_swarm.engine.records.occurrences import CatchUp, Timing
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import user
from tests.crash.conftest import lives
from tests.crash.lives import Lives, say
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.support.patience import PATIENCE

__all__ = ["lives"]

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def url(fresh_sqlite: Any, tmp_path: Path) -> str:
    """The URL of a fresh SQLite file."""
    made: str = fresh_sqlite(tmp_path / "runs.sqlite")
    return made


def timing(**asked: Any) -> Timing:
    """Return times, asked for at noon."""
    given = {"cron": None, "every": None, "at": None, "timezone": "UTC", "catch_up": "one", "now": NOON, **asked}
    return Timing.of(**given)


def test_times_of_each_kind() -> None:
    """A cron expression, a period from when it was asked for, one time."""
    assert timing(cron="30 9 * * *").next_after(NOON) == datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    every = timing(every=timedelta(hours=5))
    assert every.next_after(NOON + timedelta(hours=11)) == NOON + timedelta(hours=15)
    local = datetime(2026, 3, 1, 15, tzinfo=UTC).replace(tzinfo=None)
    once = timing(at=local, timezone="Europe/Oslo")
    assert once.next_after(NOON) == datetime(2026, 3, 1, 14, tzinfo=UTC)
    assert once.next_after(NOON + timedelta(days=1)) is None


@pytest.mark.parametrize("zone", ["Europe/Oslo", "America/New_York", "Australia/Sydney"])
def test_nine_is_nine_all_year(zone: str) -> None:
    """A cron expression is read in its time zone: where clocks are changed, the hour stays."""
    times = islice(timing(cron="0 9 * * *", timezone=zone).after(NOON), 400)
    local = [time.astimezone(ZoneInfo(zone)) for time in times]
    assert {(time.hour, time.minute) for time in local} == {(9, 0)}
    assert [time.date() for time in local] == [local[0].date() + timedelta(days=day) for day in range(400)]


@pytest.mark.parametrize(("catch_up", "hours"), [("one", [3]), ("all", [1, 2, 3]), ("skip", [])])
def test_what_was_missed(catch_up: str, hours: list[int]) -> None:
    """The last one, all, or none; one that is due now is always begun, and then nothing else unless all are."""
    hourly, first = timing(every=3600, catch_up=catch_up), NOON + timedelta(hours=1)
    late = hourly.due(first, NOON + timedelta(hours=3, minutes=30))
    assert [time - NOON for time in late] == [timedelta(hours=hour) for hour in hours]
    in_time = hourly.due(first, NOON + timedelta(hours=3, seconds=2))
    assert in_time[-1] == NOON + timedelta(hours=3)
    assert len(in_time) == (3 if catch_up == "all" else 1)
    assert hourly.due(first, NOON) == []


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({}, "one of cron"),
        ({"cron": "0 9 * * *", "every": 5}, "one of cron"),
        ({"cron": "every day"}, "five fields"),
        ({"cron": "99 9 * * *"}, "each within its bounds"),
        ({"every": 0.5}, "seconds from 1 on"),
        ({"at": "tomorrow"}, "datetime"),
        ({"cron": "0 9 * * *", "timezone": "Mars"}, "no time zone"),
        ({"cron": "0 9 * * *", "catch_up": "two"}, "catch_up"),
    ],
)
def test_wrong_times_are_refused(asked: dict[str, Any], problem: str) -> None:
    """Each mistake has one sentence."""
    with pytest.raises(ConfigurationError, match=problem):
        timing(**asked)


def test_a_time_comes(url: str) -> None:
    """Its run is one of the agent, named after schedule and time; then there is no next time."""
    agent = Agent(name=unique())
    with DurableSwarm(ScriptedModel(["Good morning"]), database=url) as swarm:
        at = datetime.now(UTC) + timedelta(seconds=0.3)
        schedule = swarm.schedule("morning", agent, user("Report"), at=at)
        [run] = soon(schedule.runs)
        assert run.id.startswith("morning@")
        assert run.result(PATIENCE).messages[-1]["content"] == "Good morning"
        soon(lambda: schedule.next is None)
        assert [one.name for one in swarm.schedules()] == ["morning"]


@pytest.mark.parametrize(
    ("ago", "catch_up", "begins"),
    [(0.5, "skip", True), (7200, "one", True), (7200, "all", True), (7200, "skip", False)],
)
def test_a_time_that_has_passed_begins_once(url: str, ago: float, catch_up: CatchUp, begins: bool) -> None:
    """A schedule may be made after its time: its run begins at once, or never if it is missed and such are skipped."""
    agent = Agent(name=unique())
    with DurableSwarm(ScriptedModel(lambda _: "Good morning"), database=url) as swarm:
        at = datetime.now(UTC) - timedelta(seconds=ago)
        for _ in range(2):  # Made again, it is the same.
            schedule = swarm.schedule("morning", agent, user("Report"), at=at, catch_up=catch_up)
            soon(lambda schedule=schedule: schedule.next is None)
            assert [run.result(PATIENCE).messages[-1]["content"] for run in schedule.runs()] == [
                "Good morning"
            ] * begins


def test_it_is_kept_paused_and_deleted(url: str) -> None:
    """The same times go on where they were, other ones replace them; a paused schedule has no next time."""
    agent = Agent(name=unique())
    with DurableSwarm(ScriptedModel(["Hi"]), database=url) as swarm:
        first = swarm.schedule("hourly", agent, user(), every=3600)
        at = first.next
        assert swarm.schedule("hourly", agent, user(), every=3600).next == at
        assert swarm.schedule("hourly", agent, user(), every=7200).next != at
        first.pause()
        assert first.paused
        assert first.next is None
        first.resume()
        assert first.next is not None
        run = first.trigger()
        assert run.result(PATIENCE).messages[-1]["content"] == "Hi"
        assert [one.id for one in first.runs()] == [run.id]
        first.delete()
        assert swarm.schedules() == []
        with pytest.raises(ConfigurationError, match="was deleted"):
            first.trigger()


def life(url: str) -> None:
    """Make a schedule, with others that make it too, and execute what comes."""
    agent = Agent(name="Crowd")
    with DurableSwarm(ScriptedModel(["Hi"] * 50), database=url) as swarm:
        schedule = swarm.schedule("crowd", agent, user(), every=1)
        say("there")
        soon(lambda: len(schedule.runs()) >= 3)
        say("seen")
        soon(lambda: False)


@pytest.mark.slow
def test_a_crowd_begins_each_run_once(lives: Lives, url: str, tmp_path: Path) -> None:
    """Three processes look, one is killed: every second has one run, and none is missing or there twice."""
    crowd = [lives.start(life, url, ledger=tmp_path / "ledger") for _ in range(3)]
    for one in crowd:
        assert one.hear() == "there"
    assert crowd[0].hear() == "seen"
    crowd[0].kill()
    with DurableSwarm(ScriptedModel([]), database=url) as swarm:
        [schedule] = swarm.schedules()
        soon(lambda: len(schedule.runs()) >= 5)
        for one in crowd[1:]:
            one.kill()
        times = sorted(datetime.fromisoformat(run.id.partition("@")[2]) for run in schedule.runs())
    assert len(set(times)) == len(times)
    assert {(later - earlier) % timedelta(seconds=1) for earlier, later in pairwise(times)} == {timedelta()}


def test_the_command_line_lists_and_pauses(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`schedules` shows each with its next time; it pauses, resumes and deletes."""
    agent = Agent(name=unique())
    with DurableSwarm(ScriptedModel([]), database=url) as swarm:
        swarm.schedule("nightly", agent, user(), cron="0 3 * * *", timezone="Europe/Oslo")
    where = ["--database", url]
    assert main(["schedules", *where]) == 0
    shown = capsys.readouterr().out
    assert "nightly" in shown
    assert "0 3 * * *" in shown
    assert main(["schedules", "--pause", "nightly", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)[0]["paused"] is True
    assert main(["schedules", "--resume", "nightly", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)[0]["next"]
    assert main(["schedules", "--delete", "nightly", *where]) == 0
    assert "No schedules." in capsys.readouterr().out
    assert main(["schedules", "--pause", "nightly", *where]) == 1


@pytest.mark.parametrize("every", [1, 0.1 * 13, 1.0001, 7.77])
def test_an_occurrence_has_one_time(every: float) -> None:
    """However a period is written, going on from a time as it is stored never gives the same time again."""
    given, moment = timing(every=every, now=NOON + timedelta(microseconds=119)), NOON
    for _ in range(500):
        following = given.next_after(moment)
        assert following is not None
        assert following > moment
        assert following.microsecond % 1000 == 0
        moment = following


def test_a_run_begins_later(url: str) -> None:
    """With `delay` or `at` the run is recorded at once, and begins at its time, in whichever process is there."""
    agent = Agent(name=unique())
    with DurableSwarm(ScriptedModel(["Hi", "Ho"]), database=url) as swarm:
        far = swarm.start(agent, user(), run_id="far", delay=3600)
        assert far.status in ("queued", "waiting")
        assert far.steps() == []
        far.cancel()
        soon_run = swarm.start(agent, user(), run_id="near", at=datetime.now(UTC) + timedelta(seconds=0.4))
        assert swarm.start(agent, user(), run_id="near", delay=9).id == "near"
        assert soon_run.result(PATIENCE).messages[-1]["content"] == "Hi"
        for wrong in ({"delay": -1}, {"at": "now"}, {"delay": 1, "at": datetime.now(UTC)}):
            with pytest.raises(ConfigurationError):
                swarm.start(agent, user(), **wrong)  # type: ignore[arg-type]


def delayed(url: str) -> str:
    """Start a run that begins later, and leave; or execute it."""
    agent = Agent(name="Later")
    with DurableSwarm(ScriptedModel(["Hi"]), database=url) as swarm:
        run = swarm.start(agent, user(), run_id="r1", delay=0.5)
        say("started")
        return str(run.result(PATIENCE).messages[-1]["content"])


def test_a_run_that_begins_later_survives(lives: Lives, url: str, tmp_path: Path) -> None:
    """The process that started it is killed before its time; the next one executes it."""
    first = lives.start(delayed, url, ledger=tmp_path / "ledger")
    assert first.hear() == "started"
    first.kill()
    assert lives.live(delayed, url, ledger=tmp_path / "ledger").value == "Hi"
