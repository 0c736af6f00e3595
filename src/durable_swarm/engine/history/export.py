"""A run as one JSON document: written with secrets masked, and read back as rows.

The document contains the records as the database has them, decoded if there is a codec, and the facts of their rows.
`Exported` offers a database's interface, so every reader of runs can read a document too.
"""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from typing import Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from durable_swarm import codec, errors
from durable_swarm.engine.history.conversation import standalone
from durable_swarm.engine.history.export_redaction import Redact, redacted
from durable_swarm.engine.history.story import step_infos, story
from durable_swarm.engine.records import base, failures, runs
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.records.rows import RecordedError, RunRow, StepRow
from durable_swarm.engine.records.turns import Rows, calls_of, is_outcome, numbered
from durable_swarm.engine.storage.run_state import state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.loop import NOT_MADE, Reply
from durable_swarm.runs import ENDED, RunHistory, State
from durable_swarm.validation import LONGEST_ID, check_name, check_text

FORMAT = "durable-swarm run"
VERSION = 1

_STATUS = {"done": "SUCCESS", "failed": "ERROR"}
"""DBOS's names for the end of a run. A run that had not ended when it was exported is imported as cancelled."""

LATEST = 2**53
"""The highest time in milliseconds: JSON parsers of other languages have no greater whole numbers."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StepData(_Part):
    """A recorded step: `record` is ours, `value` the output of another step (a sleep), `call` the call it started."""

    number: int = Field(ge=0, lt=2**31)
    name: str
    record: dict[str, object] | None = None
    value: object = None
    error: str | None = None
    call: str | None = None
    started: int | None = Field(None, ge=0, le=LATEST)
    finished: int | None = Field(None, ge=0, le=LATEST)


class CallData(_Part):
    """An undecorated tool call with the steps inside it; `output` is set once it has ended."""

    output: dict[str, object] | None = None
    started: int = Field(ge=0, le=LATEST)
    finished: int | None = Field(None, ge=0, le=LATEST)
    steps: list[StepData] = []


class RunData(_Part):
    """A whole run. Times are in milliseconds since 1970, `calls` by `<turn>.<index>`."""

    format: Literal["durable-swarm run"]
    version: int
    package: str | None = None
    id: str
    status: State
    swarm: str = ""
    agent: str
    at: float = Field(ge=0, le=LATEST)
    forked_from: str | None = None
    turn: int | None = None
    started: int = Field(ge=0, le=LATEST)
    finished: int | None = Field(None, ge=0, le=LATEST)
    start: dict[str, object]
    steps: list[StepData] = []
    calls: dict[str, CallData] = {}
    failure: dict[str, object] | None = None


_MISFITS: tuple[type[Exception], ...] = (
    *(errors.ReplayMismatch, errors.NotSerializable),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
)
"""The exceptions raised while a document is read that this module did not write."""


class Exported:
    """The one run of a document, read like rows of a database. Raises `ConfigurationError` for any other document."""

    def __init__(self, data: object) -> None:
        self.data = _checked(data)
        self.row = self._row()
        try:
            self._check()
        except _MISFITS as error:
            raise _wrong(f"{error!s:.300}") from error

    def _row(self) -> RunRow:
        data = self.data
        about = {"agent": data.agent, "swarm": data.swarm, "at": data.at}
        if data.forked_from is not None:
            about |= {"forked_from": data.forked_from, "turn": data.turn}
        return RunRow(
            workflow_id=data.id,
            name=records_names.RUN,
            status=_STATUS.get(data.status, "CANCELLED"),
            executor_id=None,
            queue_name=None,
            app_version=records_names.WIRE,
            parent_workflow_id=None,
            created_at=data.started,
            updated_at=data.finished or data.started,
            completed_at=data.finished,
            attributes=about,
            error=None if data.failure is None else RecordedError("Broken", "", data.failure),
        )

    def _check(self) -> None:
        """Read everything once, so that unreadable data is never stored."""
        records_names.check_id(self.data.id)
        numbered = [(self.data.id, step) for step in self.data.steps]
        for key, call in self.data.calls.items():
            _check_key("calls has the key", key)
            numbered += [(key, step) for step in call.steps]
            if call.output is not None:
                runs.read_outcome(base.read(call.output, f"tool call {key}"))
        if len({(key, step.number) for key, step in numbered}) < len(numbered):
            raise ValueError("two steps have the same number")
        for _, step in numbered:
            check_name("a step's name", step.name, LONGEST_ID)
            if step.call is not None:
                _check_key(f"step {step.number} begins call", step.call)
            if step.record is not None:
                base.read(step.record, f"step {step.number}")
        for text in (self.data.agent, self.data.swarm or "-", self.data.forked_from or "-"):
            check_text("a name", text)
        if self.data.status == "failed" and self.data.failure is not None:
            failures.read_failure({"run_id": self.data.id, **self.data.failure})
        redacted(self.document(), lambda _, value: value)  # This decodes every value.
        history = self.story()
        self._check_calls()
        step_infos(self, self.row)
        if self.data.status == "done" and history.ending is None:
            raise ValueError("the run is done, but its records are not complete")

    def _check_calls(self) -> None:
        """Refuse results of calls that no recorded reply makes: they would stay hidden until the run used them."""
        children, steps = _calls_made(self.data.start, self.data.steps)
        outcomes = {step.function_id: step.function_name for step in self.steps(self.data.id) if is_outcome(step)}
        for key in self.data.calls:
            if key not in children:
                raise ValueError(f"no recorded reply makes the tool call {key}")
            if children[key] in outcomes:
                raise ValueError(f"the tool call {key} is recorded twice")
        for number, name in outcomes.items():
            if steps.get(number) != name:
                raise ValueError(f"no recorded reply makes the tool call of step {number} ({name[:40]!r})")

    def story(self) -> RunHistory:
        """Return the run's story as far as it is recorded."""
        return story(self, self.row)

    def document(self) -> dict[str, object]:
        """Return the run as plain JSON data."""
        return self.data.model_dump(mode="json", exclude_none=True)

    def steps(self, workflow_id: str) -> list[StepRow]:
        """Return the recorded steps of the run or of a tool call, in order."""
        call = self.data.calls.get(workflow_id.removeprefix(f"{self.data.id}/"))
        steps = self.data.steps if workflow_id == self.data.id else [] if call is None else call.steps
        return [self._step(workflow_id, step) for step in sorted(steps, key=lambda step: step.number)]

    def _step(self, workflow_id: str, step: StepData) -> StepRow:
        return StepRow(
            workflow_id=workflow_id,
            function_id=step.number,
            function_name=step.name,
            output=step.value if step.record is None else step.record,
            error=step.error,
            child_workflow_id=None if step.call is None else f"{self.data.id}/{step.call}",
            started_at_epoch_ms=step.started,
            completed_at_epoch_ms=step.finished,
        )

    def children(self, run_id: str, *, load_output: bool = False) -> list[RunRow]:
        """Return the rows of the run's undecorated tool calls."""
        return [
            RunRow(
                workflow_id=f"{run_id}/{key}",
                name=records_names.TOOL,
                status="CANCELLED" if call.output is None else "SUCCESS",
                executor_id=None,
                queue_name=None,
                app_version=records_names.WIRE,
                parent_workflow_id=run_id,
                created_at=call.started,
                updated_at=call.finished or call.started,
                completed_at=call.finished,
                attributes=None,
                output=call.output if load_output else None,
            )
            for key, call in self.data.calls.items()
        ]

    def start_record(self, row: RunRow) -> base.Record:
        """Return the run's input."""
        return base.read(self.data.start, f"the input of run {self.data.id!r}")

    def step_record(self, step: StepRow, row: RunRow) -> base.Record:
        """Return the record of a step."""
        return base.read(step.output, f"step {step.function_id} of run {self.data.id!r}")

    def reply(self, step: StepRow, row: RunRow) -> Reply:
        """Return the reply in the record of a model's step."""
        return runs.read_reply(self.step_record(step, row))

    def output_record(self, child: RunRow, row: RunRow) -> base.Record:
        """Return the output of an undecorated tool call."""
        return base.read(child.output, f"tool call {child.workflow_id!r}")

    def failure_record(self, row: RunRow) -> base.Record | None:
        """Return the error that ended the run."""
        return None if self.data.failure is None else {"run_id": self.data.id, **self.data.failure}


