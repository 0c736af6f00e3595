"""The parts of DBOS's public interface that other sub-packages use: nothing else imports `dbos`."""

from __future__ import annotations

from dbos import DBOS, SetWorkflowAttributes, SetWorkflowID, error

DBOSAwaitedWorkflowCancelledError = error.DBOSAwaitedWorkflowCancelledError
DBOSBaseException = error.DBOSBaseException
DBOSUnexpectedStepError = error.DBOSUnexpectedStepError
DBOSWorkflowCancelledError = error.DBOSWorkflowCancelledError

__all__ = [
    "DBOS",
    "DBOSAwaitedWorkflowCancelledError",
    "DBOSBaseException",
    "DBOSUnexpectedStepError",
    "DBOSWorkflowCancelledError",
    "SetWorkflowAttributes",
    "SetWorkflowID",
]
