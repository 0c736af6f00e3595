"""`durable-swarm demo approval`: a refund over 100 waits for a person's approval, for as long as it takes.

Kill it while it waits, approve it from another terminal, start it again: it continues. The agent is the whole program;
a script replaces the model.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

from durable_swarm import Agent, DurableSwarm, Run, tool
from durable_swarm.demos.refund import command, print_transcript
from durable_swarm.display import one_line
from durable_swarm.service import NoRuns, Query, RunDetail, open_runs
from durable_swarm.testing import ScriptedModel, call

AGENT = "Cashier"
PREFIX = "demo-approval-"
DEFAULT_NAME = "Max"


@tool(approval=lambda amount: amount > 100)
def refund(customer: str, amount: int) -> str:
    """Refund an amount. Above 100 a person is asked first."""
    print(f"Refunding {amount} to {one_line(customer)} ... done", flush=True)
    return f"Refunded {amount} to {customer}."


def main(name: str | None = None, database: str | None = None) -> int:
    """Finish the demo run that waits, else start a new one; print it and return the exit code.

    `name` is the customer's, `database` a URL. Ctrl+C ends the process with 130. Raises `ConfigurationError`.
    """
    cashier = Agent(name=AGENT, instructions="Refund what customers ask for.", functions=[refund])
    found = _unfinished(database)
    run_id = f"{PREFIX}{uuid.uuid4().hex[:8]}" if found is None else found.id
    asked = _request(name or DEFAULT_NAME) if found is None else found.asked
    print(f"Run {run_id}{'' if found is None else ' continues; what is done is not done again'}.", flush=True)
    try:
        with DurableSwarm(ScriptedModel(scripted_reply), database=database) as swarm:
            run = swarm.start(cashier, asked, run_id=run_id)
            _tell_what_is_asked(run, database)
            messages = run.result().messages
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. The run keeps waiting; to continue: {command('demo', 'approval', database=database)}",
            flush=True,
        )
        os._exit(130)
    print_transcript([*asked, *messages])
    print(f"\nWho approved what: {command('show', run_id, database=database)}")
    return 0


def _request(name: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": f"I'm {name}. Please refund 50 for the book, and 250 for the bicycle."}]


def scripted_reply(request: dict[str, Any]) -> Any:
    """Answer by the content of the request alone, so that the answer is the same each time the program is started."""
    results = [message["content"] for message in request["messages"] if message["role"] == "tool"]
    if results:
        return " ".join(results)
    customer = request["messages"][-1]["content"].removeprefix("I'm ").partition(". Please")[0]
    return [call("refund", customer=customer, amount=50), call("refund", customer=customer, amount=250)]


def _unfinished(database: str | None) -> RunDetail | None:
    """Return the newest demo run that has not ended."""
    try:
        with open_runs(database) as runs:
            for status in ("waiting", "running"):
                for view in runs.list(Query(status=status, agent=AGENT)):
                    if view.id.startswith(PREFIX):
                        return runs.show(view.id)
    except NoRuns:
        pass
    return None


def _tell_what_is_asked(run: Run, database: str | None) -> None:
    """Print how to answer, once the run has a request."""
    for event in run.events():
        if event.type == "run.waiting" and run.requests():
            request = event.data["request_id"]
            print(
                f"\nThe refund of 250 waits for a yes. From another terminal, whether this program lives or not:\n"
                f"  {command('approve', request, database=database)}\n"
                f"  {command('reject', request, '--reason', 'too much', database=database)}\n"
                f"Kill it meanwhile (Ctrl+C, or kill -9 {os.getpid()}) and start it again: it continues.\n",
                flush=True,
            )
        if event.type in ("request.closed", "run.finished", "run.failed", "run.cancelled"):
            return
