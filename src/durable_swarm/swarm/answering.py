"""Answering requests by id: the methods that both swarms have. `Run` has the same for one run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from durable_swarm import agents, codec
from durable_swarm.codec import as_json
from durable_swarm.errors import AmbiguousAgent, InvalidAnswer, UnknownAgent
from durable_swarm.requests import Decision, Request
from durable_swarm.tools.approval import refuse_misfit
from durable_swarm.tools.calls import find_tool
from durable_swarm.validation import check_name, check_text


def fits_code(request: Request, decision: Decision) -> None:
    """Check an approval against the tool's code, if this program has it. Raises `InvalidAnswer`."""
    if request.kind in ("limit", "question"):  # Their arguments are not those of the tool.
        return
    try:
        agent = agents.find(request.agent)
    except (UnknownAgent, AmbiguousAgent):
        return
    function = find_tool(agent, request.tool)
    if function is None:
        raise InvalidAnswer(
            f"agent {request.agent!r} has no tool {request.tool!r} any more; bring it back, or reject the request",
            request_id=request.id,
        )
    refuse_misfit(function, request.id, request.arguments or {} if decision.arguments is None else decision.arguments)


def answer(value: object) -> Decision:
    """Return the decision that answers with a value. Raises `NotSerializable`."""
    return Decision("answered", codec.round_trip(value))


def approve(arguments: dict[str, Any] | None) -> Decision:
    """Return the decision that approves, perhaps with other arguments. Raises `NotSerializable`, `InvalidAnswer`."""
    if arguments is not None and not isinstance(arguments, dict):
        raise InvalidAnswer(f"arguments must be a dictionary, not a {type(arguments).__name__}")
    return Decision("approved", arguments=None if arguments is None else as_json(arguments, "arguments"))


def reject(reason: str) -> Decision:
    """Return the decision that rejects. Raises `ConfigurationError`."""
    return Decision("rejected", reason=check_text("reason", reason) if reason else "")


class Answering(ABC):
    """Answering the requests of runs, by the id of the request. A decision is taken once.

    All methods raise `AlreadyAnswered`, `RequestExpired`, `InvalidAnswer` (the request stays open) and
    `ConfigurationError` if no such request exists or its run has ended. `by` names the person who decides and is
    recorded.
    """

    @abstractmethod
    def requests(self) -> list[Request]:
        """Return the open requests of all runs, oldest first."""

    @abstractmethod
    def _decide(self, request_id: str, decision: Decision, by: str | None) -> None:
        """Take a decision, once."""

    @abstractmethod
    def _complete(self, token: str, decision: Decision, by: str | None) -> bool:
        """Post a result, once."""

    def answer(self, value: object, request_id: str, *, by: str | None = None) -> None:
        """Answer a question; or confirm that a call of unknown outcome happened, with this result."""
        self._decide(check_text("request_id", request_id), answer(value), by)

    def approve(self, request_id: str, *, arguments: dict[str, Any] | None = None, by: str | None = None) -> None:
        """Approve a call as it is shown, or with other `arguments`; or repeat a call of unknown outcome."""
        self._decide(check_text("request_id", request_id), approve(arguments), by)

    def reject(self, reason: str = "", request_id: str = "", *, by: str | None = None) -> None:
        """Reject a call; the model gets the reason."""
        self._decide(check_text("request_id", request_id), reject(reason), by)

    def complete(self, token: str, result: object, *, by: str | None = None) -> bool:
        """Post the result of a call whose tool returns `later(token)`; return True if a run waits for it.

        A result is posted once, also before the tool returns; a second raises `AlreadyAnswered`. Raises
        `NotSerializable`.
        """
        return self._complete(check_name("token", token), answer(result), by)
