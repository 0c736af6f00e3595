"""Multi-agent programs that survive any crash: OpenAI Swarm's API, every model and tool call a checkpoint."""

from durable_swarm.engine import DurableSwarm, Run
from durable_swarm.errors import (
    AgentChanged,
    AlreadyAnswered,
    AmbiguousAgent,
    ConfigurationError,
    DurableSwarmError,
    InvalidAnswer,
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
    ToolError,
    UnknownAgent,
)
from durable_swarm.events import Event
from durable_swarm.repl.demo_loop import run_demo_loop
from durable_swarm.swarm.memory import Swarm
from durable_swarm.tools.asking import ask_human, ask_human_async, later
from durable_swarm.tools.context import current_call
from durable_swarm.tools.decorators import step, tool, tool_from_schema
from durable_swarm.tools.inside import emit, sleep, sleep_async
from durable_swarm.types import Agent, Response, Result

__all__ = [
    "Agent",
    "AgentChanged",
    "AlreadyAnswered",
    "AmbiguousAgent",
    "ConfigurationError",
    "DurableSwarm",
    "DurableSwarmError",
    "Event",
    "InvalidAnswer",
    "LimitReached",
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
