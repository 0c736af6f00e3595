"""Clients and servers of others, on Node and in Python: `make peers` installs them and runs these tests."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.mcp import mcp_tools
from durable_swarm.testing import ScriptedModel
from tests.crash.test_requests import soon
from tests.engine.helpers import unique

FOLDER = os.environ.get("DURABLE_SWARM_PEERS", "")
SCRIPTS = Path(__file__).parents[2] / "scripts" / "peers"
TEXT = "This is a long answer, of which every word must arrive, whichever server says it."
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="`make peers` installs what these need"),
]

PROGRAM = f"""
from durable_swarm import Agent, DurableSwarm, tool
from durable_swarm.testing import ScriptedModel

@tool(approval=True)
def pay(amount: int) -> str:
    return f"paid {{amount}}"

def reply(request):
    last = request["messages"][-1]
    if last["role"] == "tool":
        return "It is paid."
    return [("pay", {{"amount": 5}})] if "pay" in last["content"] else {TEXT!r}

clerk = Agent(name="Clerk", functions=[pay])
swarm = DurableSwarm(ScriptedModel([reply] * 9, pace=0.1), database="sqlite:///runs.sqlite")
"""


def free_port() -> int:
    """Return a port for servers that follow each other on it."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextmanager
def serving(folder: Path, port: int) -> Iterator[str]:
    """Serve the program on a port, and kill the server; give its address."""
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "durable_swarm", "serve", "program:swarm", "--port", str(port)]
    environment = {**os.environ, "DURABLE_SWARM_SERVER_TOKEN": "secret"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert "is served" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def started(script: str, base: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script of a peer. It is copied, because Node looks for its packages beside it."""
    copy = Path(FOLDER) / script
    copy.write_text((SCRIPTS / script).read_text())
    command = [str(Path(FOLDER) / "node_modules/.bin/node"), str(copy), base, "secret", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said_by(script: str, base: str, *arguments: str) -> Any:
    """Return what a script prints."""
    output, errors = started(script, base, *arguments).communicate(timeout=120)
    assert output, errors
    return json.loads(output.splitlines()[-1])


def test_the_ai_sdk_reads_on_after_a_kill(tmp_path: Path) -> None:
    """The server is killed in the middle of a sentence; from the next one the SDK gets the whole message."""
    port = free_port()
    with serving(tmp_path, port) as base:
        talk = started("ai_sdk.mjs", base, "talk", "c1")
        assert talk.stdout
        while len(json.loads(talk.stdout.readline())) < 10:
            pass
    talk.communicate(timeout=200)
    with serving(tmp_path, port) as base:
        assert said_by("ai_sdk.mjs", base, "resume", "c1") == TEXT
        assert said_by("ai_sdk.mjs", base, "resume", "c1") is None


def test_the_ai_sdk_approves(tmp_path: Path) -> None:
    """The SDK's chat asks, approves what the run asks, and has the result in one message."""
    with serving(tmp_path, free_port()) as base:
        found = said_by("ai_sdk.mjs", base, "pay", "c2")
    assert found == {"messages": 2, "text": "It is paid.", "state": "output-available", "output": "paid 5"}


def test_ag_uis_agent_answers_an_interrupt(tmp_path: Path) -> None:
    """`HttpAgent` has the interrupt, resumes, and ends with the tool's result and the answer."""
    with serving(tmp_path, free_port()) as base:
        found = said_by("agui.mjs", base, "t1")
    assert (found["interrupts"], found["left"]) == (1, 0)
    assert [message["role"] for message in found["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert found["messages"][-1]["content"] == "It is paid."


def test_a2as_client_in_javascript(tmp_path: Path) -> None:
    """A task asks for input, is approved in a stream, and is completed."""
    with serving(tmp_path, free_port()) as base:
        told = json.dumps(said_by("a2a.mjs", base, "task-1"))
    assert "INPUT_REQUIRED" in told or '"state": 6' in told
    assert told.count("It is paid.") >= 1


def test_an_event_source_comes_back_by_itself(tmp_path: Path) -> None:
    """Two servers are killed while it reads: no number is missing or comes twice, and the text is exact."""
    port, reader = free_port(), None
    for life in range(3):
        with serving(tmp_path, port) as base, httpx.Client(headers={"Authorization": "Bearer secret"}) as client:
            if reader is None:
                body = {"agent": "Clerk", "message": "talk", "run_id": "r1"}
                assert client.post(f"{base}/api/runs", json=body).status_code == 201
                reader = started("events.mjs", base, "r1")
            assert reader.stderr
            assert reader.stdout
            if life < 2:
                while reader.stderr.readline() != f"text {life + 1}\n":
                    pass
            else:
                found = json.loads(reader.stdout.readline())
    assert reader is not None
    reader.communicate(timeout=200)
    assert found["seen"] == list(range(1, len(found["seen"]) + 1))
    assert (found["text"], found["opened"] >= 3) == (TEXT, True)


@pytest.mark.parametrize(
    ("server", "tool", "arguments", "result"),
    [
        ("mcp-server-everything", "echo", {"message": "hello"}, "hello"),
        ("mcp-server-filesystem", "read_text_file", {"path": "FOLDER/note.txt"}, "what the note says"),
    ],
)
def test_tools_of_npms_servers(tmp_path: Path, server: str, tool: str, arguments: Any, result: str) -> None:
    """Servers written in JavaScript have tools for our agents, whose calls are steps."""
    (tmp_path / "note.txt").write_text("what the note says")
    node, script = (str(Path(FOLDER) / "node_modules/.bin" / name) for name in ("node", server))
    given = {name: text.replace("FOLDER", str(tmp_path)) for name, text in arguments.items()}
    more = ["stdio"] if server.endswith("everything") else [str(tmp_path)]
    tools = mcp_tools([node, str(Path(script).resolve()), *more], only=[tool])
    agent = Agent(name=unique(), functions=[tools])
    model = ScriptedModel([[(tool, given)], "Done."])
    with DurableSwarm(model, database=f"sqlite:///{tmp_path}/runs.sqlite") as swarm:
        response = swarm.run(agent, [{"role": "user", "content": "Go"}])
    [said] = [message["content"] for message in response.messages if message["role"] == "tool"]
    assert result in said


def test_fastmcps_task_outlives_its_server(tmp_path: Path) -> None:
    """FastMCP's client answers what a task asks to a new server, after the first was killed, and has the result."""
    port, script = free_port(), str(SCRIPTS / "fastmcp_task.py")
    python = str(Path(FOLDER) / "venv/bin/python")
    with serving(tmp_path, port) as base:
        client = subprocess.Popen(
            [python, script, base, "secret"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert client.stdout
        assert "pay" in json.loads(client.stdout.readline())["asked"]
    with serving(tmp_path, port) as base, httpx.Client(headers={"Authorization": "Bearer secret"}) as http:
        told = json.loads(client.communicate("\n", timeout=200)[0].splitlines()[-1])
        assert (told["said"], told["again"]) == ("It is paid.", TEXT)
        assert http.get(f"{base}/api/runs/{told['task']}").json()["status"] == "done"


CONFORMING_SERVER = """
import sys, uvicorn
from durable_swarm import Agent, DurableSwarm
from durable_swarm.server.doors import Server
from durable_swarm.server.guard import LOOPBACK, Access
from durable_swarm.testing import ScriptedModel

clerk = Agent(name="Clerk")
swarm = DurableSwarm(ScriptedModel(lambda _: "Hello."), database="sqlite:///runs.sqlite")
# As `serve`, but without the token, which the suite cannot show.
served = Server(swarm, None, ["mcp"], Access(hosts=LOOPBACK), console=False, read_only=False)
uvicorn.run(served, port=int(sys.argv[1]), log_level="error")
"""
CONFORMING_CLIENT = """
import sys
from durable_swarm import Agent, Swarm
from durable_swarm.mcp import mcp_tools
from durable_swarm.testing import ScriptedModel

def reply(request):
    called = {call["function"]["name"] for said in request["messages"] for call in said.get("tool_calls") or []}
    for tool in (one["function"] for one in request.get("tools") or []):
        if tool["name"] not in called:
            return [(tool["name"], {name: 5 for name in tool["parameters"].get("properties", {})})]
    return "Done."

agent = Agent(name="Caller", functions=[mcp_tools(sys.argv[-1])])
Swarm(ScriptedModel(reply, strict=False)).run(agent, [{"role": "user", "content": "Call every tool."}])
"""


SERVER_SCENARIOS = ("server-initialize", "ping", "tools-list", "tools-call-error", "dns-rebinding-protection")
CLIENT_SCENARIOS = ("initialize", "tools_call", "sse-retry")
NOT_OURS = {
    # Of servers.
    "logging-set-level": "for servers with the capability `logging`, which is deprecated; this one has no log to send",
    "server-sse-polling": "calls a tool of its own in a session; this server keeps none: any process answers",
    "server-sse-multiple-streams": "checks nothing without a session; this server keeps none",
    "completion-": "for servers with the capability `completions`",
    "resources-": "for servers with resources",
    "prompts-": "for servers with prompts",
    "tools-call-": "calls tools of its own reference server; the result of a mistake is checked",
    "json-schema-": "lists a tool of its own reference server",
    "elicitation-sep1034-defaults": "calls a tool of its own, which asks in the middle of a call",
    "elicitation-sep1330-enums": "calls a tool of its own, which asks in the middle of a call",
    # Of clients.
    "elicitation-sep1034-client-defaults": "wants a question in the middle of a call accepted unseen; "
    "ours are for people, who may need days, so it is declined",
    "auth/": "sign-ins are the SDK's",
}
"""The scenarios, by name or by its beginning, that do not apply, with the reason."""


def test_each_scenario_of_the_suite_is_decided_about(tmp_path: Path) -> None:
    """The suite has no scenario that is neither passed nor known not to apply, with a reason."""
    found = re.findall(r"^  - (\S+)", suite("list", folder=tmp_path).stdout, re.MULTILINE)
    assert len(found) > 50
    passed = {*SERVER_SCENARIOS, *CLIENT_SCENARIOS}
    assert [name for name in found if name not in passed and not name.startswith(tuple(NOT_OURS))] == []
    assert [name for name in (*passed, *NOT_OURS) if not any(one.startswith(name) for one in found)] == []


def suite(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run MCP's conformance suite."""
    modules = Path(FOLDER) / "node_modules"
    script = modules / "@modelcontextprotocol/conformance/dist/index.js"
    command = [str(modules / ".bin/node"), str(script), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def conforms(*arguments: str, folder: Path) -> str:
    """Return what MCP's conformance suite says about a scenario, if it fails."""
    done = suite(*arguments, folder=folder)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_mcp_server_conforms(tmp_path: Path) -> None:
    """What the suite asks of a server with tools."""
    port = free_port()
    (tmp_path / "served.py").write_text(CONFORMING_SERVER)
    process = subprocess.Popen([sys.executable, "served.py", str(port)], cwd=tmp_path)
    base = f"http://127.0.0.1:{port}"
    try:
        soon(lambda: _answers(base))
        for name in SERVER_SCENARIOS:
            assert not conforms("server", "--url", f"{base}/mcp", "--scenario", name, folder=tmp_path), name
    finally:
        process.kill()
        process.wait()


def _answers(base: str) -> bool:
    try:
        return httpx.get(f"{base}/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("scenario", CLIENT_SCENARIOS)
def test_the_mcp_client_conforms(scenario: str, tmp_path: Path) -> None:
    """What the suite asks of a client."""
    program = tmp_path / "caller.py"
    program.write_text(CONFORMING_CLIENT)
    assert not conforms("client", "--command", f"{sys.executable} {program}", "--scenario", scenario, folder=tmp_path)
