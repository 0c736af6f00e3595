"""The parts of DBOS's public interface that other sub-packages use: nothing else imports `dbos`."""

from __future__ import annotations

from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowAttributes, SetWorkflowID, WorkflowSerializationFormat, error

DBOSAwaitedWorkflowCancelledError = error.DBOSAwaitedWorkflowCancelledError
DBOSBaseException = error.DBOSBaseException
DBOSUnexpectedStepError = error.DBOSUnexpectedStepError
DBOSWorkflowCancelledError = error.DBOSWorkflowCancelledError
DBOSWorkflowIDInUseError = error.DBOSWorkflowIDInUseError

__all__ = [
    "DBOS",
    "DBOSAwaitedWorkflowCancelledError",
    "DBOSBaseException",
    "DBOSClient",
    "DBOSConfig",
    "DBOSUnexpectedStepError",
    "DBOSWorkflowCancelledError",
    "DBOSWorkflowIDInUseError",
    "SetWorkflowAttributes",
    "SetWorkflowID",
    "WorkflowSerializationFormat",
]
