"""One run behind all doors at once: begun at one, decided at another, read at all; billed and traced once."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from durable_swarm import Agent, DurableSwarm
from durable_swarm.otel import instrument
from durable_swarm.server import app
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import unique
from tests.server.conftest import pay
from tests.server.test_a2a import BASE, anyio_backend, beside, send
from tests.server.test_agui import EVENTS

__all__ = ["anyio_backend"]

TEXT = "It is paid, and every door says so."


def lines_of(text: str) -> list[Any]:
    """Return the data of server-sent events."""
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.anyio
async def test_one_run_behind_all_doors(url: str, tmp_path: Path) -> None:
    """Begun in AG-UI, approved by A2A, read on by its events, read at the others, shown, traced, and billed once."""
    agent = Agent(name=unique(), functions=[pay])
    model = ScriptedModel([[("pay", {"amount": 5})], TEXT])
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with DurableSwarm(model, database=url, prices=lambda *_: Decimal("0.01")) as swarm:
        end = instrument(swarm, tracer_provider=provider)
        served = app(swarm, agents=[agent])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=served), base_url=BASE, timeout=200) as http:
            message = {"id": "m1", "role": "user", "content": "Pay"}
            thread = {"threadId": "t1", "runId": "r1", "messages": [message], "tools": [], "context": []}
            begun = lines_of((await http.post(f"/agui/{agent.name}", json=thread)).text)
            [EVENTS.validate_python(one) for one in begun]
            [interrupt] = begun[-1]["outcome"]["interrupts"]
            waiting = lines_of((await http.get(f"/api/chat/{agent.name}/t1/stream")).text)
            assert interrupt["id"] in [chunk.get("approvalId") for chunk in waiting]
            asked = (await http.get("/v1/responses/resp_r1")).json()
            assert interrupt["id"] in json.dumps(asked["output"])
            async with beside(served, agent.name) as client:
                done = await send(client, "approve", task_id="r1")
            assert (done.id, done.context_id) == ("r1", "t1")
            whole = lines_of((await http.get("/api/runs/r1/events")).text)
            rest = lines_of((await http.get("/api/runs/r1/events", headers={"last-event-id": "6"})).text)
            assert [event["seq"] for event in whole] == list(range(1, len(whole) + 1))
            assert rest == whole[6:]
            texts = {
                "a2a": done.artifacts[0].parts[0].text,
                "events": "".join(event["data"]["text"] for event in whole if event["type"] == "text.delta"),
                "openai": (await http.get("/v1/responses/resp_r1")).json()["output"][0]["content"][0]["text"],
                "mcp": await mcp_text(http, "r1"),
                "console": TEXT if TEXT in (await http.get("/runs/r1")).text else "",
            }
            assert texts == dict.fromkeys(texts, TEXT)
            run = (await http.get("/api/runs/r1")).json()
        end()
        served.close()
    assert (len(model.calls), run["turns"], Decimal(str(run["cost"]))) == (2, 2, Decimal("0.02"))
    spans = exporter.get_finished_spans()
    assert len({span.context.trace_id for span in spans if span.context}) == 1
    names = [span.name.split()[0] for span in spans]
    assert (names.count("invoke_agent"), names.count("chat"), names.count("execute_tool")) == (1, 2, 1)


async def mcp_text(http: httpx.AsyncClient, run_id: str) -> str:
    """Read a run by the tool of the MCP server."""
    params = {"name": "get_run", "arguments": {"run_id": run_id}}
    headers = {"accept": "application/json, text/event-stream"}
    answer = await http.post(
        "/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, headers=headers
    )
    return str(lines_of(answer.text)[-1]["result"]["content"][0]["text"])
