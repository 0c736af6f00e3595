"""The limits of a run in the database: what it has spent, and how it may spend more."""

from __future__ import annotations

from collections.abc import Callable

from durable_swarm.concurrency import in_thread
from durable_swarm.engine.history.spending import spending
from durable_swarm.engine.records.runs import read_limits_of
from durable_swarm.engine.storage.ledger import Key
from durable_swarm.engine.storage.runs import Store
from durable_swarm.limits import Spent


class RunLimits:
    """The part of `Run` about its limits."""

    id: str
    _store: Callable[[], Store]

    @property
    def spent(self) -> Spent:
        """The requests, tool calls, tokens, dollars and seconds that the run and its child runs have spent so far."""
        store = self._store()
        return spending(store, store.found(self.id, load_output=False))

    def extend(self, **more: object) -> None:
        """Add amounts to the limits of the run and its session, as in `extend(requests=50, cost=2)`; they hold at once.

        A run that has failed with `LimitReached` continues after `resume`. What a run may spend is never less after a
        crash or a restart, and neither is what it has spent. Raises `ConfigurationError` for an amount that is not
        limited, and `RunNotFound`.
        """
        store = self._store()
        limits, above = read_limits_of(store.start_record(store.found(self.id, load_output=False)))
        session = next((Key(*key) for key in above if key[0] == "session"), None)
        store.ledger.extend(Key("run", self.id), limits, more, session)

    async def extend_async(self, **more: object) -> None:
        """Extend as `extend` does, on the event loop."""
        await in_thread(lambda: self.extend(**more))
