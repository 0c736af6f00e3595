"""The door `api`: its routes, shapes and statuses."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ask_human, later, tool
from durable_swarm.cli import main
from durable_swarm.server import app, server_parts, serving
from durable_swarm.server.api import OPERATIONS, Operation
from durable_swarm.server.backend import failed
from durable_swarm.server.ids import encode_id
from durable_swarm.service import Query, open_runs
from durable_swarm.testing import ScriptedModel
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.server.conftest import Serve


def events_in(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream: id, type and data."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
    return found


def ended(client: TestClient, run_id: str) -> dict[str, Any]:
    """Wait for the end of a run, and return it in full."""
    soon(lambda: client.get(f"/api/runs/{run_id}").json()["status"] in ("done", "failed", "cancelled"))
    found: dict[str, Any] = client.get(f"/api/runs/{run_id}").json()
    return found


def test_a_run_is_started_and_read(serve: Serve, capsys: pytest.CaptureFixture[str], url: str) -> None:
    """Its JSON is that of the command line; the same id again attaches, other messages conflict."""
    _, client = serve(["Hello"])
    agent = Agent(name=unique())
    body = {"agent": agent.name, "message": "Hi"}
    made = client.post("/api/runs", json=body, headers={"Idempotency-Key": "r1"})
    assert (made.status_code, made.json()["id"], made.json()["agent"]) == (201, "r1", agent.name)
    run = ended(client, "r1")
    assert [message["content"] for message in run["messages"]] == ["Hello"]
    again = client.post("/api/runs", json={**body, "run_id": "r1"})
    assert (again.status_code, again.json()["status"]) == (200, "done")
    other = client.post("/api/runs", json={**body, "message": "Other", "run_id": "r1"})
    assert (other.status_code, other.json()["error"]["type"]) == (409, "RunConflict")
    main(["show", "r1", "--json", "--database", url])
    assert json.loads(capsys.readouterr().out) == run
    main(["runs", "--json", "--database", url])
    assert json.loads(capsys.readouterr().out) == client.get("/api/runs").json()["runs"]


def test_lists_are_read_page_by_page(serve: Serve) -> None:
    """`next` is the cursor of the following page, null on the last."""
    swarm, client = serve(["Hi"] * 3)
    agent = Agent(name=unique())
    for number in range(3):
        swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id=f"r{number}")
    first = client.get("/api/runs", params={"limit": 2, "status": "done", "agent": agent.name}).json()
    assert [run["id"] for run in first["runs"]] == ["r2", "r1"]
    second = client.get("/api/runs", params={"limit": 2, "before": first["next"]}).json()
    assert ([run["id"] for run in second["runs"]], second["next"]) == (["r0"], None)
    assert client.get("/api/runs", params={"status": "odd"}).status_code == 422
    assert client.get("/api/runs", params={"limit": "0"}).status_code == 422


@pytest.mark.parametrize("route", OPERATIONS, ids=lambda route: f"{route.method} {route.path}")
def test_an_unknown_name_in_a_query_is_refused(serve: Serve, route: Operation) -> None:
    """No route leaves out what it does not know: the error names the nearest known name, or all there are."""
    _, client = serve([])
    path = re.sub(r"{\w+}", "r1", route.path)
    for name in route.query:
        wrong = name[:-2] + name[:-3:-1]  # Its last two letters are changed.
        answer = client.request(route.method, path, params={wrong: "x"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (422, "InvalidQuery")
        assert answer.json()["error"]["message"] == f"the query has no parameter {wrong!r}; did you mean {name!r}?"
    answer = client.request(route.method, path, params={"zzz": "x"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "InvalidQuery")
    assert all(name in answer.json()["error"]["message"] for name in ("zzz", *route.query))


def test_an_unknown_field_names_the_nearest(serve: Serve) -> None:
    """So is a field of a body refused, and the description of the API takes no query."""
    agent = Agent(name=unique())
    _, client = serve([], agents=[agent])
    for path, body, wrong, near in (
        ("/api/runs", {"agnt": agent.name}, "agnt", "agent"),
        ("/api/runs", {"agent": agent.name, "message": "Hi", "limits": {"reqests": 5}}, "reqests", "requests"),
        ("/api/runs/r1/fork", {"turn": 0, "mesages": []}, "mesages", "messages"),
        ("/api/requests/r1", {"verdict": "reject", "reson": "no"}, "reson", "reason"),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 422, answer.text
        assert f"{wrong!r}; did you mean {near!r}?" in answer.json()["error"]["message"]
    assert client.get("/api/openapi.json", params={"page": "2"}).status_code == 422


@pytest.mark.parametrize("session", [{}, {"session": "talk"}], ids=["alone", "in a session"])
def test_of_many_that_start_a_run_one_has_made_it(url: str, session: dict[str, str]) -> None:
    """Eight requests with one new id at the same time: one is answered with 201, the others with 200."""
    agent = Agent(name=unique())
    body = {"agent": agent.name, "message": "Hi", "run_id": "r1", **session}
    with DurableSwarm(ScriptedModel(["Hello"]), database=url) as swarm:
        served = app(swarm)
        client, line = TestClient(served), Barrier(8)

        def start(_: int) -> int:
            line.wait()
            return client.post("/api/runs", json=body).status_code

        with client, ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(start, range(8))) == [200] * 7 + [201]
            assert client.post("/api/runs", json={**body, "run_id": "r2"}).status_code == 201
        served.close()


def test_events_are_a_stream_with_ids(serve: Serve) -> None:
    """`id` is the number, `event` the type; a reader continues behind Last-Event-ID, and is told when all is read."""
    swarm, client = serve([[("look", {})], "Done"])

    def look() -> str:
        return "seen"

    agent = Agent(name=unique(), functions=[look])
    swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="r/1 ü")
    path = f"/api/runs/{encode_id('r/1 ü')}/events"
    answer = client.get(path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_in(answer.text)
    assert [int(event["id"]) for event in events] == list(range(1, len(events) + 1))
    assert [event["event"] for event in events][:2] == ["run.started", "turn.started"]
    assert events[-1]["event"] == "run.finished"
    assert events[-1]["data"]["data"]["ended_by"] == "answer"
    assert {"seq", "type", "data", "time"} == set(events[0]["data"])
    later_ones = events_in(client.get(path, headers={"Last-Event-ID": "3"}).text)
    assert later_ones == events[3:] == events_in(client.get(path, params={"after": 3}).text)
    assert client.get(path, headers={"Last-Event-ID": str(len(events))}).status_code == 204
    assert client.get("/api/runs/none/events").status_code == 404


def test_requests_are_decided_once(serve: Serve) -> None:
    """A decision that does not fit leaves the request open (422); a second one comes too late (409)."""
    _, client = serve([[("pay", {"amount": 5}), ("ask", {})], "Done"], authorize=lambda _: "anna")

    @tool(approval=True)
    def pay(amount: int) -> str:
        return f"paid {amount}"

    def ask() -> str:
        return ask_human("Colour?", choices=["red", "blue"])

    agent = Agent(name=unique(), functions=[pay, ask])
    client.post("/api/runs", json={"agent": agent.name, "message": "Hi", "run_id": "r1"})
    [request] = soon(lambda: client.get("/api/requests").json()["requests"])
    assert (request["kind"], request["arguments"]) == ("approval", {"amount": 5})
    path = f"/api/requests/{encode_id(request['id'])}"
    assert client.post(path, json={"verdict": "answer", "value": "x"}).status_code == 422
    assert client.post(path, json={"verdict": "approve", "arguments": {"amount": "x"}}).status_code == 422
    done = client.post(path, json={"verdict": "approve", "arguments": {"amount": 7}})
    assert (done.status_code, done.json()["answered_by"]) == (200, "anna")
    assert client.post(path, json={"verdict": "reject"}).status_code == 409
    [question] = soon(lambda: client.get("/api/requests", params={"run": "r1"}).json()["requests"])
    path = f"/api/requests/{encode_id(question['id'])}"
    assert client.post(path, json={"verdict": "answer", "value": "green"}).status_code == 422
    assert client.post(path, json={"verdict": "answer"}).status_code == 422
    assert client.post(path, json={"verdict": "answer", "value": "blue"}).status_code == 200
    told = [message["content"] for message in ended(client, "r1")["messages"] if message["role"] == "tool"]
    assert told == ["paid 7", "blue"]
    assert client.post("/api/requests/none", json={"verdict": "approve"}).status_code == 404


def test_results_are_posted_by_token(serve: Serve) -> None:
    """The result of a call that returned `later` is taken once."""
    _, client = serve([["order"], "Done"])

    def order() -> Any:
        return later("order 7")

    agent = Agent(name=unique(), functions=[order])
    client.post("/api/runs", json={"agent": agent.name, "message": "Hi", "run_id": "r1"})
    soon(lambda: client.get("/api/requests").json()["requests"])
    path = f"/api/tokens/{encode_id('order 7')}"
    assert client.post(path, json={"result": "sent"}).json() == {"waits": True}
    assert client.post(path, json={"result": "sent"}).status_code == 409
    assert ended(client, "r1")["messages"][-2]["content"] == "sent"


def test_runs_are_changed(serve: Serve) -> None:
    """Cancel, say, resume, extend and fork, as the methods of `Run`."""
    _, client = serve([["ask"], "First", [("ask", {})], "Second", "Forked"])

    def ask() -> str:
        return ask_human("Go on?")

    agent = Agent(name=unique(), functions=[ask])
    client.post("/api/runs", json={"agent": agent.name, "message": "Hi", "run_id": "r1", "limits": {"requests": 9}})
    soon(lambda: client.get("/api/requests").json()["requests"])
    assert client.post("/api/runs/r1/say", json={"text": "More"}).status_code == 200
    assert client.post("/api/runs/r1/extend", json={"requests": 5}).status_code == 200
    assert client.get("/api/runs/r1").json()["limits"]["requests"] == 14
    assert client.post("/api/runs/r1/extend", json={"nothing": 5}).status_code == 422
    assert client.post("/api/runs/r1/cancel").json()["status"] == "cancelled"
    assert client.post("/api/runs/r1/say", json={"text": "More"}).status_code == 409
    assert client.post("/api/runs/r1/resume").status_code == 200
    [request] = soon(lambda: client.get("/api/requests").json()["requests"])
    client.post(f"/api/requests/{encode_id(request['id'])}", json={"verdict": "answer", "value": "yes"})
    assert ended(client, "r1")["status"] == "done"
    fork = client.post("/api/runs/r1/fork", json={"turn": 0, "run_id": "r2"})
    assert (fork.status_code, fork.json()["forked_from"]) == (201, "r1")
    assert client.post("/api/runs/r1/fork", json={"turn": 99}).status_code == 422
    client.post("/api/runs/r2/cancel")


def test_a_session_is_a_conversation(serve: Serve) -> None:
    """Messages of one session go on with each other."""
    _, client = serve(["One", "Two"])
    agent = Agent(name=unique())
    for number, run_id in enumerate(("s1", "s2"), 1):
        body = {"agent": agent.name, "message": "Hi", "session": "talk", "run_id": run_id}
        assert client.post("/api/runs", json=body).json()["number"] == number
        ended(client, run_id)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "InvalidJSON"),
        (b"[]", 422, "InvalidBody"),
        (b'{"agent": "Nobody"}', 422, "InvalidBody"),
        (b'{"agent": "Nobody", "message": "Hi"}', 404, "UnknownAgent"),
        (b'{"agent": "Nobody", "message": "Hi", "more": 1}', 422, "InvalidBody"),
        (b'{"agent": 5, "message": "Hi"}', 422, "InvalidBody"),
        (b'{"agent": "Nobody", "message": "Hi", "messages": []}', 422, "InvalidBody"),
        (b" " * 101, 413, "TooLarge"),
    ],
)
def test_a_wrong_body_is_told(url: str, body: bytes, status: int, kind: str) -> None:
    """Each mistake has its status, its type and a sentence."""
    from durable_swarm import DurableSwarm
    from durable_swarm.server import server_parts

    made, access = server_parts()
    with DurableSwarm(database=url) as swarm:
        server = made(swarm, None, ["api"], access(), console=False, read_only=False, max_body=100)
        answer = TestClient(server).post("/api/runs", content=body)
        server.close()
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.json()["error"]["message"]


def test_who_may_ask(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the environment, or `authorize`; a page of another site may change nothing."""
    monkeypatch.setenv("DURABLE_SWARM_SERVER_TOKEN", "secret")
    _, client = serve([])
    for method, path in (("GET", "/api/runs"), ("POST", "/api/runs"), ("GET", "/api/openapi.json")):
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (401, "Unauthorized")
    bearer = {"Authorization": "Bearer secret"}
    assert client.get("/api/runs", headers=bearer).status_code == 200
    assert client.get("/api/runs", headers={"Authorization": "Bearer wrong"}).status_code == 401
    foreign = client.post("/api/runs", headers={**bearer, "Origin": "https://evil.example"}, json={})
    assert (foreign.status_code, foreign.json()["error"]["type"]) == (403, "Forbidden")
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/api/none", headers=bearer).json()["error"]["type"] == "NotFound"
    assert client.delete("/api/runs", headers=bearer).status_code == 405


