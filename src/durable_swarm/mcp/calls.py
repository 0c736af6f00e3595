"""One call of a server's tool, as a conversation: the server may ask back before it answers, and be asked again.

Each leg of it is a checkpoint. A question is a request of the run, and may be answered days later, in another process:
the leg that asked is not repeated there. A leg of a `once` tool is marked before it begins, so that a leg that a crash
has cut short is known, and a person decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Unpack, cast

from mcp import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolResult,
    ElicitResult,
    InputRequiredResult,
    InputResponses,
    RequestParamsMeta,
)

from durable_swarm.concurrency import LoopRuntime
from durable_swarm.errors import ConfigurationError, NotInRun, ToolError
from durable_swarm.mcp.connection import CallLost, Connection
from durable_swarm.requests import Decision, Kind, RequestSpec, fields_of
from durable_swarm.tools.context import Inside, RequestFields, calling, request_of
from durable_swarm.tools.decorators import step
from durable_swarm.tools.inside import sleep_async
from durable_swarm.types import Effect

KEY = "durable-swarm/idempotency-key"
"""Where a server finds the call's idempotency key, in the `_meta` of each request."""

TRIES = 3
"""How often a leg that may be repeated is tried when its connection is lost."""

LONGEST_PAUSE = 30.0
"""Maximum seconds between two looks at a server that asks for time."""

Record = dict[str, Any]
"""The outcome of a leg: `text` and perhaps `error`; `asks` and `state`; `lost`, why nothing is known of it; or
`forgotten`, what a server said that no longer knows what it asked, so that the call begins anew."""


class Conversation:
    """One call of a tool in a run."""

    def __init__(self, connection: Connection, tool: str, effect: Effect, arguments: dict[str, object]) -> None:
        here = calling()
        if here is None or here.recorder is None:
            raise NotInRun(f"tool {tool!r} of an MCP server was called outside a run; give it to an agent")
        self._here: Inside = here
        self._recorder = here.recorder
        self._connection = connection
        self._tool = tool
        self._once = effect == "once"
        self._arguments = arguments
        self._answers: dict[str, ElicitResult] = {}
        """Answers by the question, for a server that has forgotten what it asked."""
        self._forgotten = self._pauses = 0

    async def result(self) -> str:
        """Hold the conversation and return the text for the model. Raises `ToolError` if the server reports one."""
        responses: InputResponses | None = None
        state: str | None = None
        while True:
            said = await self._leg(responses, state)
            if "text" in said:
                return _told(said)
            if "lost" in said:
                outcome = await self._outcome(said["lost"])
                if outcome is not None:
                    return outcome
                continue
            responses, state = await self._answers_to(said), said.get("state")

    async def _answers_to(self, said: Record) -> InputResponses | None:
        """Return the answers to what a leg asks; of a leg that asks nothing, wait until the server may be asked."""
        if "forgotten" in said:
            self._forgotten += 1
            if self._forgotten > TRIES:
                raise ToolError(said["forgotten"])
            return None
        if said["asks"]:
            self._pauses = 0
            return {key: await self._answer(request) for key, request in said["asks"].items()}
        await sleep_async(min(0.1 * 2**self._pauses, LONGEST_PAUSE))
        self._pauses += 1
        return None

    async def _leg(self, responses: InputResponses | None, state: str | None) -> Record:
        new = await self._recorder.mark(LoopRuntime()) if self._once else True

        @step(name=f"mcp:{self._tool}")
        async def leg() -> Record:
            return await self._sent(responses, state) if new else {"lost": "its process ended"}

        return await leg()

    async def _sent(self, responses: InputResponses | None, state: str | None) -> Record:
        meta = cast("RequestParamsMeta", {KEY: self._here.call.idempotency_key})
        for attempt in range(1 if self._once else TRIES):
            try:
                result = await self._connection.call(self._tool, self._arguments, responses, state, meta)
                return _record(result)
            except CallLost as error:
                if self._once:
                    return {"lost": str(error)}
                if attempt == TRIES - 1:
                    raise ConnectionError(str(error)) from error
            except ConfigurationError as error:
                return {"text": str(error), "error": True}
            except MCPError as error:
                if state is None or error.code != INVALID_PARAMS:
                    return {"text": error.message, "error": True}
                # The server no longer knows what it asked, such as one with a key of its own that was started again.
                return {"lost" if self._once else "forgotten": f"the server refused its own question: {error.message}"}
        raise AssertionError("unreachable")

    async def _answer(self, request: Record) -> ElicitResult:
        """Return the answer to a question of the server, from whoever decides about requests of the run."""
        params, method = request.get("params", {}), request.get("method")
        if method != "elicitation/create":
            raise ToolError(f"the MCP server asks for {method!r}, which is not supported")
        known = json.dumps(params, sort_keys=True)
        if known not in self._answers:
            asked = self._asked(params)
            self._answers[known] = _elicited(asked, await self._here.people.wait(asked))
        return self._answers[known]

    def _asked(self, params: Record) -> RequestSpec:
        message, url = str(params.get("message", "")), params.get("url")
        schema = {"type": "object", "properties": {}, **(params.get("requestedSchema") or {})}
        return self._request("question", f"{message} ({url})" if url else message, schema=schema)

    async def _outcome(self, why: str) -> str | None:
        """Ask a person about a leg whose outcome is unknown: its result, or None if it is to be repeated."""
        question = (
            f"{self._here.call.tool} was called, and its outcome is unknown: {why}. It must not be repeated unseen: "
            "did it happen? Answer with its result if it did, approve to have it repeated, reject to report to the "
            "agent that it failed"
        )
        asked = self._request("unknown_outcome", question, arguments=self._arguments)
        decision = await self._here.people.wait(asked)
        if decision.verdict == "answered":
            return str(decision.value)
        if decision.verdict == "approved":
            return None
        raise ToolError("this call failed" + (f": {decision.reason}" if decision.reason else ""))

    def _request(self, kind: Kind, question: str, **more: Unpack[RequestFields]) -> RequestSpec:
        return request_of(self._here.call, id=self._here.next_id(), kind=kind, question=question, **more)


def _told(said: Record) -> str:
    if said["error"]:
        raise ToolError(said["text"])
    return str(said["text"])


def _elicited(asked: RequestSpec, decision: Decision) -> ElicitResult:
    if decision.verdict == "rejected":
        return ElicitResult(action="decline")
    given = decision.value if decision.verdict == "answered" else decision.arguments or {}
    return ElicitResult(action="accept", content=fields_of(asked, given))


def _record(result: CallToolResult | InputRequiredResult) -> Record:
    if isinstance(result, InputRequiredResult):
        asks = {
            key: request.model_dump(mode="json", by_alias=True, exclude_none=True)
            for key, request in (result.input_requests or {}).items()
        }
        return {"asks": asks, "state": result.request_state}
    return {"text": _text(result.content, result.structured_content), "error": bool(result.is_error)}


def _text(content: Sequence[object], structured: object) -> str:
    """Return a result as text for the model; of what is not text, its kind."""
    parts = [text for block in content if (text := _block(block))]
    return "\n".join(parts) if parts or structured is None else json.dumps(structured)


def _block(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource" and hasattr(block.resource, "text"):
        return str(block.resource.text)
    if block.type in ("resource", "resource_link"):
        return f"[{block.type} {getattr(block, 'uri', None) or block.resource.uri}]"
    return f"[{block.type} {getattr(block, 'mime_type', '')}]"
