"""What earlier versions have left in a database is read, shown, resumed and finished by this one."""

from __future__ import annotations

import json
import lzma
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy

from durable_swarm import DurableSwarm
from tests.golden.agents import FUNCTIONS, KEY, LEDGER, agent, effects, model, options
from tests.golden.make import FOLDER, LIVES
from tests.golden.reading import Shown, command, missing, shown
from tests.support.patience import PATIENCE

VERSIONS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name[0].isdigit())
DATABASES = [(version, name) for version in VERSIONS for name in LIVES]
REWORDED = re.compile(
    r"\.waits_for was .no process executes it; it goes on when |"
    r"\.content was .Error: no result yet\.. and is .Error: no result yet; no running process owns the run\."
)
"""Sentences for people that say the same in other words now, or more."""

OVER = re.compile(r"\.(runs|show|export)\S*\.(status|idle|waits_for) was")
"""What has changed of a run that slept, since its time is over: nothing but how it stands."""


def _nothing(_swarm: DurableSwarm) -> None:
    """Leave the runs to go on by themselves."""


def _suspended(swarm: DurableSwarm) -> None:
    for run in swarm.runs():
        run.answer("red")


@dataclass(frozen=True)
class Ending:
    """How the runs of a database are brought to their end, and which effects have happened then, each how often.

    `once` had finished before the process ended, or happens after it; `again` was in flight and is entered again.
    """

    once: str
    again: str = ""
    act: Callable[[DurableSwarm], Any] = _nothing
    last: str = "Done."
    runs: tuple[str, ...] = ()
    open: bool = False
    """Whether `act` must wait for a request that the run opens now."""
    counts: dict[str, int] = field(default_factory=dict)

    def effects(self) -> dict[str, int]:
        """Return how often each effect happens in all."""
        return {**dict.fromkeys(self.once.split(), 1), **dict.fromkeys(self.again.split(), 2), **self.counts}


ENDINGS = {
    "done": Ending("charge weigh wrap pack handoff post"),
    "failed": Ending("charge", "post", lambda swarm: swarm.get("failed").resume()),
    "cancelled": Ending("charge", "ask", lambda swarm: _resume_and_answer(swarm.get("cancelled"))),
    "held": Ending("charge", "post", lambda swarm: _accept(swarm.get("held"))),
    "approval": Ending("charge refund", act=lambda swarm: swarm.get("approval").approve()),
    "question": Ending("charge", "ask", lambda swarm: swarm.get("question").answer("blue"), last="Done."),
    "later": Ending("charge", "", lambda swarm: swarm.complete("invoice-A-1", "paid"), counts={"invoice": 1}),
    "sleep": Ending("charge woke", "nap"),
    "suspended": Ending("", act=_suspended, counts={"ask": 36}),
    "queued": Ending("charge weigh wrap pack"),
    "forked": Ending("charge", counts={"weigh": 3, "wrap": 3, "pack": 3}),
    "encrypted": Ending("", "charge weigh wrap", counts={"pack": 3}),
    "streamed": Ending("", "charge", last="One word, two words, three words, four words."),
    "killed-tool": Ending("charge weigh wrap", "pack"),
    "killed-model": Ending("charge", "model"),
    "killed-step": Ending("charge", "post"),
    "once": Ending("charge pay", act=lambda swarm: swarm.get("once").answer("paid A-1"), open=True),
    "transactional": Ending("book", "post"),
}


def _resume_and_answer(run: Any) -> None:
    run.resume()
    _until(lambda: bool(run.requests()))
    run.answer("red")


def _accept(run: Any) -> None:
    _until(lambda: run.waits_for is not None)
    run.resume()