def test_nobody_asks_without_a_name(serve: Serve) -> None:
    """`authorize` refuses by None."""
    _, client = serve([], authorize=lambda _: None)
    assert client.get("/api/runs").status_code == 401


def test_only_the_agents_that_are_given_are_served(serve: Serve) -> None:
    """Others of the program are unknown at the doors."""
    shown, hidden = Agent(name=unique()), Agent(name=unique())
    _, client = serve(["Hi"], agents=[shown])
    assert client.post("/api/runs", json={"agent": hidden.name, "message": "Hi"}).status_code == 404
    assert client.post("/api/runs", json={"agent": shown.name, "message": "Hi"}).status_code == 201


def test_what_is_refused_says_what_to_do(serve: Serve) -> None:
    """A wrong address, method, name, token and message each get an error with the way out."""
    _, client = serve(["Hi"])
    agent = Agent(name=unique())
    client.post("/api/runs", json={"agent": agent.name, "message": "Hi", "run_id": "r1"})
    ended(client, "r1")
    for method, path, body, wanted in (
        ("GET", "/api/rums", None, "there is nothing at /api/rums; /api/openapi.json describes the routes"),
        ("DELETE", "/api/requests", None, "/api/requests does not take DELETE; it takes GET"),
        ("POST", "/api/runs/r1/say", {"text": "Hi"}, "run 'r1' has ended (done), so it takes no message; fork it"),
        ("POST", "/api/requests/x", {"verdict": "approve"}, "`durable-swarm inbox` lists the open ones"),
    ):
        assert wanted in client.request(method, path, json=body).json()["error"]["message"]
    made, access = server_parts()
    with DurableSwarm(database=str(serve([])[0].database)) as swarm:
        guarded = TestClient(
            made(swarm, None, ["api"], access(token="t", hosts=["here"]), console=False, read_only=False)
        )
        for headers, wanted in (
            ({"host": "there"}, "does not answer under the name 'there'; add --host there"),
            ({"host": "here", "authorization": "Bearer x"}, "in the address that the server printed"),
            ({"host": "here"}, "Authorization: Bearer TOKEN"),
        ):
            assert wanted in guarded.get("/api/runs", headers=headers).json()["error"]["message"]
        guarded.app.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("hosts", "called"),
    [
        (["127.0.0.1"], "127.0.0.1"),
        (["0.0.0.0"], "127.0.0.1"),
        (["0.0.0.0", "runs.example"], "runs.example"),
        (["::", "runs.example"], "runs.example"),
        (["::"], "::1"),
        (["10.0.0.5", "runs.example"], "10.0.0.5"),
    ],
)
def test_the_address_that_is_printed_can_be_opened(hosts: list[str], called: str) -> None:
    """Where a server listens at all addresses, the printed one has a name that can be called."""
    assert serving.called(hosts) == called


