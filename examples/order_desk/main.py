"""An order desk on the web: a page that asks an agent, follows its run live, and approves refunds.

    pip install fastapi uvicorn
    durable-swarm run --mock -m uvicorn main:app             # or set OPENAI_API_KEY, and: uvicorn main:app

Kill the server while it works and start it again: the page reconnects, and the run continues.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

from durable_swarm import Agent, AlreadyAnswered, DurableSwarm, RunNotFound, tool


def look_up_order(order_number: int) -> str:
    """Look up an order."""
    return f"Order {order_number}: a lamp for 120 euros, shipped yesterday."


@tool(approval=True, effect="once")
def refund_order(order_number: int) -> str:
    """Refund an order. A person approves it on the page."""
    print(f"refunding order {order_number}")
    return f"Order {order_number} is refunded."


desk = Agent(
    name="Order desk", instructions="Help customers with their orders.", functions=[look_up_order, refund_order]
)
swarm = DurableSwarm()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Continue what an earlier process has left, and close at the end."""
    await swarm.recover_async()
    yield
    swarm.close()


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    """A question of a customer; the page makes an id, so that a repeated request asks nothing twice."""

    text: str
    id: str | None = None


class Verdict(BaseModel):
    """The decision about a refund."""

    approve: bool
    by: str = "the web page"


@app.get("/")
async def page() -> FileResponse:
    """Show the page."""
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/runs")
async def ask(question: Question) -> dict[str, str]:
    """Start a run, which continues in the background."""
    run_id = question.id or uuid.uuid4().hex
    run = await swarm.start_async(desk, [{"role": "user", "content": question.text}], run_id=run_id)
    return {"id": run.id}


@app.get("/runs/{run_id}/events")
async def events(run_id: str, last_event_id: int = Header(0)) -> StreamingResponse:
    """Send the events of a run; a browser that reconnects says the number of the last one that it has."""
    try:
        run = await swarm.get_async(run_id)
    except RunNotFound:
        raise HTTPException(404, "there is no such run") from None

    async def lines() -> AsyncIterator[str]:
        async for event in run.events_async(after=last_event_id):
            yield f"id: {event.seq}\nevent: {event.type}\ndata: {json.dumps(event.data)}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


@app.post("/runs/{run_id}/verdict")
async def decide(run_id: str, verdict: Verdict) -> dict[str, str]:
    """Approve or reject the refund that a run asks for. Put a login before this in a real program."""
    run = await swarm.get_async(run_id)
    try:
        if verdict.approve:
            await run.approve_async(by=verdict.by)
        else:
            await run.reject_async("no refund", by=verdict.by)
    except AlreadyAnswered:
        raise HTTPException(409, "somebody else has decided") from None
    return {"status": "decided"}
