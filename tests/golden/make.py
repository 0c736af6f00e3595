"""Make golden databases of the version that is installed, on SQLite and PostgreSQL.

    python -m tests.golden.make               all that do not exist yet for this version
    python -m tests.golden.make done failed   some of them, anew

They are written to `tests/golden/VERSION/`: for each program the SQLite file (`NAME.sqlite.xz`), a dump of the
PostgreSQL database (`NAME.sql.xz`) and what the version showed of them, with the effects made so far (`NAME.json.xz`).
Ids and contents are the same each time; times, and the nonces of encrypted records, are not.
A database is never made anew after its version was released: it is what users have.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import sqlalchemy

from durable_swarm import AgentChanged, DurableSwarm
from durable_swarm.postgres import choose
from tests.golden.agents import DEATH, KEY, LEDGER, ORDER, agent, effects, model, options
from tests.golden.reading import Shown, shown
from tests.support import programs
from tests.support.patience import PATIENCE
from tests.support.postgres import fresh_database, running_server

FOLDER = Path(__file__).parent
QUESTION = [{"role": "user", "content": "Please."}]
CROWD = 18
"""How many runs wait at once in plain tools: two more than a process keeps in memory."""


def _swarm(name: str, url: str) -> DurableSwarm:
    return DurableSwarm(model(), database=url, **options(name))


def plain(name: str, url: str, run_id: str) -> None:
    """Run to the end, or until the environment ends it."""
    with _swarm(name, url) as swarm, contextlib.suppress(OSError):
        swarm.run(agent(name), QUESTION, ORDER, run_id=run_id)


def waiting(name: str, url: str, run_id: str) -> None:
    """Start a run, and be killed while it waits."""
    run = _swarm(name, url).start(agent(name), QUESTION, ORDER, run_id=run_id)
    _until(lambda: run.status == "waiting")
    if name == "question":
        run.say("And hurry.")
    time.sleep(1)  # Longer than events take to be stored.
    os.kill(os.getpid(), 9)


def cancelled(name: str, url: str, run_id: str) -> None:
    """Start a run, and cancel it while it waits."""
    with _swarm(name, url) as swarm:
        run = swarm.start(agent(name), QUESTION, ORDER, run_id=run_id)
        _until(lambda: bool(run.requests()))
        run.cancel()
        _until(lambda: run.status == "cancelled" and not run.requests())


def held(name: str, url: str, run_id: str) -> None:
    """Have another version of the agent found, for which the run is held."""
    changed = agent(name, 2)
    with _swarm(name, url) as swarm, contextlib.suppress(AgentChanged):
        swarm.run(changed, QUESTION, ORDER, run_id=run_id)


def crowd(name: str, url: str, run_id: str) -> None:
    """Start so many runs that wait that the first ones leave memory; be killed then."""
    swarm = _swarm(name, url)
    for number in range(CROWD):
        run = swarm.start(agent(name), QUESTION, run_id=f"{run_id}-{number}")
        _until(lambda run=run: bool(run.requests()))
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    schema = "" if url.startswith("sqlite") else "dbos."
    text = sqlalchemy.text(f"SELECT status FROM {schema}workflow_status WHERE workflow_uuid = '{run_id}-0'")

    def status() -> Any:
        with engine.connect() as connection:
            return connection.execute(text).scalar()

    _until(lambda: status() != "PENDING")
    os.kill(os.getpid(), 9)


def queued(name: str, url: str, run_id: str) -> None:
    """Queue a run in a program that does not define its agent."""
    with DurableSwarm(database=url, **options(name)) as swarm:
        swarm.enqueue(f"golden {name}", QUESTION, ORDER, run_id=run_id)


def forked(name: str, url: str, run_id: str) -> None:
    """Fork a run that is done, and execute the fork."""
    known = agent(name)
    with _swarm(name, url) as swarm:
        run = swarm.get("forked").fork(1, agent=known, messages=[{"role": "user", "content": "More."}], run_id=run_id)
        run.result(PATIENCE)


def left_fork(name: str, url: str, run_id: str) -> None:
    """Fork a run that is done, and leave the fork to a program that has the agent."""
    with DurableSwarm(database=url, **options(name)) as swarm:
        swarm.get("forked").fork(1, run_id=run_id)


def streamed(name: str, url: str, run_id: str) -> None:
    """Stream a run; with a death in the environment, be killed when half of a text was shown."""
    with _swarm(name, url) as swarm:
        pieces = 0
        for delta in swarm.run(agent(name), QUESTION, ORDER, stream=True, run_id=run_id):
            pieces += bool(delta.get("content"))
            if pieces == 6 and os.environ.get(DEATH):
                os.kill(os.getpid(), 9)


def transactional(name: str, url: str, run_id: str) -> None:
    """Run with a table of the program's own."""
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE golden_orders (name TEXT)"))
    plain(name, url, run_id)


