"""A recorded run as replay reads it: from the database, from the document of an exported run, or from a golden file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from durable_swarm.engine.history.export import FORMAT, Exported, read_document
from durable_swarm.engine.processes import here
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.turns import recorded_turns
from durable_swarm.errors import ConfigurationError, RunNotFound
from durable_swarm.loop import Ending, GuardKind, Outcome, Reply, Start
from durable_swarm.runs import State
from durable_swarm.service import NoRuns, open_runs
from durable_swarm.types import Block

GOLDEN = f"{FORMAT}, golden"
"""The format of a golden file."""

VERSION = 1
"""The version of golden files that is written here, and the newest that is read."""


@dataclass(frozen=True)
class RecordedTurn:
    """One recorded turn; `version` is the fingerprint of the agent that answered."""

    agent: str
    reply: Reply
    outcomes: list[Outcome | None]
    version: str | None
    verdicts: dict[GuardKind, Block | Literal[False] | None] = field(default_factory=dict)
    """Of its guardrails by kind, as `TurnRecords.verdict` returns them."""


@dataclass(frozen=True)
class Recording:
    """A recorded run, read. `requests` are the requests of the turns, if a golden file has them."""

    run_id: str
    status: State
    start: Start
    turns: list[RecordedTurn]
    ending: Ending | None
    requests: dict[int, dict[str, Any]] = field(default_factory=dict)

    @staticmethod
    def of(data: object) -> Recording:
        """Read a document. Raises `ConfigurationError` if it is neither an exported run nor a golden file."""
        run, requests = _golden(data) if isinstance(data, dict) and "run" in data else (data, [])
        exported = Exported(run)
        record = exported.start_record(exported.row)
        found = [
            RecordedTurn(
                turn.agent,
                turn.read(),
                [None if outcome is None else runs.read_outcome(outcome) for outcome in turn.outcomes],
                turn.reply.get("version"),
                {kind: turn.verdict(kind) for kind in turn.guards},
            )
            for turn in recorded_turns(exported, exported.row, record)
        ]
        start = runs.read_start(record)
        by_turn = {index: request for index, request in enumerate(requests) if request is not None}
        return Recording(
            exported.data.id, exported.data.status, replace(start, kept=[]), found, exported.story().ending, by_turn
        )


def _golden(data: Mapping[str, object]) -> tuple[object, list[dict[str, object] | None]]:
    """Return the run of a golden file and the requests of its turns. Raises `ConfigurationError` for other files."""
    version, requests = data.get("version"), data.get("requests")
    if data.get("format") != GOLDEN:
        raise _not_golden(f"its format is not {GOLDEN!r}")
    if type(version) is not int or version < 1:
        raise _not_golden("its version is not a whole number from 1")
    if version > VERSION:
        raise ConfigurationError(
            f"the golden file was written by a newer version of durable-swarm (format {version}, this one reads up to "
            f"{VERSION}); upgrade the package"
        )
    if not isinstance(requests, list) or not all(isinstance(request, dict | None) for request in requests):
        raise _not_golden("requests is not a list of objects and nulls")
    return data["run"], requests


def _not_golden(reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"this is not a file that record_golden wrote, or it was changed: {reason}. Record the run again"
    )


def document(run: str | Path | dict[str, Any], database: str | None) -> dict[str, Any]:
    """Return the document of a run: from a file, or from the database."""
    if isinstance(run, Path):
        try:
            found = read_document(run.read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"{run} cannot be read ({error.strerror}); name the file of an exported run"
            ) from None
        return found if isinstance(found, dict) else {}
    if isinstance(run, dict):
        return run
    if not isinstance(run, str):
        raise ConfigurationError(f"a run is given as its id, its document or a Path, not as {type(run).__name__}")
    try:
        with open_runs(database or _open_here()) as opened:
            return opened.export(run)
    except (RunNotFound, NoRuns) as error:
        if run.endswith(".json") or Path(run).is_file():
            raise ConfigurationError(f"there is no run {run!r}; to replay that file, give Path({run!r})") from error
        raise


def _open_here() -> str | None:
    try:
        return here.current().url.render_as_string(hide_password=False)
    except ConfigurationError:
        return None
