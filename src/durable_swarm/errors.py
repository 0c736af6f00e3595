"""The exceptions that this package raises on purpose.

    DurableSwarmError
    ├─ ConfigurationError   a fault of the program: a wrong argument, database or setting
    ├─ NotSerializable      a value that cannot be stored as JSON; carries `path`
    ├─ UnknownAgent         no agent of that name is defined in this process
    ├─ AmbiguousAgent       two different agents share one name, so neither can be chosen
    ├─ AgentChanged         an agent differs from the one that answered in the run, which is on hold
    ├─ NotInRun             a call that only makes sense inside a tool
    ├─ RunNotFound          no run of that id in this database
    ├─ RunConflict          the id belongs to a run with another agent or other messages
    ├─ SessionBusy          a run of the session is in progress
    ├─ RunCancelled         the run was cancelled
    ├─ RunFailed            the run ended with an error that was raised in another process
    ├─ ModelError           the provider refused, or could not be reached; carries `status`
    ├─ LimitReached         a limit of the run is used up; carries `limit`, `used`, `allowed`
    ├─ Blocked              a guardrail stopped the run
    ├─ InvalidOutput        the model's answers do not fit the agent's output type
    ├─ ReplayMismatch       a recorded run does not fit the code that replays it
    ├─ AlreadyAnswered      the request has its answer
    ├─ InvalidAnswer        the answer is not one of the choices
    ├─ RequestExpired       the request was not answered in time
    └─ ToolError            raised by a tool to tell the model, instead of ending the run

Each keeps its attributes through the database: `to_record` and `from_record` are the two ends of that trip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class DurableSwarmError(Exception):
    """Base of all errors of this package: a message, and the attributes the class declares."""

    def __init__(self, message: str = "", **attributes: object) -> None:
        super().__init__(message)
        self.message = message
        for name, value in attributes.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes given at construction, by name."""
        return {name: value for name, value in vars(self).items() if name != "message"}

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.attributes))


def _rebuild(kind: type[DurableSwarmError], message: str, attributes: Mapping[str, object]) -> DurableSwarmError:
    return kind(message, **attributes)


class ConfigurationError(DurableSwarmError):
    """The program, a setting or the database is invalid; the message names the remedy."""


class NotSerializable(DurableSwarmError):
    """A value cannot be stored as JSON; `path` is its position, as in `context_variables['db']`."""

    path: str = ""


class UnknownAgent(DurableSwarmError):
    """No agent called `agent` is defined in this process."""

    agent: str = ""


class AmbiguousAgent(DurableSwarmError):
    """Two different agents called `agent` exist in this process, so a recovered run cannot choose one."""

    agent: str = ""


class AgentChanged(DurableSwarmError):
    """Agent `agent` differs from the agent that answered in turn `turn` of run `run_id`, and the swarm holds such runs.

    `version` is its present fingerprint. `Run.resume()` accepts that version, and the run continues with it.
    """

    run_id: str = ""
    agent: str = ""
    turn: int = 0
    version: str = ""


class NotInRun(DurableSwarmError):
    """The call is only valid inside a tool that a run has called."""


class RunNotFound(DurableSwarmError):
    """The database holds no run `run_id`."""

    run_id: str = ""


class RunConflict(DurableSwarmError):
    """`run_id` already belongs to a run with another agent or other messages."""

    run_id: str = ""


class SessionBusy(DurableSwarmError):
    """Run `run_id` of session `session` is in progress, so the session takes no message, and is not deleted."""

    session: str = ""
    run_id: str = ""


class RunCancelled(DurableSwarmError):
    """The run `run_id` was cancelled; `Run.resume()` continues it."""

    run_id: str = ""


class RunFailed(DurableSwarmError):
    """The run `run_id` has ended with an error: raised by every later look at the failed run.

    The caller at the time got the original exception.

    `error_type` is the qualified name of the original exception, `error_message` its text and `traceback`
    the formatted traceback, all as strings: nothing of the original is executed to read them.
    """

    run_id: str = ""
    error_type: str = ""
    error_message: str = ""
    traceback: str = ""


class ModelError(DurableSwarmError):
    """A model call failed for good: after its retries, or at once when a retry could not help.

    `status` is the HTTP status or None, `error_type` the class name of the client's error, `tries` how often
    the call was made. `away` is true if the provider could not be reached, or had no capacity or quota left: the same
    call may succeed later, after `retry_after` seconds if the provider said when.
    """

    status: int | None = None
    error_type: str = ""
    tries: int = 1
    away: bool = False
    retry_after: float | None = None


class LimitReached(DurableSwarmError):
    """Run `run_id` has used up a limit: `limit` names it, `used` of `allowed` are spent (Decimals for `cost`).

    `run_id` is the run whose limit it is, for a child run perhaps that of an ancestor. `Run.extend` allows more.
    """

    run_id: str = ""
    limit: str = ""
    used: float = 0
    allowed: float = 0


class Blocked(DurableSwarmError):
    """The guardrail called `guardrail` stopped the run for `reason`. Its verdict stays: a resumed run ends the same."""

    guardrail: str = ""
    reason: str = ""


class InvalidOutput(DurableSwarmError):
    """The model's answers do not fit the agent's `output_type`; `Run.resume()` asks once more.

    `text` is the last answer, `problems` is what is wrong with it, `tries` how many answers did not fit.
    """

    text: str = ""
    problems: Sequence[str] = ()
    tries: int = 1


class ReplayMismatch(DurableSwarmError):
    """A recorded run does not fit the code that replays it."""

    run_id: str = ""


class AlreadyAnswered(DurableSwarmError):
    """The request `request_id` has its answer; the first one counts."""

    request_id: str = ""


class InvalidAnswer(DurableSwarmError):
    """The answer is not one of the request's choices; the request stays open."""

    request_id: str = ""


class RequestExpired(DurableSwarmError):
    """The request `request_id` was not answered in time."""

    request_id: str = ""


class ToolError(DurableSwarmError):
    """Raise it in a tool to send the model an error text; the run continues."""


def to_record(error: DurableSwarmError) -> dict[str, Any]:
    """Return the error as plain data: `{"type", "message", "attributes"}`."""
    return {"type": type(error).__name__, "message": error.message, "attributes": error.attributes}


def from_record(record: Mapping[str, Any]) -> DurableSwarmError:
    """Rebuild an error from `to_record`'s data. A type this version does not know becomes a `DurableSwarmError`."""
    kinds = {kind.__name__: kind for kind in DurableSwarmError.__subclasses__()}
    kind = kinds.get(record["type"], DurableSwarmError)
    known = {name: value for name, value in record["attributes"].items() if hasattr(kind, name)}
    return kind(record["message"], **known)


def qualified_name(error: BaseException) -> str:
    """Return the error's class with its module; a built-in one by its name alone."""
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def safe_text(error: BaseException) -> str:
    """Return the error's text, even if making the text raises."""
    try:
        return str(error)
    except BaseException:
        return f"<{type(error).__name__} without text>"
