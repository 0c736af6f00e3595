"""Reports the facts about this process to the database, for people who look at its workers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata

from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.process_facts import ProcessFacts, QueueFacts
from durable_swarm.engine.storage.runs import Store

AGAIN = 3600.0
"""Seconds after which the facts are written again though they are the same: a sign that they are not old."""


class ProcessReport:
    """The report of this process. One that ends within two seconds, and leaves no unfinished run, reports nothing."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._facts = ProcessFacts(name, socket.gethostname(), os.getpid(), _version(), now(), 0, [], {}, {})
        self._written: tuple[float, ProcessFacts] | None = None

    def look(self, swarms: list[str], queues: Mapping[str, QueueFacts], failing: dict[str, str]) -> None:
        """Write the facts, if they have changed."""
        facts = replace(self._facts, swarms=swarms, queues=dict(queues), failing=failing)
        if self._written is not None and self._written[1] == facts and time.monotonic() - self._written[0] < AGAIN:
            return
        self._store.processes.write(replace(facts, seen_at=now()))
        self._written = time.monotonic(), facts

    def end(self) -> None:
        """Report that the process ends in order, if it leaves unfinished runs; else remove what was reported."""
        name, at = self._facts.name, now()
        if self._store.claims.claims(name):
            self._store.processes.write(replace(self._facts, seen_at=at, left_at=at))
        elif self._written is not None:
            self._store.processes.forget(name)


def _version() -> str:
    try:
        return metadata.version("durable-swarm")
    except metadata.PackageNotFoundError:
        return ""
