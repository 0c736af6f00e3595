"""Processes that call an MCP server and die, servers that die, and what the next process does."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.mcp import mcp_tools
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import tool_contents, user
from tests.crash.lives import Lives, say
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.support import programs
from tests.support.patience import PATIENCE

SHOP = str(Path(__file__).with_name("shop.py"))
Call = tuple[str, dict[str, Any]]


@pytest.fixture
def url(fresh_sqlite: Any, tmp_path: Path) -> str:
    """The URL of a fresh SQLite file."""
    made: str = fresh_sqlite(tmp_path / "runs.sqlite")
    return made


def life(url: str, source: Any, call: Call, options: dict[str, Any], asks: bool) -> list[str]:
    """Run an agent that makes one call of the shop; say what it asks, if it does, and give what the model was told."""
    tools = mcp_tools(source, **options)
    agent = Agent(name="Clerk", functions=[tools])
    with DurableSwarm(ScriptedModel([[call], "Done"]), database=url) as swarm:
        run = swarm.start(agent, user(), run_id="r1")
        if asks:
            say([(request.kind, request.question) for request in soon(run.requests)])
        told = tool_contents(run.result(PATIENCE))
    tools.close()
    return told


@pytest.mark.parametrize(("tool", "told"), [("look", "saw crash"), ("put", "crash")])
def test_a_call_that_may_be_repeated_is_repeated_after_a_kill(
    lives: Lives, url: str, ledger: Path, tool: str, told: str
) -> None:
    """The server kills its client in the middle of the call; the next process makes the call again."""
    program = (url, [sys.executable, SHOP, str(ledger)], (tool, {"what": "crash"}), {"trust": True}, False)
    assert lives.live(life, *program, ledger=ledger.with_name("l")).killed
    [text] = lives.live(life, *program, ledger=ledger.with_name("l")).value
    assert told in text
    assert ledger.read_text().splitlines() == [f"{tool} crash"] * 2


def test_an_unknown_tool_is_never_repeated_unseen(lives: Lives, url: str, ledger: Path) -> None:
    """Without hints that are trusted, a call that a kill cut short opens a request; its answer is the result."""
    program = (url, [sys.executable, SHOP, str(ledger)], ("look", {"what": "crash"}), {})
    assert lives.live(life, *program, False, ledger=ledger.with_name("l")).killed
    second = lives.start(life, *program, True, ledger=ledger.with_name("l"))
    [(kind, question)] = second.hear()
    assert kind == "unknown_outcome"
    assert "its process ended" in question
    with open_runs(url) as opened:
        opened.inbox.answer("r1", "seen by a person", "anna")
    assert second.end().value == ["seen by a person"]
    assert ledger.read_text() == "look crash\n"


@pytest.mark.parametrize("trust", [False, True])
def test_a_question_outlives_both_processes(lives: Lives, url: str, ledger: Path, trust: bool) -> None:
    """Client and server are killed while the question is open; it is answered with neither, and neither leg repeats."""
    program = (url, [sys.executable, SHOP, str(ledger)], ("book_seats", {"show": "Hamlet"}), {"trust": trust})
    first = lives.start(life, *program, True, ledger=ledger.with_name("l"))
    assert first.hear() == [("question", "How many seats for Hamlet?")]
    first.kill()
    with open_runs(url) as opened:
        opened.inbox.answer("r1", "3", "anna")
    assert lives.live(life, *program, False, ledger=ledger.with_name("l")).value == ["3 for Hamlet"]
    assert ledger.read_text().splitlines() == ["ask Hamlet", "ask Hamlet", "book Hamlet"]


def test_a_server_that_forgets_its_question_is_given_the_answer_again(lives: Lives, url: str, ledger: Path) -> None:
    """A server with a key of its own refuses after a restart: a call that may be repeated begins anew, unasked."""
    source, options = [sys.executable, SHOP, str(ledger), "forgetful"], {"effects": {"book.seats": "idempotent"}}
    program = (url, source, ("book_seats", {"show": "Hamlet"}), options)
    first = lives.start(life, *program, True, ledger=ledger.with_name("l"))
    first.hear()
    first.kill()
    with open_runs(url) as opened:
        opened.inbox.approve("r1", {"count": 4}, "anna")
    assert lives.live(life, *program, False, ledger=ledger.with_name("l")).value == ["4 for Hamlet"]
    assert ledger.read_text().splitlines().count("book Hamlet") == 1


@pytest.mark.parametrize("trust", [True, False])
def test_a_server_that_dies_in_a_call_is_started_again(url: str, ledger: Path, trust: bool) -> None:
    """A lost connection is a crash of the call: it is repeated where that is allowed, else a person decides."""
    tools = mcp_tools([sys.executable, SHOP, str(ledger)], trust=trust)
    agent = Agent(name=unique(), functions=[tools])
    model = ScriptedModel([[("look", {"what": "exit"})], [("look", {"what": "more"})], "Done"])
    with DurableSwarm(model, database=url) as swarm:
        run = swarm.start(agent, user(), run_id="r1")
        if not trust:
            [request] = soon(run.requests)
            assert request.kind == "unknown_outcome"
            assert "was lost" in request.question
            run.approve()
        assert tool_contents(run.result(PATIENCE)) == ["saw exit", "saw more"]
    assert ledger.read_text().splitlines() == ["look exit", "look exit", "look more"]
    tools.close()


@contextlib.contextmanager
def serving(ledger: Path, port: int) -> Iterator[None]:
    """Run the shop as a server, and kill it."""
    process = programs.Program([sys.executable, SHOP, str(ledger), str(port)], stderr=subprocess.DEVNULL)
    try:
        soon(lambda: _listens(port))
        yield
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_a_server_on_the_network_may_be_started_again(url: str, ledger: Path) -> None:
    """Killed between two calls, it is connected to anew; while it is away, the model is told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tools = mcp_tools(f"http://127.0.0.1:{port}/mcp", trust=True, auth="secret")
    agent = Agent(name=unique(), functions=[tools])
    looks = [[("look", {"what": str(number)})] for number in range(3)]
    replies = [reply for look in looks for reply in (look, "Done")]
    with DurableSwarm(ScriptedModel(replies), database=url) as swarm:
        with serving(ledger, port):
            assert tool_contents(swarm.run(agent, user())) == ["saw 0"]
        [told] = tool_contents(swarm.run(agent, user()))
        assert told.startswith("Error: MCP server 'http://127.0.0.1:")
        assert "cannot be reached" in told
        with serving(ledger, port):
            assert tool_contents(swarm.run(agent, user())) == ["saw 2"]
    tools.close()
