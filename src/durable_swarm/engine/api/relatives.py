"""The family of a run: the run whose tool call started it, and the runs that its own tool calls started."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from durable_swarm.engine.signals import look_aside
from durable_swarm.engine.storage.runs import Store


class RunRelatives(ABC):
    """The part of `Run` that knows its parent and its children."""

    id: str
    _store: Callable[[], Store]

    @abstractmethod
    def _other(self, run_id: str) -> Self:
        """Return the handle of another run of this database."""

    @property
    def parent(self) -> Self | None:
        """The run whose tool call started this one; None if no run did, or if it was deleted."""
        store = self._store()
        store.found(self.id, load_output=False)
        parent = store.family.parent(self.id)
        known = parent is not None and store.row(parent, load_output=False) is not None
        return self._other(parent) if parent is not None and known else None

    def children(self) -> list[Self]:
        """Return the runs that tool calls of this one started, in the order of the calls, without grandchildren.

        A child run of version 0.1.0 is among them once this version has continued its parent.
        """
        store = self._store()
        store.found(self.id, load_output=False)
        return [self._other(link.run_id) for link in store.family.children([self.id])]

    async def children_async(self) -> list[Self]:
        """Return the children as `children` does, on the event loop."""
        return await look_aside(self.children)
