"""The rows of one run as they are at one moment, read in few statements and decoded once."""

from __future__ import annotations

from durable_swarm.engine.records import base, runs
from durable_swarm.engine.records.rows import RunRow, StepRow
from durable_swarm.engine.storage.runs import Store
from durable_swarm.loop import Reply


class Snapshot:
    """A source of rows and records for the readers of one run: of its steps, its history and its spending.

    Read from the database, a run of 1,000 turns would take a statement for each tool call.
    """

    def __init__(self, store: Store, row: RunRow) -> None:
        self._store = store
        self._run = row
        self._children = store.children(row.workflow_id, load_output=True)
        self._steps: dict[str, list[StepRow]] = {}
        for step in [*store.steps(row.workflow_id), *store.steps_in_calls(row.workflow_id)]:
            self._steps.setdefault(step.workflow_id, []).append(step)
        self._start: base.Record | None = None
        self._records: dict[tuple[str, int], base.Record] = {}
        self._replies: dict[int, Reply] = {}
        self._outputs: dict[str, base.Record] = {}

    def steps(self, workflow_id: str) -> list[StepRow]:
        """Return the recorded steps of the run or of a tool call, in order."""
        return self._steps.get(workflow_id, [])

    def children(self, run_id: str, *, load_output: bool = False) -> list[RunRow]:
        """Return the rows of the run's undecorated tool calls."""
        return self._children

    def start_record(self, row: RunRow) -> base.Record:
        """Return the run's input."""
        if self._start is None:
            self._start = self._store.start_record(row)
        return self._start

    def step_record(self, step: StepRow, row: RunRow) -> base.Record:
        """Return the record of a step of the run or of an undecorated tool call in it."""
        place = step.workflow_id, step.function_id
        if place not in self._records:
            self._records[place] = self._store.step_record(step, row)
        return self._records[place]

    def reply(self, step: StepRow, row: RunRow) -> Reply:
        """Return the reply in the record of a model's step."""
        if step.function_id not in self._replies:
            self._replies[step.function_id] = runs.read_reply(self.step_record(step, row))
        return self._replies[step.function_id]

    def output_record(self, child: RunRow, row: RunRow) -> base.Record:
        """Return the output of an undecorated tool call."""
        if child.workflow_id not in self._outputs:
            self._outputs[child.workflow_id] = self._store.output_record(child, row)
        return self._outputs[child.workflow_id]

    def failure_record(self, row: RunRow) -> base.Record | None:
        """Return the error that ended a failed run, if it is a record of this package."""
        return self._store.failure_record(row)
