"""The check-up: tests whether this installation and its database are fit to keep runs."""

from __future__ import annotations

import os
import platform
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

import sqlalchemy

from durable_swarm import agents
from durable_swarm.engine.api.inspector import Facts, Inspector, NoRuns, inspect_database
from durable_swarm.engine.database import urls
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.storage.run_state import notes_on, started_at, state_of
from durable_swarm.errors import ConfigurationError
from durable_swarm.service.workers import workers
from durable_swarm.types import tool_name

Level = Literal["ok", "warn", "fail"]

PACKAGES = {"durable-swarm": None, "dbos": (3, 4), "openai": (1, 40)}
"""The packages to look for, with the oldest supported release of each."""


LATE = 60.0
"""A run that has waited for a worker for longer than this many seconds is reported."""
LARGEST = 4
"""How many of the largest tables are reported."""


@dataclass(frozen=True)
class Check:
    """One finding: the thing checked, its state, and an explanation (with the remedy if it is not ok)."""

    name: str
    level: Level
    text: str


def checkup(url: str | None) -> list[Check]:
    """Check the installation and the database; `url` is as in `DurableSwarm`.

    Raises `ConfigurationError` if `url` is not a valid database URL.
    """
    chosen = urls.choose(url)
    named = bool(url or os.environ.get(urls.VARIABLE))
    return [*_installation(), *_key(), *_database(chosen, named)]


def check_toolsets() -> Iterator[Check]:
    """Load each set of tools of the agents in this process, such as those of an MCP server, and report what it has."""
    for toolset in agents.toolsets():
        try:
            toolset.load()
        except ConfigurationError as error:
            yield Check(repr(toolset), "fail", str(error))
        else:
            names = [tool_name(tool) for tool in toolset.tools()]
            yield Check(repr(toolset), "ok", f"{len(names)} tools: {', '.join(names)}")
        finally:
            toolset.close()


def _installation() -> Iterator[Check]:
    yield Check("python", "ok", platform.python_version())
    for name, oldest in PACKAGES.items():
        version = installed(name)
        if version is None:
            level: Level = "warn" if oldest is None else "fail"
            yield Check(name, level, f"not installed as a package; pip install {name}")
        elif oldest is not None and _parts(version) < oldest:
            yield Check(name, "fail", f"{version} is too old; pip install --upgrade {name}")
        else:
            yield Check(name, "ok", version)


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _key() -> Iterator[Check]:
    if os.environ.get("OPENAI_API_KEY"):
        yield Check("OPENAI_API_KEY", "ok", "set")
    else:
        yield Check("OPENAI_API_KEY", "warn", "not set; OpenAI's client needs it, a client of your own may not")


def _database(url: sqlalchemy.URL, named: bool) -> Iterator[Check]:
    try:
        with inspect_database(url) as visitor:
            facts = visitor.facts()
            yield Check("database", "ok", f"{facts.kind} {facts.version}, {urls.shown(url)}, {size(facts.size)}")
            yield from _settings(facts)
            if urls.is_sqlite(url):
                yield _mode(Path(str(url.database)))
            yield from _contents(facts)
            yield _queue(visitor)
            yield _idle(visitor)
            yield from _maintenance(visitor)
            yield from _webhooks(visitor)
    except NoRuns as error:
        yield Check("database", "fail" if named else "warn", str(error))
    except ConfigurationError as error:
        yield Check("database", "fail", str(error))


