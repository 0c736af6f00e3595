"""What a fork server of the tests executes once, so that no fork has to.

A run in a database of its own loads what is loaded at first use. Closed, it leaves no thread, connection or file to the
forks.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading

import psycopg
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite

from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel, call

__all__ = ["psycopg", "sqlalchemy"]


def _note() -> str:
    return "noted"


def _run_once() -> None:
    agent = Agent(name="Preloaded", functions=[_note])
    with tempfile.TemporaryDirectory() as folder:
        model = ScriptedModel([[call("_note")], "Done."] * 3)
        with DurableSwarm(model, database=f"sqlite:///{folder}/runs.sqlite") as swarm:
            swarm.run(agent, [{"role": "user", "content": "Hi"}])
            asyncio.run(swarm.run_async(agent, [{"role": "user", "content": "Hi"}]))
            for _ in swarm.run(agent, [{"role": "user", "content": "Hi"}], stream=True):
                pass
            swarm.runs(limit=1)


_run_once()
assert threading.active_count() == 1, f"forks would be made beside threads: {threading.enumerate()}"