def _until(holds: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let effects go into a ledger of the test, and the command line read what is encrypted."""
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    monkeypatch.setenv("DURABLE_SWARM_ENCRYPTION_KEYS", KEY)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that is not there yet, or is empty; the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runs.sqlite"
    url: str = request.getfixturevalue("empty_postgres")
    return url


def _restore(version: str, name: str, url: str, ledger: Path) -> Shown:
    """Put a golden database where the URL points, with the effects so far; returns what its version has shown."""
    stored = {suffix: FOLDER / version / f"{name}.{suffix}.xz" for suffix in ("sqlite", "sql", "json")}
    facts = json.loads(lzma.decompress(stored["json"].read_bytes()))
    ledger.write_text("".join(f"{effect}\n" for effect in facts["ledger"]), encoding="utf-8")
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).write_bytes(lzma.decompress(stored["sqlite"].read_bytes()))
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(lzma.decompress(stored["sql"].read_bytes()))
    recorded: Shown = facts["sqlite" if url.startswith("sqlite") else "postgres"]
    return recorded


@pytest.mark.parametrize(("version", "name"), DATABASES)
def test_what_a_version_has_stored_is_shown_as_it_was(
    version: str, name: str, database_url: str, tmp_path: Path
) -> None:
    """Each command shows of an old database what the version that made it has shown; it may show more."""
    recorded = _restore(version, name, database_url, tmp_path / "ledger")
    found = shown(database_url)
    recorded["events"] = {run_id: events for run_id, events in recorded["events"].items() if run_id in found["events"]}
    gone = list(missing(recorded, found))
    gone = [line for line in gone if not (name == "sleep" and OVER.match(line)) and not REWORDED.search(line)]
    assert gone == []


@pytest.mark.parametrize(("version", "name"), DATABASES)
def test_what_a_version_has_left_unfinished_is_finished(
    version: str, name: str, database_url: str, tmp_path: Path
) -> None:
    """Each run of an old database is finished, nothing finished happens again, and events keep their numbers."""
    ledger, ending = tmp_path / "ledger", ENDINGS[name]
    recorded = _restore(version, name, database_url, ledger)
    known = [agent(name, 2 if name == "held" else 1)] + [agent(other) for other in ("desk",) if name == "done"]
    with DurableSwarm(model(), database=database_url, **options(name)) as swarm:
        if name == "queued":
            swarm.serve()
        swarm.recover()
        if ending.open:
            _until(lambda: bool(swarm.requests()))
        ending.act(swarm)
        ids = [run["id"] for run in recorded["runs"]]
        ended = {run_id: swarm.get(run_id).result(PATIENCE).messages[-1]["content"] for run_id in ids}
    assert known
    assert set(ended.values()) == {ending.last}
    assert Counter(effects(ledger)) == ending.effects()
    for run_id, events in recorded["events"].items():
        now = command(database_url, "watch", run_id, "--json")
        assert [event["seq"] for event in now] == sorted({event["seq"] for event in now})
        told = [event for event in events if name != "failed" or event["type"] != "run.failed"]
        assert list(missing(told, now[: len(told)])) == []
        assert now[-1]["type"] == "run.finished"


def test_transactional_rows_are_there_once(database_url: str, tmp_path: Path) -> None:
    """What a transactional tool of an old version has committed is not written again."""
    for version in VERSIONS:
        _restore(version, "transactional", database_url, tmp_path / "ledger")
        with DurableSwarm(model(), database=database_url, **options("transactional")) as swarm:
            assert agent("transactional")
            swarm.get("transactional").result(PATIENCE)
        engine = sqlalchemy.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT name FROM golden_orders")).scalars().all() == ["A-1"]
        engine.dispose()


def test_an_exported_document_of_an_old_version_is_read(database_url: str, tmp_path: Path) -> None:
    """What an old version has exported can be brought into a database of this one, and shows the same run."""
    for version in VERSIONS:
        for name in ("done", "failed", "cancelled"):
            facts = json.loads(lzma.decompress((FOLDER / version / f"{name}.json.xz").read_bytes()))
            path = tmp_path / f"{version}-{name}.json"
            path.write_text(json.dumps(facts["sqlite"]["export"][name]), encoding="utf-8")
            with DurableSwarm(model(), database=database_url, name=version) as swarm:
                run = swarm.import_run(json.loads(path.read_text(encoding="utf-8")))
                assert run.messages() == facts["sqlite"]["show"][name]["messages"]


def test_each_agent_has_a_database() -> None:
    """Every agent that is scripted is in a golden database, and every database has its ending."""
    assert set(LIVES) == set(ENDINGS) == set(FUNCTIONS) - {"desk"}
