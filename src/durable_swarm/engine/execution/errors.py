"""How errors cross DBOS: a tool's error never becomes a step's result, an engine's error never becomes a tool's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm import ends, errors
from durable_swarm.engine.backend import patches
from durable_swarm.engine.backend.public import (
    DBOSAwaitedWorkflowCancelledError,
    DBOSBaseException,
    DBOSUnexpectedStepError,
    DBOSWorkflowCancelledError,
)
from durable_swarm.engine.database.diagnosis import error_text, is_transient
from durable_swarm.engine.signals import RunHeld, StepFailed
from durable_swarm.errors import safe_text

ends.signal(DBOSBaseException)


@ends.sorter
def _of_the_database(error: BaseException) -> RunHeld | None:
    """User code called this package, and the database failed: that holds the run, and is not a failure of the code."""
    if isinstance(error, errors.ConfigurationError) and is_transient(error.__cause__):
        return RunHeld(error, passes=True)
    return None


@contextlib.contextmanager
def users_code(step: str) -> Iterator[None]:
    """Run user code in this block: any failure of it becomes `StepFailed`; signals pass (see `durable_swarm.ends`).

    A forked child that comes out of the code, instead of ending, is ended here: the run continues in its parent.
    """
    process = os.getpid()
    try:
        with patches.trusting():
            yield
        _end_fork(process, step)
    except BaseException as error:
        _end_fork(process, step)
        failure = ends.failure_of(error)
        if failure is not None:
            raise StepFailed(failure, step) from None
        ends.let_pass(error)


def _end_fork(process: int, step: str) -> None:
    if os.getpid() != process:
        text = f"{step} has forked; the child must end by os._exit(), and ends here: its parent continues the run"
        os.write(2, f"durable-swarm: {text}\n".encode())
        os._exit(1)


@contextlib.contextmanager
def engines_code(what: str) -> Iterator[None]:
    """Run engine code in this block: its errors hold the run, which continues when the cause is fixed."""
    try:
        yield
    except DBOSAwaitedWorkflowCancelledError as error:
        # A call is cancelled with its run only, and for the run DBOS has another signal.
        raise DBOSWorkflowCancelledError(str(error)) from error
    except ends.Unable as error:
        raise RunHeld(errors.ConfigurationError(str(error))) from error
    except DBOSUnexpectedStepError as error:
        text = f"{what} does not fit the records; bring the old order and names of the steps back, or cancel the run"
        raise RunHeld(errors.ReplayMismatch(f"{text}: {safe_text(error)[:500]}")) from error
    except Exception as error:
        if isinstance(error, errors.DurableSwarmError):
            raise RunHeld(error, passes=is_transient(error.__cause__)) from error
        reason = error_text(error) if isinstance(error, SQLAlchemyError) else safe_text(error)[:500]
        unrecorded = errors.ConfigurationError(f"{what} could not be recorded or read: {reason}")
        raise RunHeld(unrecorded, passes=is_transient(error)) from error
