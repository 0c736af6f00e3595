"""The rows of runs, of undecorated tool calls and of their steps, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class RecordedError:
    """An error as DBOS stores it: the class's name, the message, and the record of this package in `data`, if any."""

    name: str
    message: str
    data: object = None

    def __str__(self) -> str:
        return self.message


@dataclass
class RunRow:
    """The row of a run, or of an undecorated tool call. Times are in milliseconds since 1970.

    `input` is the list of arguments. What was not loaded is None; an `input`, `output` or `error` that is not JSON is a
    text. `asks` says that the run waits for a decision, a time or a provider (`away` says why): itself, or the run
    `asks_below`.
    """

    workflow_id: str
    name: str
    status: str
    executor_id: str | None
    queue_name: str | None
    app_version: str | None
    parent_workflow_id: str | None
    created_at: int
    updated_at: int
    completed_at: int | None
    attributes: object
    input: object = None
    output: object = None
    error: RecordedError | str | None = None
    asks: bool = False
    asks_below: RunRow | None = None
    away: str | None = None

    @property
    def failure(self) -> dict[str, object] | None:
        """The record of this package in its error, as it is stored; None if there is none."""
        data = self.error.data if isinstance(self.error, RecordedError) else None
        return data if isinstance(data, dict) and isinstance(data.get("type"), str) else None


class StepRow(NamedTuple):
    """The row of a recorded step of a run or a tool call: number, name, and its output or error."""

    workflow_id: str
    function_id: int
    function_name: str
    output: object
    error: RecordedError | str | None
    child_workflow_id: str | None
    started_at_epoch_ms: int | None
    completed_at_epoch_ms: int | None
