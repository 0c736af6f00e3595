"""What is kept of a model call in progress, as a note on the run."""

from __future__ import annotations

from dataclasses import dataclass

from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.storage.run_state import MODEL_CALL, notes_on
from durable_swarm.engine.storage.runs import Store


@dataclass(frozen=True)
class RunMemo:
    """The memo of one model call: the run's row has that of the last call alone, so that it does not grow.

    `note` is the name of the note: the client's own, or ours.
    """

    store: Store
    run_id: str
    call: str
    note: str = MODEL_CALL

    def read(self) -> object:
        """Return what was kept of this call, or None."""
        with engines_code(f"what is kept of a model call of run {self.run_id!r}"):
            noted = notes_on(self.store.found(self.run_id, load_output=False)).get(self.note)
        same = isinstance(noted, list) and len(noted) == 2 and noted[0] == self.call
        return noted[1] if isinstance(noted, list) and same else None

    def write(self, value: object) -> None:
        """Keep a value of plain data."""
        with engines_code(f"what is kept of a model call of run {self.run_id!r}"):
            self.store.annotate(self.run_id, **{self.note: [self.call, value]})