LIVES: dict[str, list[tuple[Callable[[str, str, str], None], str, str]]] = {
    "done": [(plain, "done", "")],
    "failed": [(plain, "failed", "raise post")],
    "cancelled": [(cancelled, "cancelled", "")],
    "held": [(plain, "held", "post"), (held, "held", "")],
    "approval": [(waiting, "approval", "")],
    "question": [(waiting, "question", "")],
    "later": [(waiting, "later", "")],
    "sleep": [(waiting, "sleep", "")],
    "suspended": [(crowd, "suspended", "")],
    "queued": [(queued, "queued", "")],
    "forked": [(plain, "forked", ""), (forked, "forked-done", ""), (left_fork, "forked-left", "")],
    "encrypted": [(plain, "encrypted-done", ""), (plain, "encrypted", "pack")],
    "streamed": [(streamed, "streamed-done", ""), (streamed, "streamed", "text")],
    "killed-tool": [(plain, "killed-tool", "pack")],
    "killed-model": [(plain, "killed-model", "model")],
    "killed-step": [(plain, "killed-step", "post")],
    "once": [(plain, "once", "pay")],
    "transactional": [(transactional, "transactional", "post")],
}
"""For each database the processes that make it, one after the other: what they do, the run's id, how they end."""


def _until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError("what a golden database needs does not come")
        time.sleep(0.02)


def _live(name: str, url: str, ledger: Path) -> None:
    """Run the processes that make a database."""
    ledger.touch()
    for number, (_, _, death) in enumerate(LIVES[name]):
        environment = {**os.environ, LEDGER: str(ledger), DEATH: death, "DURABLE_SWARM_ENCRYPTION_KEYS": KEY}
        command = [sys.executable, "-m", "tests.golden.make", "--life", name, str(number), url]
        ended = programs.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
        if ended.returncode not in (0, -9):
            raise SystemExit(f"{name}: the process ended with {ended.returncode}\n{ended.stderr}")


def _pack_sqlite(path: Path) -> bytes:
    """Return the file as it would be once all of its processes are gone."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA journal_mode=DELETE", "VACUUM"):
        connection.execute(statement)
    connection.close()
    return path.read_bytes()


def _dump(url: str) -> bytes:
    """Return the database as SQL that needs no psql."""
    command = [choose().folder / "pg_dump", "--inserts", "--no-owner", "--no-privileges", url]
    text = programs.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if not line.startswith(("\\", "--")) and line]
    return "\n".join([*lines, ""]).encode()


def _make(name: str, server: str, target: Path) -> None:
    seen: dict[str, Shown] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.sqlite")
        _live(name, f"sqlite:///{path}", Path(folder, "ledger"))
        sqlite = _pack_sqlite(path)
        seen["sqlite"] = shown(f"sqlite:///{path}", unfinished=True)
        ledger = list(effects(Path(folder, "ledger")))
    with fresh_database(server) as url, tempfile.TemporaryDirectory() as folder:
        _live(name, url, Path(folder, "ledger"))
        postgres = _dump(url)
        seen["postgres"] = shown(url, unfinished=True)
        if ledger != list(effects(Path(folder, "ledger"))):
            raise SystemExit(f"{name}: other effects on PostgreSQL")
    facts = json.dumps({"ledger": ledger, **seen}, indent=1, sort_keys=True).encode()
    for suffix, data in ((".sqlite", sqlite), (".sql", postgres), (".json", facts)):
        (target / f"{name}{suffix}.xz").write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def main(arguments: list[str]) -> None:
    """Make the databases, or live one of their lives."""
    if arguments[:1] == ["--life"]:
        name, number, url = arguments[1:]
        function, run_id, _ = LIVES[name][int(number)]
        function(name, url, run_id)
        return
    target = FOLDER / metadata.version("durable-swarm")
    target.mkdir(exist_ok=True)
    os.environ["DURABLE_SWARM_ENCRYPTION_KEYS"] = KEY
    with running_server() as server:
        for name in arguments or [name for name in LIVES if not (target / f"{name}.json.xz").exists()]:
            _make(name, server, target)
            print(f"{name:16}{sum(path.stat().st_size for path in target.glob(f'{name}.*')) / 1024:8.1f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
