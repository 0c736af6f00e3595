"""Reader of the events of a run and of all runs below it, from the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from durable_swarm.engine.history.follower import SOONEST, EventReader, Published
from durable_swarm.engine.storage.runs import Store
from durable_swarm.events import Event


class FamilyReader(EventReader):
    """One reader of a run's events after number `after`, and of the events of the runs below it.

    The events of a child come between its `child.started` and `child.finished`. A child that had not finished at
    number `after` is read from its first event.
    """

    def __init__(self, store: Callable[[], Store], run_id: str, after: int) -> None:
        super().__init__(store, run_id, 0)
        self._from = after
        self._children: dict[str, FamilyReader] = {}

    def live(self, published: Published) -> list[Event] | None:
        """Return None: the children may be executed elsewhere, so everything is read from the database."""
        return None

    def read(self) -> list[Event]:
        """Return the new events in the database, those of children with their run's id."""
        found: list[Event] = []
        for event in super().read():
            if event.type == "child.started":
                self._children[event.data["run_id"]] = FamilyReader(self._store, event.data["run_id"], 0)
            elif event.type == "child.finished":
                found += self._of_child(event.data["run_id"], told=event.seq > self._from)
                self._children.pop(event.data["run_id"], None)
            if event.seq > self._from:
                found.append(event)
        for run_id in self._children:
            found += self._of_child(run_id, told=True)
        self.pause = SOONEST if found else self.pause
        return found

    def _of_child(self, run_id: str, *, told: bool) -> list[Event]:
        reader = self._children.get(run_id)
        if reader is None or not told:
            return []
        return [event if event.run_id is not None else replace(event, run_id=run_id) for event in reader.read()]
