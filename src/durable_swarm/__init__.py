"""Multi-agent programs that survive any crash: OpenAI Swarm's API, every model and tool call a checkpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durable_swarm.engine.api.durable import DurableSwarm
    from durable_swarm.engine.api.run import Run
    from durable_swarm.errors import (
        AgentChanged,
        AlreadyAnswered,
        AmbiguousAgent,
        Blocked,
        ConfigurationError,
        DurableSwarmError,
        InvalidAnswer,
        InvalidOutput,
        LimitReached,
        ModelError,
        NotInRun,
        NotSerializable,
        ReplayMismatch,
        RequestExpired,
        RunCancelled,
        RunConflict,
        RunFailed,
        RunNotFound,
        SessionBusy,
        ToolError,
        UnknownAgent,
    )
    from durable_swarm.events import Event
    from durable_swarm.limits import Limits
    from durable_swarm.repl.demo_loop import run_demo_loop
    from durable_swarm.swarm.compaction import Compaction
    from durable_swarm.swarm.memory import Swarm
    from durable_swarm.swarm.session import Session
    from durable_swarm.tools.asking import ask_human, ask_human_async, later
    from durable_swarm.tools.context import current_call
    from durable_swarm.tools.decorators import step, tool, tool_from_schema
    from durable_swarm.tools.inside import emit, sleep, sleep_async
    from durable_swarm.types import Agent, Block, Response, Result

_HOMES = {
    "engine.api.durable": ["DurableSwarm"],
    "engine.api.run": ["Run"],
    "events": ["Event"],
    "limits": ["Limits"],
    "repl.demo_loop": ["run_demo_loop"],
    "swarm.compaction": ["Compaction"],
    "swarm.memory": ["Swarm"],
    "swarm.session": ["Session"],
    "tools.asking": ["ask_human", "ask_human_async", "later"],
    "tools.context": ["current_call"],
    "tools.decorators": ["step", "tool", "tool_from_schema"],
    "tools.inside": ["emit", "sleep", "sleep_async"],
    "types": ["Agent", "Block", "Response", "Result"],
    "errors": [
        "AgentChanged",
        "AlreadyAnswered",
        "AmbiguousAgent",
        "Blocked",
        "ConfigurationError",
        "DurableSwarmError",
        "InvalidAnswer",
        "InvalidOutput",
        "LimitReached",
        "ModelError",
        "NotInRun",
        "NotSerializable",
        "ReplayMismatch",
        "RequestExpired",
        "RunCancelled",
        "RunConflict",
        "RunFailed",
        "RunNotFound",
        "SessionBusy",
        "ToolError",
        "UnknownAgent",
    ],
}
"""The modules of the public names. Each is imported when a name of it is used first: a program without `DurableSwarm`
does without DBOS and SQLAlchemy, and `durable-swarm --help` without all of them."""

__all__ = [
    "Agent",
    "AgentChanged",
    "AlreadyAnswered",
    "AmbiguousAgent",
    "Block",
    "Blocked",
    "Compaction",
    "ConfigurationError",
    "DurableSwarm",
    "DurableSwarmError",
    "Event",
    "InvalidAnswer",
    "InvalidOutput",
    "LimitReached",
    "Limits",
    "ModelError",
    "NotInRun",
    "NotSerializable",
    "ReplayMismatch",
    "RequestExpired",
    "Response",
    "Result",
    "Run",
    "RunCancelled",
    "RunConflict",
    "RunFailed",
    "RunNotFound",
    "Session",
    "SessionBusy",
    "Swarm",
    "ToolError",
    "UnknownAgent",
    "ask_human",
    "ask_human_async",
    "current_call",
    "emit",
    "later",
    "run_demo_loop",
    "sleep",
    "sleep_async",
    "step",
    "tool",
    "tool_from_schema",
]

_MODULES = [
    "codec",
    "compat",
    "encryption",
    "errors",
    "mcp",
    "otel",
    "providers",
    "redaction",
    "schema",
    "server",
    "testing",
]
"""The public modules, which `import durable_swarm` makes available without importing them."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"durable_swarm.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return globals().setdefault(name, getattr(importlib.import_module(f"durable_swarm.{home}"), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
