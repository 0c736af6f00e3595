"""What the server of lives imports and does once, so that no life has to.

A run in a database of its own loads what is loaded at first use. Closed, it leaves no thread, connection or file to the
lives, which are forks of this process.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import tempfile
import threading

import openai
import psycopg
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite

import durable_swarm
import durable_swarm.testing
import tests.crash.disk
import tests.crash.lives
import tests.crash.scenarios
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel, call


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
assert threading.active_count() == 1, f"lives would be forked beside threads: {threading.enumerate()}"

__all__ = ["asyncio", "durable_swarm", "logging", "openai", "psycopg", "sqlalchemy", "sqlite3", "tests"]
