"""Errors at the border between the engine and the user's code."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import sqlalchemy
from dbos import error as dbos_errors

from durable_swarm import ConfigurationError, errors
from durable_swarm.engine.database.diagnosis import unusable
from durable_swarm.engine.execution.errors import engines_code, users_code
from durable_swarm.engine.records.failures import rebuild, step_done, step_failure
from durable_swarm.engine.signals import RunHeld, StepFailed

FOREIGN = [kind for _, kind in inspect.getmembers(dbos_errors, inspect.isclass) if issubclass(kind, Exception)]


class Declined(Exception):
    """An exception as programs define them, with an attribute of its own."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
        self.advice = "call the bank"


def made(kind: type[Exception]) -> Exception:
    """Give an instance without caring for its constructor."""
    error = kind.__new__(kind)
    error.args = ("text",)
    vars(error).update(message="text", dbos_error_code=None)
    return error


@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: kind.__name__)
def test_every_error_of_the_engine_holds_the_run_with_an_error_of_ours(kind: type[Exception]) -> None:
    """Whatever DBOS raises round a checkpoint becomes `RunHeld` with one of our errors, or DBOS's signal to stop."""
    with pytest.raises((RunHeld, dbos_errors.DBOSWorkflowCancelledError)) as signal, engines_code("a step"):
        raise made(kind)
    assert not isinstance(signal.value, Exception)
    if kind is not dbos_errors.DBOSAwaitedWorkflowCancelledError:
        assert isinstance(signal.value, RunHeld)
        assert isinstance(signal.value.reason, errors.DurableSwarmError)


def test_nothing_crosses_as_an_exception() -> None:
    """Neither signal is an `Exception`, so a tool's `except Exception` lets both pass and DBOS records neither."""
    assert not issubclass(StepFailed, Exception)
    assert not issubclass(RunHeld, Exception)


def test_what_a_tool_raises_ends_the_run_and_ctrl_c_passes() -> None:
    """An exception or `sys.exit` of the user's code is a failure of the run; Ctrl+C is none."""
    for raised in (ValueError("x"), SystemExit(3), MemoryError()):
        with pytest.raises(StepFailed) as failed, users_code("tool:x"):
            raise raised
        assert failed.value.error is raised
    with pytest.raises(KeyboardInterrupt), users_code("tool:x"):
        raise KeyboardInterrupt


def test_a_step_raises_again_what_it_raised() -> None:
    """An exception of a `@step` comes back from its record as the class it was, with its attributes."""
    with pytest.raises(Declined) as declined:
        step_done(step_failure("r", "charge", Declined(51))).value()
    assert (declined.value.code, declined.value.advice, declined.value.args) == (51, "call the bank", (51,))


def test_our_own_errors_come_back_as_themselves() -> None:
    """One of this package's errors keeps its class and attributes through a step's record."""
    error = rebuild(step_failure("r", "ask", errors.ModelError("no", status=429, tries=3))["raised"])
    assert isinstance(error, errors.ModelError)
    assert (error.status, error.tries) == (429, 3)


def test_an_exception_that_cannot_be_found_again_is_told_as_such(caplog: pytest.LogCaptureFixture) -> None:
    """A class that is no module's, or holds what is no data, comes back as `RunFailed`, and a log line warns of it."""

    class Local(Exception):
        pass

    unstorable: Any = ValueError("x", object())
    for raised in (Local("a"), unstorable):
        error = rebuild(step_failure("r", "charge", raised)["raised"])
        assert isinstance(error, errors.RunFailed)
        assert error.error_type.endswith(type(raised).__name__)
    assert caplog.text.count("cannot be rebuilt") == 2


def test_what_the_database_refused_in_passing_is_tried_again() -> None:
    """An error of ours that the database's trouble caused holds the run for as long as that lasts, and not for good."""
    url = sqlalchemy.make_url("sqlite:///runs.sqlite")
    lost = sqlalchemy.exc.OperationalError("INSERT", {}, Exception("disk I/O error"))
    with pytest.raises(RunHeld) as passing, engines_code("a request"):
        raise unusable(url, lost) from lost
    with pytest.raises(RunHeld) as lasting, engines_code("a request"):
        raise ConfigurationError("no such request")
    assert (passing.value.passes, lasting.value.passes) == (True, False)
