"""Records of errors: of steps, calls and runs."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from dataclasses import dataclass

from durable_swarm import codec, errors
from durable_swarm.credentials import masked, without_secrets
from durable_swarm.engine.records.base import Record, _slim, reading
from durable_swarm.errors import qualified_name, safe_text

log = logging.getLogger("durable_swarm")


def step_record(value: object) -> Record:
    """Return the record of a `@step`'s return value. Raises `NotSerializable`."""
    return {"v": 1, "value": codec.encode(value, "the step's result")}


def step_failure(run_id: str, name: str, error: BaseException) -> Record:
    """Return the record of an exception that a `@step` raised, so that replay raises the same class."""
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


def raised_text(failure: Record) -> str:
    """Return the class and the message of the exception in a record of `failure_record`, in one text."""
    return f"{failure['type']}: {codec.decode(failure.get('message', ''))}"


@dataclass(frozen=True)
class Done:
    """The outcome of a `@step`: its return value or its exception."""

    returned: object = None
    raised: BaseException | None = None
    awaited: bool = False
    """True if the step's function returned an awaitable, so that its caller awaits the recorded value, too."""

    def value(self) -> object:
        """Return the step's value, or raise its exception."""
        if self.raised is not None:
            raise self.raised
        return self.returned


def step_done(record: Record) -> Done:
    """Return the outcome of a step from its record. Raises `ReplayMismatch` for a damaged record."""
    with reading("a step"):
        awaited = record.get("awaited") is True
        if "raised" in record:
            return Done(raised=rebuild(record["raised"]), awaited=awaited)
        return Done(codec.decode(record["value"]), awaited=awaited)


def rebuild(record: Record) -> BaseException:
    """Return the recorded exception in its original class, found by name among the loaded modules; else `RunFailed`.

    No constructor runs: arguments and attributes are restored as plain data.
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
    # Not getattr, because a module's `__getattr__` may import something.
    found = getattr(sys.modules.get(module or "builtins"), "__dict__", {}).get(name)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def failure_record(run_id: str, error: BaseException, *, step: str = "") -> Record:
    """Return an error that ended a run as plain data, without secrets."""
    lines = traceback.format_exception(type(error), error, error.__traceback__, limit=-20)
    return _slim(
        run_id=run_id,
        step=step,
        type=qualified_name(error),
        message=codec.encode(without_secrets(safe_text(error))),
        traceback=codec.encode(without_secrets("".join(lines))),
        own=_own(error),
    )


def _own(error: BaseException) -> Record | None:
    """Return the record of one of this package's own errors with its attributes. A program's subclass is foreign."""
    if isinstance(error, errors.DurableSwarmError) and type(error).__module__ == errors.__name__:
        record: Record = codec.encode(masked(errors.to_record(error)))
        return record
    return None


def read_failure(record: Record) -> Exception:
    """Return the error to raise for a recorded failure: our own errors as they were, others as `RunFailed`."""
    with reading("the failure of a run"):
        if "own" in record:
            return errors.from_record(codec.decode(record["own"]))
        text = str(codec.decode(record.get("message", "")))
        return errors.RunFailed(
            f"run {record['run_id']!r} failed with {record['type']}: {text}",
            run_id=record["run_id"],
            error_type=str(record["type"]),
            error_message=text,
            traceback=str(codec.decode(record.get("traceback", ""))),
        )
