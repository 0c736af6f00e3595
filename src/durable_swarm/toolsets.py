"""Sets of tools: one entry of `Agent.functions` that stands for several tools, which are known once they are loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

from durable_swarm.types import AgentLike


class Toolset(ABC):
    """Several tools in the place of one, read from elsewhere at the first turn of an agent that has it."""

    @abstractmethod
    def tools(self) -> list[Callable[..., object]]:
        """Return the tools, or none as long as they are not loaded."""

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """True if the tools are known."""

    @abstractmethod
    def load(self) -> None:
        """Read the tools, unless they are known; blocks meanwhile. Raises `ConfigurationError`."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection to where the tools come from; the next use opens it again."""

    def __call__(self, *_: object, **__: object) -> NoReturn:
        # `Agent.functions` takes callables; the model calls the tools of a set, never the set.
        raise TypeError(f"{self!r} is a set of tools and cannot be called; give it to an agent, in functions=[...]")


def functions_of(agent: AgentLike) -> list[Any]:
    """Return the agent's tools, those of its sets in their place."""
    found: list[object] = []
    for function in agent.functions:
        found.extend(function.tools() if isinstance(function, Toolset) else [function])
    return found


def to_load(agent: AgentLike) -> list[Toolset]:
    """Return the agent's sets whose tools are still to be read."""
    return [entry for entry in agent.functions if isinstance(entry, Toolset) and not entry.is_loaded]
