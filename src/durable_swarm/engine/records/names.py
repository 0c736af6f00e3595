"""Names stored in the database: workflows, queues, steps, calls, ids."""

from __future__ import annotations

import re

from durable_swarm import errors
from durable_swarm.validation import LONGEST_ID, check_name

RUN = "durable_swarm.run"
TOOL = "durable_swarm.tool"
PORTABLE = "portable_json"
"""DBOS's name for JSON that programs in other languages read, too: the form of all our rows."""
WIRE = "durable-swarm-1"
"""DBOS's application version: a constant of this format, so that an edit of a program does not strand its runs."""

VERSION = 1

QUEUE = "durable_swarm:"
"""Prefix of the queue on which one process takes over runs; its executor id follows."""

UNCLAIMED = f"{QUEUE}unclaimed"
"""The queue of runs that any process with their agents may execute."""

TURNS = "durable_swarm_turns"
"""The queue of runs that wait for their turn in a session. No process serves it."""


def work_queue(swarm: str) -> str:
    """Return the queue on which new runs of a swarm wait for a worker."""
    return f"durable_swarm_work:{swarm}"


BEGUN = "durable_swarm.begun"
"""The step recorded just before a tool with effect `once` is called."""


COMPACT = "compact:"
"""Prefix of the names of steps that write a summary of a session."""


def model_step(agent: str) -> str:
    """Return the step name of an agent's model calls."""
    return f"model:{agent}"


def compact_step(agent: str) -> str:
    """Return the name of the step that writes a summary of a session for an agent."""
    return f"{COMPACT}{agent}"


GUARDRAIL = "guardrail:"
"""Prefix of the step names of guardrails; the guardrail's name follows."""


def tool_step(name: str) -> str:
    """Return the step name of a tool's calls."""
    return f"tool:{name}"


def call_key(run_id: str, turn: int, index: int) -> str:
    """Return the id of a tool call. It is also the call's idempotency key."""
    return f"{run_id}/{turn}.{index}"


_CHILD = re.compile(r"(?P<parent>.+)/(?P<turn>\d+)\.(?P<index>\d+)/(?P<number>\d+)", re.DOTALL)
"""The id of a child run that was given none: the id of the tool call that started it, and a number."""


def parent_in(run_id: str) -> str | None:
    """Return the id of the run that started this one, if its id says so."""
    found = _CHILD.fullmatch(run_id)
    return None if found is None else found["parent"]


def place_in(run_id: str) -> tuple[int, ...]:
    """Return the turn, the place in the reply and the number of a child run, if its id has them."""
    found = _CHILD.fullmatch(run_id)
    return () if found is None else tuple(int(found[part]) for part in ("turn", "index", "number"))


def root_in(run_id: str) -> str:
    """Return the id of the top run of a run's family, as far as the ids say."""
    while (parent := parent_in(run_id)) is not None:
        run_id = parent
    return run_id


def is_call(workflow_id: str) -> bool:
    """Return True if this is the id of a tool call, not that of a run."""
    return re.search(r"/\d+\.\d+$", workflow_id) is not None


def check_id(run_id: object) -> str:
    """Check that the id is valid for a run, and return it. Raises `ConfigurationError`."""
    text = check_name("run_id", run_id, LONGEST_ID)
    if is_call(text):
        raise errors.ConfigurationError(f"run_id {text!r} ends like the id of a tool call (/1.2); choose another")
    return text
