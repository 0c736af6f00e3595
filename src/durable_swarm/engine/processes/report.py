"""Reports the facts about this process to the database, for people who look at its workers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.process_facts import ProcessFacts
from durable_swarm.engine.storage.runs import Store

AGAIN = 3600.0
"""Seconds after which the facts are written again though they are the same: a sign that they are not old."""


class ProcessReport:
    """The report of this process. A process that ends within two seconds reports nothing."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._facts = ProcessFacts(name, socket.gethostname(), os.getpid(), _version(), now(), 0, [], {}, {})
        self._written: tuple[float, ProcessFacts] | None = None

    def look(self, swarms: list[str], queues: Mapping[str, dict[str, Any]], failing: dict[str, str]) -> None:
        """Write the facts, if they have changed."""
        facts = replace(self._facts, swarms=swarms, queues=dict(queues), failing=failing)
        if self._written is not None and self._written[1] == facts and time.monotonic() - self._written[0] < AGAIN:
            return
        self._store.processes.write(replace(facts, seen_at=now()))
        self._written = time.monotonic(), facts

    def end(self) -> None:
        """Remove what was reported: the process ends in order."""
        if self._written is not None:
            self._store.processes.forget(self._facts.name)


def _version() -> str:
    try:
        return metadata.version("durable-swarm")
    except metadata.PackageNotFoundError:
        return ""