def _check_key(what: str, key: str) -> None:
    if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", key) is None:
        raise ValueError(f"{what} {key[:40]!a}, which is not <turn>.<index>")


def _wrong(reason: str) -> errors.ConfigurationError:
    return errors.ConfigurationError(
        f"this is not a run that `durable-swarm export` wrote, or it was changed: {reason}. Export the run again"
    )


def _checked(data: object) -> RunData:
    if isinstance(data, str | bytes | os.PathLike):
        raise errors.ConfigurationError(
            "a run is given here as its document, a dictionary; of a file that is json.loads(Path(...).read_text())"
        )
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _wrong(f"it is not an object with format {FORMAT!r}")
    version = data.get("version")
    if isinstance(version, int) and version > VERSION:
        raise errors.ConfigurationError(
            f"the run was exported by a newer version of durable-swarm (format {version}, this one reads up to "
            f"{VERSION}); upgrade the package"
        )
    try:
        return RunData.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _wrong(f"{where}: {first['msg']}"[:300]) from None


def renamed(document: Any, run_id: str) -> object:
    """Return the document of a run with another id. Raises `ConfigurationError` for an invalid id."""
    Exported(document)
    named = {**document, "id": records_names.check_id(run_id)}
    return {**named, "failure": {**document["failure"], "run_id": run_id}} if "failure" in document else named


