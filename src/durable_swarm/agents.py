"""Agents by name, so that a run finds its agents again after a crash.

The registry holds every existing `Agent`, and every other object that was passed to a run as an agent, as long as the
program itself keeps them. Only an agent's name and a fingerprint are stored.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import inspect
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from durable_swarm.awaitables import is_async
from durable_swarm.codec import dumps
from durable_swarm.errors import AmbiguousAgent, UnknownAgent
from durable_swarm.toolsets import Toolset, functions_of
from durable_swarm.types import AgentLike, agent_defined

_sources: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()
_live: dict[int, Callable[[], AgentLike | None]] = {}
_watchers: list[Callable[[str], None]] = []
_lock = threading.Lock()


@dataclass(frozen=True)
class RemoteAgent:
    """An agent known only by its name: it is defined in the program that will execute it."""

    name: str
    model: str = ""
    instructions: str = ""
    functions: tuple[Any, ...] = ()


def remember(agent: AgentLike) -> None:
    """Register the agent as long as it exists, and notify the watchers of its name."""
    if isinstance(agent, RemoteAgent):
        return
    key = id(agent)
    with _lock:
        known = _live.get(key)
        if known is not None and known() is agent:
            return
        _live[key] = _reference(agent, key)
        watchers = list(_watchers)
    _source(agent.instructions)
    for watcher in watchers:
        watcher(str(agent.name))


def _reference(agent: AgentLike, key: int) -> Callable[[], AgentLike | None]:
    try:
        return weakref.ref(agent, lambda _: _live.pop(key, None))
    except TypeError:
        # Some foreign objects cannot be weakly referenced (SimpleNamespace); those are kept.
        return lambda: agent


def watch(callback: Callable[[str], None]) -> Callable[[], None]:
    """Call `callback(name)` for every agent that is registered; return the function that ends this."""
    _watchers.append(callback)
    return lambda: _watchers.remove(callback)


def names() -> set[str]:
    """Return the names of all agents in this process."""
    return {agent.name for agent in _agents()}


def is_blocking() -> bool:
    """Return True if no agent of this process has async tools or instructions."""
    return not any(
        isinstance(function, Toolset) or is_async(function)
        for agent in _agents()
        for function in [*agent.functions, agent.instructions]
    )


def toolsets() -> list[Toolset]:
    """Return the sets of tools of all agents in this process, each once."""
    found = [entry for agent in _agents() for entry in agent.functions if isinstance(entry, Toolset)]
    return list({id(entry): entry for entry in found}.values())


def find(name: str) -> AgentLike:
    """Return the registered agent called `name`.

    Several agents of one name are allowed if they are defined alike; the newest is returned. Raises `UnknownAgent` and
    `AmbiguousAgent`.
    """
    found = _named(name)
    if len(found) > 1 and _differ(found):
        # Agents and their tools often refer to each other, and then exist until the next garbage collection.
        del found
        gc.collect()
        found = _named(name)
    if not found:
        text = f"no agent named {name!r} is defined in this process; define it, or import its module"
        raise UnknownAgent(text, agent=name)
    if _differ(found):
        raise AmbiguousAgent(
            f"{len(found)} different agents named {name!r} are alive in this process; give each a name of its own",
            agent=name,
        )
    return found[-1]


def _named(name: str) -> list[AgentLike]:
    return [agent for agent in _agents() if agent.name == name]


def _differ(agents: list[AgentLike]) -> bool:
    return len({fingerprint(agent) for agent in agents}) > 1


def find_or_none(name: str) -> AgentLike | None:
    """Return the agent as `find` does, or None if there is not exactly one."""
    try:
        return find(name)
    except (UnknownAgent, AmbiguousAgent):
        return None


def _agents() -> list[AgentLike]:
    # Copied in one operation, because agents can be collected at any moment and in any thread.
    alive = [reference() for reference in list(_live.values())]
    return [agent for agent in alive if agent is not None]


def fingerprint(agent: AgentLike) -> str:
    """Return twelve hex digits that change when the agent's prompt, tools, model, settings or output type change."""
    # Imported now: who reads runs needs names only.
    from durable_swarm.schema import tool_schema
    from durable_swarm.schema.output import output_type_of

    definition: list[object] = [
        agent.name,
        agent.model,
        _source(agent.instructions),
        [tool_schema(function) for function in functions_of(agent)],
        str(getattr(agent, "tool_choice", None)),
        str(getattr(agent, "model_settings", None) or {}),
    ]
    if (output := output_type_of(agent)) is not None:  # Fingerprints of agents that answer in text stay as they were.
        definition.append(output.schema)
    return hashlib.sha256(dumps(definition).encode()).hexdigest()[:12]


def _source(instructions: object) -> str:
    """Return the source of the prompt: its text, or the code that makes it (its text varies with the context)."""
    if not callable(instructions):
        return str(instructions)
    while isinstance(instructions, functools.partial):
        instructions = instructions.func
    if not hasattr(instructions, "__qualname__"):
        instructions = type(instructions)
    code = getattr(instructions, "__func__", instructions)
    try:
        # Kept as first read: the file may be edited while the program runs, and the program keeps its code.
        return _sources.get(code) or _sources.setdefault(code, _written(code))
    except TypeError:  # Some objects cannot be weakly referenced.
        return _written(code)


def _written(instructions: Any) -> str:
    try:
        return inspect.getsource(instructions)
    except (OSError, TypeError):
        code = getattr(instructions, "__code__", None)
        return f"{instructions.__module__}.{instructions.__qualname__}" if code is None else code.co_code.hex()


agent_defined.append(remember)
