"""Names that stand in the database: workflows, queues, steps, calls, ids."""

from __future__ import annotations

import re
from typing import Any

from durable_swarm import errors
from durable_swarm.validation import LONGEST_ID, check_name

RUN = "durable_swarm.run"
TOOL = "durable_swarm.tool"
WIRE = "durable-swarm-1"
"""DBOS's application version: a constant of this format, so that no edit of a program strands its runs."""

VERSION = 1

QUEUE = "durable_swarm:"
"""Prefix of the queue on which one process takes runs over; its executor id follows."""

UNCLAIMED = f"{QUEUE}unclaimed"
"""The queue of runs that any process with their agents may take."""


def work_queue(swarm: str) -> str:
    """Give the queue of a swarm's new runs that wait for a worker."""
    return f"durable_swarm_work:{swarm}"


BEGUN = "durable_swarm.begun"
"""The step that marks that a `once` tool is about to be entered."""


def model_step(agent: str) -> str:
    """Give the name of an agent's model calls."""
    return f"model:{agent}"


def tool_step(name: str) -> str:
    """Give the name of a tool's calls."""
    return f"tool:{name}"


def call_key(run_id: str, turn: int, index: int) -> str:
    """Give the id of a tool call, which is its idempotency key too."""
    return f"{run_id}/{turn}.{index}"


def check_id(run_id: Any) -> str:
    """Check that a run may have this id, and give it. Raises `ConfigurationError`."""
    text = check_name("run_id", run_id, LONGEST_ID)
    if re.search(r"/\d+\.\d+$", text):
        raise errors.ConfigurationError(f"run_id {text!r} ends like the id of a tool call (/1.2); choose another")
    return text
