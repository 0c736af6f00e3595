"""Finds a run by the beginning of its id."""

from __future__ import annotations

from durable_swarm.engine.database import urls
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import ConfigurationError, RunNotFound

CANDIDATES = 5
"""How many ids the error for an ambiguous prefix lists."""


def find_run(store: Store, text: str) -> str:
    """Return the id of the run that has `text` as its id, or as a prefix that fits no other.

    Raises `RunNotFound`, and `ConfigurationError` for a prefix that fits several runs.
    """
    if store.row(text, load_output=False) is not None:
        return text
    rows = store.rows(prefix=text, limit=CANDIDATES + 1) if text else []
    if not rows:
        raise RunNotFound(
            f"there is no run {text!r} in {urls.shown(store.url)}; `durable-swarm runs` lists them", run_id=text
        )
    if len(rows) > 1:
        names = [row.workflow_id for row in rows[:CANDIDATES]] + ["…"] * (len(rows) > CANDIDATES)
        raise ConfigurationError(f"{text!r} is the beginning of several ids: {', '.join(names)}; write more of it")
    return str(rows[0].workflow_id)