def size(count: float) -> str:
    """Return a number of bytes as readable text."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.0f} {units[0]}" if units[0] == "bytes" else f"{count:.1f} {units[0]}"


_WANTED = {
    "journal_mode": ("wal", "other values make processes wait for one another; is the file on a network drive?"),
    "synchronous": ("full", "a power failure may take back checkpoints that were reported"),
    "synchronous_commit": ("on", "a crash of the server may take back checkpoints that were reported; SET it to on"),
    "fsync": ("on", "a crash of the server may damage the database; set it to on"),
}
_AS_GOOD = {"extra", "remote_apply"}


def _settings(facts: Facts) -> Iterator[Check]:
    for name, value in facts.settings.items():
        wanted, otherwise = _WANTED[name]
        fit = value == wanted or value in _AS_GOOD
        yield Check(name, "ok" if fit else "warn", value if fit else f"{value}, not {wanted}: {otherwise}")
    if facts.kind == "SQLite":
        remedy = "restore the file from a backup, or recover it with the sqlite3 shell"
        yield Check(
            "integrity", "fail" if facts.damage else "ok", f"{facts.damage}; {remedy}" if facts.damage else "ok"
        )


def _mode(path: Path) -> Check:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Check(
            "file mode", "warn", f"{mode:04o}: others can open the file, which holds conversations; chmod 600 it"
        )
    return Check("file mode", "ok", f"{mode:04o}")


def _contents(facts: Facts) -> Iterator[Check]:
    states = ", ".join(f"{count} {state}" for state, count in sorted(facts.states.items()))
    failed = facts.states.get("failed", 0)
    remedy = "; `durable-swarm runs --status failed` says why, and `durable-swarm resume ID` continues one"
    yield Check("runs", "warn" if failed else "ok", f"{states or 'none'}{remedy if failed else ''}")
    if facts.tables:
        largest = sorted(facts.tables.items(), key=lambda table: -table[1])[:LARGEST]
        text = ", ".join(f"{name} {size(count)}" for name, count in largest)
        yield Check("largest tables", "ok", f"{text}; `durable-swarm gc` deletes old runs")
    yield _formats(facts)
    if facts.pickles:
        text = (
            f"{facts.pickles} rows are Python pickles, which this package never writes, and never reads since reading "
            "one can run any code; find out who wrote them"
        )
        yield Check("pickle", "fail", text)
    else:
        yield Check("pickle", "ok", "none: everything stored is JSON, so reading it runs no code")


def _formats(facts: Facts) -> Check:
    """Report the format in which runs are stored: this version continues runs of its own format."""
    foreign = [version for version in facts.formats if version != records_names.WIRE]
    if not foreign:
        return Check("wire format", "ok", f"{records_names.WIRE}: every run is stored in the format this version reads")
    found = ", ".join(f"{count} as {version}" for version, count in sorted(facts.formats.items()))
    text = (
        f"runs are stored {found}; after a crash this version continues {records_names.WIRE} only, the others "
        "need the version of durable-swarm, or the program that launched DBOS itself, that wrote them"
    )
    return Check("wire format", "warn", text)


def _queue(visitor: Inspector) -> Check:
    """Report the runs that wait for a worker, by swarm name: a worker serves those of its own swarm."""
    rows = [row for row in visitor.store.rows(states=["queued"]) if state_of(row) == "queued"]
    if not rows:
        return Check("queue", "ok", "empty: no run waits for a worker")
    waiting = Counter(str(notes_on(row).get("swarm", "")) for row in rows)
    text = ", ".join(
        f"{count} of {f'swarm {name!r}' if name else 'the swarm without a name'}"
        for name, count in sorted(waiting.items())
    )
    oldest = (datetime.now(UTC) - min(started_at(row) for row in rows)).total_seconds()
    late = oldest > LATE
    remedy = "; is a worker running whose swarm has that name, and the same database?" if late else ""
    return Check("queue", "warn" if late else "ok", f"{text}, the oldest for {oldest:.0f} s{remedy}")


def _webhooks(visitor: Inspector) -> Iterator[Check]:
    """Report what webhooks did not take."""
    found = visitor.store.deliveries.undelivered()
    for one in found[:LARGEST]:
        then = "given up" if one.state == "given up" else "it is tried again"
        what = f"{one.event} of run {one.run_id!r} was not delivered to {one.url}: {one.error}"
        text = f"{what} (tries: {one.attempts}; {then})"
        yield Check("webhook", "warn", text)
    if len(found) > LARGEST:
        yield Check("webhook", "warn", f"{len(found) - LARGEST} more messages were not delivered")


def _idle(visitor: Inspector) -> Check:
    rows = visitor.store.rows(states=["running"])
    idle = visitor.idle(rows)
    agents = sorted({notes_on(row).get("agent", "") for row in rows if row.workflow_id in idle})
    if not idle:
        return Check("interrupted runs", "ok", "none: every unfinished run has a process that executes it")
    names = ", ".join(map(repr, agents[:5]))
    return Check(
        "interrupted runs",
        "warn",
        f"{len(idle)} unfinished, executed by no process; they continue when a program that defines {names} is started",
    )


def _maintenance(visitor: Inspector) -> Iterator[Check]:
    """Report what the living processes tried to do beside their runs, and could not."""
    for process in workers(visitor).processes:
        if process.alive:
            for job, error in process.failing.items():
                where = f"process {process.pid} on {process.host}"
                yield Check("maintenance", "warn", f"{where}: {job} failed, and is tried again: {error}")