def read_document(text: str | bytes) -> object:
    """Return the JSON value of a file's text. Raises `ConfigurationError` if it has none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is not JSON ({error!s:.100})") from None


def export(store: Store, row: RunRow, redact: Redact | None = None) -> dict[str, object]:
    """Return a run as a document. Raises `Unreadable` if its records cannot be decoded here."""
    start, about = standalone(store, row), row.attributes if isinstance(row.attributes, dict) else {}
    state = state_of(row)
    # The steps first, because the run may be in progress: only calls made by a reply that was read here count.
    steps = [_step(store, row, step) for step in store.steps(row.workflow_id)]
    made, _ = _calls_made(start, steps)
    children = {key.rpartition("/")[2]: child for key, child in calls_of(store, row).items()}
    data = RunData(
        format="durable-swarm run",
        version=VERSION,
        package=_package(),
        id=row.workflow_id,
        status=state,
        swarm=str(about.get("swarm") or ""),
        agent=str(about.get("agent") or start["agent"]),
        at=float(about.get("at") or row.created_at / 1000),
        forked_from=about.get("forked_from"),
        turn=about.get("turn"),
        started=int(row.created_at),
        finished=int(row.updated_at) if state in ENDED else None,
        start=start,
        steps=steps,
        calls={key: _call(store, row, child) for key, child in children.items() if key in made},
        failure=store.failure_record(row),
    )
    document = data.model_dump(mode="json", exclude_none=True)
    if redact is not None:
        document = redacted(document, redact)
    return Exported(document).document()


def _calls_made(start: base.Record, steps: list[StepData]) -> tuple[dict[str, int], dict[int, str]]:
    """Return the tool calls that the replies among a run's steps make: those that may be workflows, and all of them.

    The former are the numbers of their steps by the keys of `calls`, the latter the names of their steps by number.
    """
    keys: dict[str, int] = {}
    names: dict[int, str] = {}
    replies = [step for step in sorted(steps, key=lambda step: step.number) if step.name.startswith("model:")]
    for turn, step in enumerate(replies if start.get("execute_tools", True) else [], len(start.get("kept", []))):
        for call, number in numbered(runs.read_reply(step.record or {}).calls, step.number):
            if call.plan == "step":
                names[number] = records_names.tool_step(call.tool)
            elif call.plan not in NOT_MADE:
                names[number] = records_names.TOOL
                keys[f"{turn}.{call.index}"] = number
    return keys, names


def _package() -> str | None:
    try:
        return metadata.version("durable-swarm")
    except metadata.PackageNotFoundError:
        return None


def _step(store: Rows, row: RunRow, step: StepRow) -> StepData:
    record = value = None
    if is_record(step.output):
        record = runs.without_numbers(store.step_record(step, row))
    elif step.output is not None:
        value = codec.encode(step.output)
    began = step.child_workflow_id if step.function_name == records_names.TOOL else None
    return StepData(
        number=step.function_id,
        name=step.function_name,
        record=record,
        value=value,
        error=None if step.error is None else str(step.error),
        call=None if began is None else began.rpartition("/")[2],
        started=_whole(step.started_at_epoch_ms),
        finished=_whole(step.completed_at_epoch_ms),
    )


def _whole(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else int(milliseconds)


def is_record(output: object) -> TypeGuard[base.Record]:
    """Return True if a step's output is one of our records. Steps of DBOS and of the program have none."""
    return isinstance(output, dict) and isinstance(output.get("v"), int)


def _call(store: Rows, row: RunRow, child: RunRow) -> CallData:
    ended = child.status == "SUCCESS"
    return CallData(
        output=runs.without_numbers(store.output_record(child, row)) if ended else None,
        started=int(child.created_at),  # SQLite returns fractions, from Python 3.12 on.
        finished=int(child.completed_at or child.updated_at) if ended else None,
        steps=[_step(store, row, step) for step in store.steps(child.workflow_id)],
    )
