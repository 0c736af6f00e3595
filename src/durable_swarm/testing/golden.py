"""Golden runs: a past run in a file, which every later version of the code must replay."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from durable_swarm.engine.history.export import Exported
from durable_swarm.engine.history.export_redaction import Redact, redacted
from durable_swarm.errors import AmbiguousAgent, ConfigurationError, ReplayMismatch
from durable_swarm.testing.recording import GOLDEN, VERSION, Recording, document
from durable_swarm.testing.replaying import Replaying, replay


def record_golden(
    run_id: str,
    path: str | os.PathLike[str],
    *,
    database: str | None = None,
    redact: Redact | None = None,
    agent: object = None,
) -> None:
    """Write a past run to a file for `assert_replays`: a regression test of the agents that made it.

    If the run's agents are defined in this process and are unchanged, the file also contains the requests to the model,
    and a later difference is shown in full; otherwise only its existence. `agent` is the agent the run was started
    with, if its name alone does not identify it. `redact(path, value)` returns the value to write, as in
    `DurableSwarm.export`; a prompt that it changes is left out. An existing file is replaced. Raises `RunNotFound`, and
    `ConfigurationError` if the file cannot be written.
    """
    run = document(run_id, database)
    if redact is not None:
        run = Exported(redacted(run, redact)).document()
    golden = {"format": GOLDEN, "version": VERSION, "run": run, "requests": _requests(run, agent, redact)}
    try:
        Path(path).write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}; name another file") from error


def _requests(run: Mapping[str, object], agent: object, redact: Redact | None) -> list[dict[str, object] | None]:
    """Return the request of each turn, or None if this process no longer knows it."""
    replaying = Replaying(Recording.of(run), agent, None)
    try:
        found = replaying.go()
    except (ReplayMismatch, AmbiguousAgent):
        return []
    changed = {difference.turn for difference in found.differences}
    return [
        None if turn in changed or _changes(request, turn, redact) else request
        for turn, request in enumerate(replaying.requests)
    ]


def _changes(request: Mapping[str, object], turn: int, redact: Redact | None) -> bool:
    text = request["instructions"]
    return redact is not None and redact(f"requests[{turn}].instructions", text) != text


def assert_replays(path: str | os.PathLike[str] | dict[str, Any], agent: object = None, model: object = None) -> None:
    """Replay a run from a file of `record_golden` (or an exported run, or its document), and fail on a difference.

    `agent` and `model` are as in `replay`. Raises AssertionError, which shows the differences turn by turn;
    `ReplayMismatch` if an agent or a tool of the recording is gone; `ConfigurationError` for another file.
    """
    replayed = replay(Path(path) if isinstance(path, str | os.PathLike) else path, agent, model)
    if not replayed.same:
        raise AssertionError(str(replayed))
