"""Multi-agent programs that survive any crash: OpenAI Swarm's API, every model and tool call a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_swarm.first_use import at_first_use

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
    "durable_swarm.engine.api.durable": ["DurableSwarm"],
    "durable_swarm.engine.api.run": ["Run"],
    "durable_swarm.events": ["Event"],
    "durable_swarm.limits": ["Limits"],
    "durable_swarm.repl.demo_loop": ["run_demo_loop"],
    "durable_swarm.swarm.compaction": ["Compaction"],
    "durable_swarm.swarm.memory": ["Swarm"],
    "durable_swarm.swarm.session": ["Session"],
    "durable_swarm.tools.asking": ["ask_human", "ask_human_async", "later"],
    "durable_swarm.tools.context": ["current_call"],
    "durable_swarm.tools.decorators": ["step", "tool", "tool_from_schema"],
    "durable_swarm.tools.inside": ["emit", "sleep", "sleep_async"],
    "durable_swarm.types": ["Agent", "Block", "Response", "Result"],
    "durable_swarm.errors": [
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


__getattr__, __dir__ = at_first_use(__name__, _HOMES, _MODULES)
