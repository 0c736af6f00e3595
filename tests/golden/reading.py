"""What the command line shows of a database, as JSON, and whether a later version shows the same."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from durable_swarm.cli import main
from tests.support import programs

Shown = dict[str, Any]
"""`runs`, `inbox`, and by the run's id `show`, `export` and `events`, each as the command's JSON."""
ENDED = ("done", "failed", "cancelled")
WATCHED = 10.0
"""Seconds in which `watch` has shown all events of a run that nobody executes."""
SOME = 4
"""How many runs of a database are read in full."""


def command(url: str, *arguments: str) -> Any:
    """Call a command in this process and return its JSON."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main([*arguments, "--database", url])
    if code and arguments[0] != "watch":
        raise AssertionError(f"{' '.join(arguments)} ended with {code}: {errors.getvalue()}")
    lines = out.getvalue()
    return [json.loads(line) for line in lines.splitlines()] if arguments[0] == "watch" else json.loads(lines)


def shown(url: str, *, unfinished: bool = False) -> Shown:
    """Return all that the version shows of a database whose processes are gone; events of `unfinished` runs, too."""
    runs = command(url, "runs", "--json", "--limit", "100")
    some = sorted(run["id"] for run in runs)[:SOME]
    details = {run_id: command(url, "show", run_id, "--json") for run_id in some}
    return {
        "runs": runs,
        "inbox": command(url, "inbox", "--json"),
        "show": details,
        "export": {run_id: command(url, "export", run_id) for run_id in details},
        "events": {
            run["id"]: _events(url, run) for run in runs if run["id"] in some and (unfinished or run["status"] in ENDED)
        },
    }


def _events(url: str, run: dict[str, Any]) -> list[dict[str, Any]]:
    if run["status"] in ENDED:
        found: list[dict[str, Any]] = command(url, "watch", run["id"], "--json")
        return found
    arguments = [sys.executable, "-m", "durable_swarm", "watch", run["id"], "--json", "--database", url]
    with programs.Program(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        timer = threading.Timer(WATCHED, process.kill)
        timer.start()
        return [json.loads(line) for line in process.stdout]


def missing(recorded: Any, found: Any, path: str = "") -> Iterator[str]:
    """Tell what was shown once and is not any more. A version may show more: keys, but no other values."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key, value in recorded.items():
            if key == "package":  # An export says which version has written it.
                continue
            if key not in found:
                yield f"{path}.{key} is gone"
            else:
                yield from missing(value, found[key], f"{path}.{key}")
    elif isinstance(recorded, list) and isinstance(found, list) and len(recorded) == len(found):
        for number, (one, other) in enumerate(zip(recorded, found, strict=True)):
            yield from missing(one, other, f"{path}[{number}]")
    elif recorded != found:
        yield f"{path} was {recorded!r} and is {found!r}"