def test_read_only_changes_nothing(serve: Serve) -> None:
    """What changes is not there."""
    _, client = serve([], read_only=True)
    assert client.get("/api/runs").status_code == 200
    assert client.post("/api/runs", json={}).status_code == 405


def test_the_description_has_every_route(serve: Serve) -> None:
    """It is OpenAPI; its schemas of bodies are those that are checked."""
    _, client = serve([])
    described = client.get("/api/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    assert {"post", "get"} == set(described["paths"]["/api/runs"])
    for path in described["paths"].values():
        for operation in path.values():
            for schema in operation.get("requestBody", {}).get("content", {}).values():
                Draft202012Validator.check_schema(schema["schema"])


def test_the_console_is_beside_the_doors(serve: Serve) -> None:
    """Under one roof: pages at /runs, JSON at /api; without it there is nothing at /runs."""
    swarm, client = serve(["Hi"])
    swarm.run(agent := Agent(name=unique()), [{"role": "user", "content": "Hi"}], run_id="r1")
    assert agent
    assert "r1" in client.get("/runs").text
    _, bare = serve([], console=False)
    assert bare.get("/runs").json()["error"]["type"] == "NotFound"


def test_unknown_doors_are_refused(tmp_path: Path) -> None:
    """A misspelled door would silently be shut."""
    from durable_swarm import DurableSwarm

    with pytest.raises(ConfigurationError, match="no door 'apy'"):
        app(DurableSwarm(), doors=["apy"])


def test_a_database_that_is_none_is_no_fault_of_the_request(tmp_path: Path) -> None:
    """A database that cannot be used is answered with 503, so that a client asks again."""
    (tmp_path / "runs.sqlite").write_bytes(b"rubbish " * 1000)
    with pytest.raises(ConfigurationError) as raised, open_runs(f"sqlite:///{tmp_path}/runs.sqlite") as runs:
        runs.list(Query())
    answered = failed(raised.value)
    assert answered.status_code == 503
    assert json.loads(bytes(answered.body))["error"]["type"] == "ConfigurationError"
