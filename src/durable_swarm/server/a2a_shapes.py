"""The shapes of A2A: a run as a task, its events as updates, a message as the decision of what a run asks."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

from a2a.helpers.proto_helpers import get_data_parts, new_data_part, new_text_part
from a2a.types.a2a_pb2 import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from a2a.utils.errors import ContentTypeNotSupportedError

from durable_swarm.engine.api.run import Run
from durable_swarm.errors import InvalidAnswer, RunConflict
from durable_swarm.events import Event
from durable_swarm.requests import Request
from durable_swarm.runs import ENDED
from durable_swarm.server.backend import Caller, Refused
from durable_swarm.server.content import content_of, data_url, file_part, text_part
from durable_swarm.server.outcome import Outcome

STATES = {
    "queued": TaskState.TASK_STATE_SUBMITTED,
    "running": TaskState.TASK_STATE_WORKING,
    "waiting": TaskState.TASK_STATE_WORKING,
    "done": TaskState.TASK_STATE_COMPLETED,
    "failed": TaskState.TASK_STATE_FAILED,
    "cancelled": TaskState.TASK_STATE_CANCELED,
}
ANSWER = "answer"
"""The id of the one artifact of a task: the text of the last turn."""


def task_of(outcome: Outcome, context: str) -> Task:
    """Return a run as a task."""
    status, artifacts = TaskStatus(state=STATES[outcome.status]), []
    if outcome.waits_for:
        asked = [part for request in outcome.waits_for for part in _asked(request)]
        status = _said(TaskState.TASK_STATE_INPUT_REQUIRED, outcome.waits_for[0].id, asked)
    elif outcome.error:
        status = _said(STATES[outcome.status], f"{outcome.run_id}/error", [new_text_part(outcome.error)])
    elif outcome.status in ENDED and outcome.text:
        artifacts = [Artifact(artifact_id=ANSWER, parts=[new_text_part(outcome.text)])]
    return Task(id=outcome.run_id, context_id=context, status=status, artifacts=artifacts)


def _said(state: TaskState, message_id: str, parts: list[Part]) -> TaskStatus:
    return TaskStatus(state=state, message=Message(message_id=message_id, role=Role.ROLE_AGENT, parts=parts))


def _asked(request: Request) -> list[Part]:
    """Return what a run asks: as a sentence, and as data for a program."""
    known = {"request_id": request.id, "kind": request.kind, "tool": request.tool, "arguments": request.arguments}
    more = {"choices": request.choices, "schema": request.schema}
    data = {name: value for name, value in {**known, **more}.items() if value is not None}
    return [new_text_part(request.question), new_data_part(data)]


class Telling:
    """Makes updates of a run's events. The text of a turn replaces that of the one before it, and text that is void."""

    def __init__(self, task_id: str, context: str) -> None:
        self.over = False
        self._task, self._context = task_id, context
        self._adds = False

    def take(self, event: Event) -> Iterator[TaskArtifactUpdateEvent | TaskStatusUpdateEvent]:
        """Yield what an event becomes."""
        match event.type:
            case "text.delta":
                piece = Artifact(artifact_id=ANSWER, parts=[new_text_part(event.data["text"])])
                yield TaskArtifactUpdateEvent(
                    task_id=self._task, context_id=self._context, artifact=piece, append=self._adds
                )
                self._adds = True
            case "text.reset" | "turn.started":
                self._adds = False
            case "tool.started":
                status = TaskStatus(state=TaskState.TASK_STATE_WORKING)
                about = {"tool": event.data["tool"]}
                yield TaskStatusUpdateEvent(task_id=self._task, context_id=self._context, status=status, metadata=about)
            case "run.finished" | "run.failed" | "run.cancelled":
                self.over = True


def text_of(message: Message) -> str:
    """Return the text of a message."""
    return "\n".join(part.text for part in message.parts if part.text)


def content_in(message: Message) -> str | list[dict[str, object]]:
    """Return what a message says to an agent. Raises `ContentTypeNotSupportedError`."""
    try:
        return content_of(map(_part, message.parts), between="\n")
    except Refused as error:
        raise ContentTypeNotSupportedError(str(error)) from None


def _part(part: Part) -> dict[str, object]:
    match part.WhichOneof("content"):
        case "raw":
            return file_part(part.media_type, data_url(part.media_type, b64encode(part.raw).decode()))
        case "url":
            return file_part(part.media_type, part.url)
        case "data":
            return file_part("data", "")
        case _:
            return text_part(part.text)


def take(caller: Caller, run: Run, message: Message) -> None:
    """Take a message to a task: as the decision of what its run asks, or as something said to it.

    Raises `RunConflict` for a run that has ended, `InvalidAnswer` for what does not decide.
    """
    fields, text = _fields(message), text_of(message)
    if any(part.WhichOneof("content") in ("raw", "url") for part in message.parts):
        raise ContentTypeNotSupportedError("a message to a task takes parts that are text or data")
    asked = [one for one in run.requests() if fields.get("request_id", one.id) == one.id]
    if not asked:
        if run.status in ENDED:
            raise RunConflict(f"task {run.id!r} has ended; send a message without a task", run_id=run.id)
        run.say(text)
    elif len(asked) > 1:
        raise InvalidAnswer(f"task {run.id!r} asks {len(asked)} things; name one with request_id, in a part of data")
    elif asked[0].kind == "question":
        _answer(caller, asked[0], fields, text)
    elif fields.get("approve") is True or text.strip().lower() == "approve":
        caller.approve(asked[0].id, fields.get("arguments"))
    elif fields.get("approve") is False or text.strip().lower() == "reject":
        caller.reject(asked[0].id, str(fields.get("reason") or ""))
    else:
        raise InvalidAnswer("say approve or reject, or send the data {approve, reason?, arguments?}")


def _answer(caller: Caller, request: Request, fields: Mapping[str, object], text: str) -> None:
    given = {name: value for name, value in fields.items() if name != "request_id"}
    caller.answer(request.id, given if request.schema is not None else given.get("answer", text))


def _fields(message: Message) -> dict[str, Any]:
    found: dict[str, object] = {}
    for data in get_data_parts(message.parts):
        found |= _whole(data) if isinstance(data, dict) else {}
    return found


def _whole(value: object) -> Any:
    """Return data with its whole numbers as such: the protocol has only floating ones."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
