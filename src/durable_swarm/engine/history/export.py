"""A run as one JSON document: writing it, with secrets masked, and reading it back as rows.

The document holds the records as the database has them, opened by the codec if there is one, and the facts of their
rows. `Exported` gives it the face of a database, so that whatever reads a run reads a document too.
"""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from types import SimpleNamespace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from durable_swarm import codec, errors
from durable_swarm.engine.history.export_redaction import Redact, redacted
from durable_swarm.engine.history.story import step_infos, story
from durable_swarm.engine.records import base, failures, runs
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.records.turns import Rows, calls_of, numbered
from durable_swarm.engine.storage.runs import Store, state_of
from durable_swarm.loop import NOT_MADE
from durable_swarm.runs import ENDED, RunHistory, State
from durable_swarm.validation import LONGEST_ID, check_name, check_text

FORMAT = "durable-swarm run"
VERSION = 1

_STATUS = {"done": "SUCCESS", "failed": "ERROR"}
"""What DBOS calls the end of a run. What had not ended when it was exported is cancelled."""

LATEST = 2**53
"""The highest time in milliseconds: JSON of other languages has no greater whole numbers."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StepData(_Part):
    """A recorded step: `record` is ours, `value` what another step gave (a sleep), `call` the tool call it began."""

    number: int = Field(ge=0, lt=2**31)
    name: str
    record: dict[str, Any] | None = None
    value: Any = None
    error: str | None = None
    call: str | None = None
    started: int | None = Field(None, ge=0, le=LATEST)
    finished: int | None = Field(None, ge=0, le=LATEST)


class CallData(_Part):
    """An undecorated tool call with the steps inside it; `output` is there once it has ended."""

    output: dict[str, Any] | None = None
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
    start: dict[str, Any]
    steps: list[StepData] = []
    calls: dict[str, CallData] = {}
    failure: dict[str, Any] | None = None


_MISFITS: tuple[type[Exception], ...] = (
    *(errors.ReplayMismatch, errors.NotSerializable),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
)
"""What reading a document raises that is not what this module wrote."""


class Exported:
    """The one run of a document, read as rows of a database are. Raises `ConfigurationError` for any other document."""

    def __init__(self, data: Any) -> None:
        self.data = _checked(data)
        self.row = self._row()
        try:
            self._check()
        except _MISFITS as error:
            raise _wrong(f"{error!s:.300}") from error

    def _row(self) -> Any:
        data = self.data
        about = {"agent": data.agent, "swarm": data.swarm, "at": data.at}
        if data.forked_from is not None:
            about |= {"forked_from": data.forked_from, "turn": data.turn}
        return SimpleNamespace(
            workflow_id=data.id,
            status=_STATUS.get(data.status, "CANCELLED"),
            queue_name=None,
            attributes=about,
            created_at=data.started,
            updated_at=data.finished or data.started,
            error=None if data.failure is None else SimpleNamespace(data=data.failure),
        )

    def _check(self) -> None:
        """Read everything once, so that nothing that cannot be read is ever stored."""
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
        told = self.story()
        self._check_calls()
        step_infos(self, self.row)
        if self.data.status == "done" and told.ending is None:
            raise ValueError("the run is done, but its records are not complete")

    def _check_calls(self) -> None:
        """Refuse results of calls that no recorded reply makes: nobody would see them until the run used them."""
        children, steps = _calls_made(self.data.start, self.data.steps)
        for key in self.data.calls:
            if key not in children:
                raise ValueError(f"no recorded reply makes the tool call {key}")
        for step in self.data.steps:
            if step.name.startswith("tool:") and steps.get(step.number) != step.name:
                raise ValueError(f"no recorded reply makes the tool call of step {step.number} ({step.name[:40]!r})")

    def story(self) -> RunHistory:
        """Tell the run's story as far as it is recorded."""
        return story(self, self.row)

    def document(self) -> dict[str, Any]:
        """Give the run as plain JSON data."""
        return self.data.model_dump(mode="json", exclude_none=True)

    def steps(self, workflow_id: str) -> list[Any]:
        """Give the recorded steps of the run or of a tool call, in order."""
        call = self.data.calls.get(workflow_id.removeprefix(f"{self.data.id}/"))
        steps = self.data.steps if workflow_id == self.data.id else [] if call is None else call.steps
        return [self._step(workflow_id, step) for step in sorted(steps, key=lambda step: step.number)]

    def _step(self, workflow_id: str, step: StepData) -> Any:
        return SimpleNamespace(
            workflow_id=workflow_id,
            function_id=step.number,
            function_name=step.name,
            output=step.value if step.record is None else step.record,
            error=step.error,
            child_workflow_id=None if step.call is None else f"{self.data.id}/{step.call}",
            started_at_epoch_ms=step.started,
            completed_at_epoch_ms=step.finished,
        )

    def children(self, run_id: str, *, load_output: bool = False) -> list[Any]:
        """Give the rows of the run's undecorated tool calls."""
        return [
            SimpleNamespace(
                workflow_id=f"{run_id}/{key}",
                status="CANCELLED" if call.output is None else "SUCCESS",
                output=call.output if load_output else None,
                created_at=call.started,
                completed_at=call.finished,
                updated_at=call.finished or call.started,
            )
            for key, call in self.data.calls.items()
        ]

    def start_record(self, row: Any) -> base.Record:
        """Give what the run was started with."""
        return base.read(self.data.start, f"the input of run {self.data.id!r}")

    def step_record(self, step: Any, row: Any) -> base.Record:
        """Give the record of a step."""
        return base.read(step.output, f"step {step.function_id} of run {self.data.id!r}")

    def output_record(self, child: Any, row: Any) -> base.Record:
        """Give what an undecorated tool call gave."""
        return base.read(child.output, f"tool call {child.workflow_id!r}")

    def failure_record(self, row: Any) -> base.Record | None:
        """Give the error that ended the run."""
        return None if self.data.failure is None else {"run_id": self.data.id, **self.data.failure}


