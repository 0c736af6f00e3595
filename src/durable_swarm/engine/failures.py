"""How errors cross DBOS: a tool's error never becomes a step's result, an engine's error never becomes a tool's."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dbos import error as dbos_errors
from sqlalchemy.exc import SQLAlchemyError

from durable_swarm import codec, ends, errors
from durable_swarm.credentials import masked
from durable_swarm.engine import internals
from durable_swarm.engine.database import may_pass, told
from durable_swarm.engine.records import Record, failure_record, read_failure, reading
from durable_swarm.engine.signals import Failed, Held
from durable_swarm.errors import safe_text

log = logging.getLogger("durable_swarm")

ends.signal(dbos_errors.DBOSBaseException)


@contextlib.contextmanager
def users_code(step: str) -> Iterator[None]:
    """Run user code in this block: any failure of it becomes `Failed`; signals pass (see `durable_swarm.ends`)."""
    try:
        with internals.trusting():
            yield
    except BaseException as error:
        failure = ends.failure_of(error)
        if failure is not None:
            raise Failed(failure, step) from None
        ends.let_pass(error)


@contextlib.contextmanager
def engines_code(what: str) -> Iterator[None]:
    """Round the engine's code: its errors hold the run, which goes on when the cause is mended."""
    try:
        yield
    except dbos_errors.DBOSAwaitedWorkflowCancelledError as error:
        # A call is cancelled with its run only, and for the run DBOS has another signal.
        raise dbos_errors.DBOSWorkflowCancelledError(str(error)) from error
    except ends.Unable as error:
        raise Held(errors.ConfigurationError(str(error))) from error
    except dbos_errors.DBOSUnexpectedStepError as error:
        text = f"{what} does not fit the records; bring the old order and names of the steps back, or cancel the run"
        raise Held(errors.ReplayMismatch(f"{text}: {safe_text(error)[:500]}")) from error
    except Exception as error:
        if isinstance(error, errors.DurableSwarmError):
            raise Held(error, passes=may_pass(error.__cause__)) from error
        reason = told(error) if isinstance(error, SQLAlchemyError) else safe_text(error)[:500]
        unrecorded = errors.ConfigurationError(f"{what} could not be recorded or read: {reason}")
        raise Held(unrecorded, passes=may_pass(error)) from error


def step_record(value: Any) -> Record:
    """Give the record of what a `@step` returned. Raises `NotSerializable`."""
    return {"v": 1, "value": codec.encode(value, "the step's result")}


def step_failure(run_id: str, name: str, error: BaseException) -> Record:
    """Return the record of what a `@step` raised, so that it can be raised again as what it was."""
    record = failure_record(run_id, error, step=name)
    with contextlib.suppress(errors.NotSerializable):
        record["args"] = masked(codec.encode(list(error.args)))
        record["state"] = masked(codec.encode(vars(error)))
    if "state" not in record or _class_of(record["type"]) is not type(error):
        log.warning(
            "step %r raised a %s, which cannot be rebuilt from the database: after a crash the tool sees RunFailed. "
            "Define the exception at module level, with plain data as its arguments.",
            name,
            record["type"],
        )
    return {"v": 1, "failed": True, "raised": record}


@dataclass(frozen=True)
class Done:
    """How a `@step` ended: with what it returned, or with what it raised."""

    returned: Any = None
    raised: BaseException | None = None
    awaited: bool = False
    """Whether the step's function gave something to await, so that its caller awaits what was recorded, too."""

    def value(self) -> Any:
        """Return what the step returned, or raise what it raised."""
        if self.raised is not None:
            raise self.raised
        return self.returned


def step_done(record: Record) -> Done:
    """Give how a step ended, from its record. Raises `ReplayMismatch` for a record that is damaged."""
    with reading("a step"):
        awaited = record.get("awaited") is True
        if "raised" in record:
            return Done(raised=rebuild(record["raised"]), awaited=awaited)
        return Done(codec.decode(record["value"]), awaited=awaited)


def rebuild(record: Record) -> BaseException:
    """Return the recorded exception as the class it had, found by name among the modules in use; else `RunFailed`.

    No constructor runs: arguments and attributes are put back as the plain data they are.
    """
    kind = _class_of(record["type"])
    if "own" in record or kind is None or "state" not in record:
        return read_failure(record)
    args = codec.decode(record["args"])
    error = kind.__new__(kind, *args)
    error.args = tuple(args)
    vars(error).update(codec.decode(record["state"]))
    return error


def _class_of(qualified: str) -> type[BaseException] | None:
    """Find an exception class by its qualified name, without importing anything."""
    module, _, name = qualified.rpartition(".")
    # Not getattr: a module may answer for a name by importing something.
    found = getattr(sys.modules.get(module or "builtins"), "__dict__", {}).get(name)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