def _check_key(what: str, key: str) -> None:
    if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", key) is None:
        raise ValueError(f"{what} {key[:40]!a}, which is not <turn>.<index>")


def _wrong(reason: str) -> errors.ConfigurationError:
    return errors.ConfigurationError(
        f"this is not a run that `durable-swarm export` wrote, or it was changed: {reason}. Export the run again"
    )


def _checked(data: Any) -> RunData:
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


def renamed(document: Any, run_id: str) -> Any:
    """Give the document of a run with another id. Raises `ConfigurationError` for an id that is none."""
    Exported(document)
    named = {**document, "id": records_names.check_id(run_id)}
    return {**named, "failure": {**document["failure"], "run_id": run_id}} if "failure" in document else named


def read_document(text: str | bytes) -> Any:
    """Give the JSON value of a file's text. Raises `ConfigurationError` if it has none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is not JSON ({error!s:.100})") from None


def export(store: Store, row: Any, redact: Redact | None = None) -> dict[str, Any]:
    """Give a run as a document. Raises `Unreadable` where its records cannot be opened here."""
    start, about = store.start_record(row), row.attributes if isinstance(row.attributes, dict) else {}
    state = state_of(row)
    # The steps first: a run may be under way, and of the calls those count that a reply read here makes.
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


def _calls_made(start: base.Record, steps: list[StepData]) -> tuple[set[str], dict[int, str]]:
    """Give which tool calls the replies among a run's steps make: keys of `calls`, and step names by their numbers."""
    keys: set[str] = set()
    names: dict[int, str] = {}
    replies = [step for step in sorted(steps, key=lambda step: step.number) if step.name.startswith("model:")]
    for turn, step in enumerate(replies if start.get("execute_tools", True) else [], len(start.get("kept", []))):
        for call, number in numbered(runs.read_reply(step.record or {}).calls, step.number):
            if call.plan == "step":
                names[number] = records_names.tool_step(call.tool)
            elif call.plan not in NOT_MADE:
                keys.add(f"{turn}.{call.index}")
    return keys, names


def _package() -> str | None:
    try:
        return metadata.version("durable-swarm")
    except metadata.PackageNotFoundError:
        return None


def _step(store: Rows, row: Any, step: Any) -> StepData:
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


def is_record(output: Any) -> bool:
    """Whether what a step gave is a record of ours: steps of DBOS's own, and of the program's, have none."""
    return isinstance(output, dict) and isinstance(output.get("v"), int)


def _call(store: Rows, row: Any, child: Any) -> CallData:
    ended = child.status == "SUCCESS"
    return CallData(
        output=runs.without_numbers(store.output_record(child, row)) if ended else None,
        started=int(child.created_at),  # SQLite gives fractions, from Python 3.12 on.
        finished=int(child.completed_at or child.updated_at) if ended else None,
        steps=[_step(store, row, step) for step in store.steps(child.workflow_id)],
    )
