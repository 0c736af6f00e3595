"""Traces that are told from records: one per run, however many processes it lived in, and nothing twice."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import sqlalchemy
from dbos import DBOS
from opentelemetry import trace as api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ToolError, sleep, step, tool
from durable_swarm.cli import main
from durable_swarm.engine.api.inspector import inspect_database
from durable_swarm.observing import Executed, RunTrace, observe
from durable_swarm.otel import RunIds, instrument
from durable_swarm.service.runs import Runs
from durable_swarm.testing import ScriptedModel, cut_off
from tests.contract.conftest import make_swarm
from tests.contract.helpers import MakeSwarm, user
from tests.crash.conftest import lives
from tests.crash.lives import Lives
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.support.patience import PATIENCE

__all__ = ["lives", "make_swarm"]


class Tracing:
    """A provider whose spans are kept, and read as a tree."""

    def __init__(self, **options: Any) -> None:
        self.provider = TracerProvider(**options)
        self._kept = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended."""
        return list(self._kept.get_finished_spans())

    def tree(self) -> list[tuple[str, str]]:
        """The name of each span with the name of its parent, the earliest first."""
        named = {span.context.span_id: span.name for span in self.spans if span.context}
        placed = sorted(self.spans, key=lambda span: (span.start_time or 0, -(span.end_time or 0)))
        return [(span.name, "" if span.parent is None else named.get(span.parent.span_id, "?")) for span in placed]


@pytest.fixture
def tracing() -> Tracing:
    """A tracer provider of the test's own."""
    return Tracing()


@pytest.fixture
def url(fresh_sqlite: Any, tmp_path: Path) -> str:
    """The URL of a fresh SQLite file."""
    made: str = fresh_sqlite(tmp_path / "runs.sqlite")
    return made


@step
def charge() -> str:
    return "charged"


def pay(amount: int) -> str:
    """Pay."""
    charge()
    return f"paid {amount}"


def test_a_run_is_one_tree_of_spans(make_swarm: MakeSwarm, tracing: Tracing) -> None:
    """Each stretch of one agent is one span, with its model calls and tool calls; the run is the root."""
    name = unique()
    second = Agent(name=f"{name} two", model="m-two", functions=[pay])

    def to_second() -> Any:
        return second

    first = Agent(name=name, model="m-one", functions=[to_second])
    swarm = make_swarm(ScriptedModel([["to_second"], [("pay", {"amount": 5})], "Done"]))
    stop = instrument(swarm, tracer_provider=tracing.provider)
    swarm.run(first, user(), run_id="r1")
    stop()
    told = Counter(tracing.tree())
    told.pop(("charge", "execute_tool pay"), None)
    assert told == Counter(
        [
            (f"invoke_workflow {name}", ""),
            (f"invoke_agent {name}", f"invoke_workflow {name}"),
            ("chat m-one", f"invoke_agent {name}"),
            ("execute_tool to_second", f"invoke_agent {name}"),
            (f"invoke_agent {name} two", f"invoke_workflow {name}"),
            ("chat m-two", f"invoke_agent {name} two"),
            ("execute_tool pay", f"invoke_agent {name} two"),
            ("chat m-two", f"invoke_agent {name} two"),
        ]
    )
    [chat, *_] = [span for span in tracing.spans if span.name == "chat m-one"]
    assert chat.attributes is not None
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.conversation.id"] == "r1"
    assert chat.attributes["gen_ai.usage.input_tokens"] > 0  # type: ignore[operator]
    assert not [name for span in tracing.spans for name in span.attributes or {} if "messages" in name]


def test_spans_of_libraries_belong_to_the_tool(make_swarm: MakeSwarm, tracing: Tracing) -> None:
    """Inside a tool, plain or async, the current span is the tool's; a log record gets its ids and the run's."""
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    handler.addFilter(RunIds())
    log = logging.getLogger("a.library")
    log.addHandler(handler)
    log.warning("outside")

    def fetch() -> str:
        log.warning("inside")
        with tracing.provider.get_tracer("library").start_as_current_span("GET /"):
            return "fetched"

    async def fetch_async() -> str:
        return fetch()

    swarm = make_swarm(ScriptedModel([["fetch"], ["fetch_async"], "Done"]))
    stop = instrument(tracer_provider=tracing.provider)
    swarm.run(agent := Agent(name=unique(), functions=[fetch, fetch_async]), user(), run_id="r1")
    stop()
    log.removeHandler(handler)
    assert agent
    inner = [parent for name, parent in tracing.tree() if name == "GET /"]
    assert inner == ["execute_tool fetch", "execute_tool fetch_async"]
    outside, *inside = [vars(record) for record in seen]
    assert (outside["run_id"], outside["trace_id"]) == ("", "")
    [trace_id] = {f"{span.context.trace_id:032x}" for span in tracing.spans if span.context}
    assert [(record["run_id"], record["trace_id"]) for record in inside] == [("r1", trace_id)] * 2


def life(url: str, spans: Path, at: str) -> None:
    """Run two calls of a tool, with tracing to a file; die at a place."""

    def work(place: str) -> str:
        if place == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return place

    provider = TracerProvider()
    with spans.open("a") as file:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=file, formatter=_line)))
        agent = Agent(name="Worker", functions=[work])
        replies = [[("work", {"place": "one"})], [("work", {"place": "two"})], "Done"]
        with DurableSwarm(ScriptedModel(replies), database=url) as swarm:
            instrument(swarm, tracer_provider=provider)
            swarm.run(agent, user(), run_id="r1")


def _line(span: ReadableSpan) -> str:
    assert span.context
    return json.dumps([span.name, f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"]) + "\n"


def test_three_processes_are_one_trace(
    lives: Lives, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two are killed inside a tool; nothing is missing, nothing is told twice, and `trace` gives the same ids."""
    for at in ("one", "two"):
        assert lives.live(life, url, tmp_path / "spans", at, ledger=tmp_path / "l").killed
    lives.live(life, url, tmp_path / "spans", "", ledger=tmp_path / "l")
    told = [tuple(json.loads(line)) for line in (tmp_path / "spans").read_text().splitlines()]
    assert Counter(name for name, _, _ in told) == {
        "invoke_workflow Worker": 1,
        "invoke_agent Worker": 1,
        "chat gpt-4o": 3,
        "execute_tool work": 2,
    }
    assert len({span for _, _, span in told}) == len(told)
    assert len({trace for _, trace, _ in told}) == 1
    assert main(["trace", "r1", "--json", "--database", url]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {(span["name"], span["trace_id"], span["span_id"]) for span in again} == set(told)


class Told:
    """An observer that keeps the traces of ended runs, and what it was told of calls."""

    def __init__(self) -> None:
        self.traces: list[RunTrace] = []

    def wants(self, swarm: Any) -> bool:
        return True

    def inside(self, root: str, key: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def executed(self, what: Executed) -> None:
        pass

    def ended(self, trace: RunTrace) -> None:
        self.traces.append(trace)


def _without_times(trace: RunTrace) -> Any:
    """Return the data of a trace, with times only as known or not: collected ones differ from those of the database."""

    def untimed(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: untimed(inner, key) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [untimed(inner) for inner in value]
        return value is not None if name in ("started", "finished", "at") else value

    return untimed(dataclasses.asdict(trace))


@step
def failing() -> str:
    raise ValueError("not today")


@step
async def wired(to: str) -> str:
    return f"wired to {to}"


@DBOS.step()
def noted() -> str:
    return "noted"


def careful() -> str:
    with contextlib.suppress(ValueError):
        failing()
    return charge() + charge()


async def transfer(to: str) -> str:
    return await wired(to)


def broken() -> str:
    raise ToolError("broken")


def booked() -> str:
    return noted()


@tool(approval=True)
def refunded() -> str:
    return "refunded"


def napping() -> str:
    sleep(0.01)
    return "awake"


SCRIPTS: dict[str, list[Any]] = {
    "nothing": ["Done"],
    "steps": [["careful"], [("transfer", {"to": "x"})], "Done"],
    "together": [[("transfer", {"to": "x"}), ("transfer", {"to": "y"}), "charge", ("transfer", {"to": "z"})], "Done"],
    "refused": [["unknown", "charge", ("pay", {"amount": "many"})], "Done"],
    "told": [["broken"], ["charge"], ["charge", "charge"], "Done"],
    "steps of DBOS": [["booked"], "Done"],
    "a request": [["charge"], ["refunded"], "Done"],
    "a sleep": [["napping"], "Done"],
    "a child": [[("ask", {"message": "Hi"})], "Hello", "Done"],
    "cut": [cut_off([("pay", {"amount": 1})]), "Done"],
}


@pytest.mark.parametrize("way", ["run", "start", "session"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_trace_is_that_of_the_records(url: str, script: str, way: str) -> None:
    """Whatever a run does, the trace that is sent when it ends is the one that its records give later."""
    child = Agent(name=f"{unique()} child")
    tools = [charge, pay, careful, transfer, broken, booked, refunded, napping, child.as_tool("ask")]
    agent = Agent(name=unique(), functions=tools)
    told = Told()
    with (
        DurableSwarm(ScriptedModel([*SCRIPTS[script]], strict=False), database=url, tool_concurrency=2) as swarm,
        ThreadPoolExecutor() as threads,
    ):
        stop = observe(told)
        if way == "run":
            done = threads.submit(swarm.run, agent, user(), run_id="r1")
        else:
            begun = swarm.session("s1", agent).start("Hi", run_id="r1") if way == "session" else None
            begun = begun or swarm.start(agent, user(), run_id="r1")
            done = threads.submit(begun.result, 60)
        if script == "a request":
            soon(lambda: swarm.runs() and swarm.get("r1").requests())
            swarm.get("r1").approve()
        done.result(PATIENCE)
        stop()
    with inspect_database(sqlalchemy.make_url(url)) as visitor:
        found = Runs(visitor).traces("r1")
    sent = {trace.run_id: _without_times(trace) for trace in told.traces}
    assert sent == {trace.run_id: _without_times(trace) for trace in found}


def test_a_child_run_hangs_below_the_call_that_started_it(url: str, tracing: Tracing) -> None:
    """A family of runs is one trace."""
    child = Agent(name=f"{unique()} child")
    parent = Agent(name=unique(), functions=[child.as_tool("ask")])
    with DurableSwarm(ScriptedModel([[("ask", {"message": "Hi"})], "Hello", "Done"]), database=url) as swarm:
        stop = instrument(swarm, tracer_provider=tracing.provider)
        swarm.run(parent, user())
        stop()
    assert (f"invoke_workflow {child.name}", "execute_tool ask") in tracing.tree()
    assert len({span.context.trace_id for span in tracing.spans if span.context}) == 1


def test_a_failure_is_told_and_what_resume_repeats_is_told_once(url: str, tracing: Tracing) -> None:
    """A run that fails ends its spans with the error's type; after `resume` only what is new is sent."""
    broken = [True]

    def work() -> str:
        if broken:
            raise ValueError("secret text")
        return "worked"

    agent = Agent(name=unique(), functions=[work])
    with DurableSwarm(ScriptedModel([["work"], "Done"]), database=url) as swarm:
        stop = instrument(swarm, tracer_provider=tracing.provider)
        with pytest.raises(ValueError, match="secret"):
            swarm.run(agent, user(), run_id="r1")
        [root] = [span for span in tracing.spans if span.parent is None]
        assert root.status.status_code is api.StatusCode.ERROR
        assert (root.attributes or {})["error.type"] == "ValueError"
        assert "secret" not in str([span.to_json() for span in tracing.spans])
        broken.clear()
        run = swarm.get("r1")
        run.resume()
        run.result(PATIENCE)
        stop()
    [again] = [span for span in tracing.spans if span.name == root.name and span is not root]
    assert again.parent
    assert root.context
    assert again.parent.span_id == root.context.span_id
    names = Counter(name for name, _ in tracing.tree())
    assert names["chat gpt-4o"] == 2
    assert len({span.context.span_id for span in tracing.spans if span.context}) == len(tracing.spans)


def test_waits_for_people_are_spans(url: str, tracing: Tracing) -> None:
    """The time for which a call waited for its approval is a span below it."""
    agent = Agent(name=unique(), functions=[tool(approval=True)(lambda: "done")])
    agent.functions[0].__name__ = "careful"
    with DurableSwarm(ScriptedModel([["careful"], "Done"]), database=url) as swarm:
        stop = instrument(swarm, tracer_provider=tracing.provider)
        run = swarm.start(agent, user())
        soon(run.requests)
        run.approve()
        run.result(PATIENCE)
        stop()
    assert ("durable_swarm.wait", "execute_tool careful") in tracing.tree()


def test_metrics_count_what_is_executed(make_swarm: MakeSwarm) -> None:
    """A run that is read back from its records counts nothing."""
    reader = InMemoryMetricReader()
    swarm = make_swarm(ScriptedModel([[("pay", {"amount": 5})], "Done"]))
    agent = Agent(name=unique(), functions=[pay])
    stop = instrument(swarm, tracer_provider=TracerProvider(), meter_provider=MeterProvider([reader]))
    swarm.run(agent, user(), run_id="r1")
    if isinstance(swarm, DurableSwarm):
        swarm.run(agent, user(), run_id="r1")
    stop()
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        (metric.name, (point.attributes or {}).get("gen_ai.operation.name")): point
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
        if (point.attributes or {}).get("gen_ai.token.type") != "output"
    }
    assert found["gen_ai.client.operation.duration", "chat"].count == 2  # type: ignore[union-attr]
    assert found["gen_ai.client.operation.duration", "execute_tool"].count == 1  # type: ignore[union-attr]
    assert found["gen_ai.client.token.usage", "chat"].count == 2  # type: ignore[union-attr]


def test_content_is_told_only_if_it_is_asked_for(make_swarm: MakeSwarm, tracing: Tracing) -> None:
    """With `content` spans have the messages, the arguments and the results."""
    swarm = make_swarm(ScriptedModel([[("pay", {"amount": 5})], "Done"]))
    stop = instrument(swarm, tracer_provider=tracing.provider, content=True)
    swarm.run(agent := Agent(name=unique(), functions=[pay]), user("A question"))
    stop()
    told = {name: str(value) for span in tracing.spans for name, value in (span.attributes or {}).items()}
    assert agent
    assert told["gen_ai.tool.call.result"] == "paid 5"
    assert "A question" in told["gen_ai.input.messages"]


def test_a_sampler_that_says_no_is_heard(make_swarm: MakeSwarm) -> None:
    """Of a trace that is not sampled, no span is sent."""
    tracing = Tracing(sampler=ALWAYS_OFF)
    swarm = make_swarm(ScriptedModel(["Done"]))
    stop = instrument(swarm, tracer_provider=tracing.provider)
    swarm.run(agent := Agent(name=unique()), user())
    stop()
    assert agent
    assert tracing.spans == []


class _Receiver(BaseHTTPRequestHandler):
    taken: ClassVar[list[tuple[str, int]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.taken.append((self.path, len(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    """The URL of a server that takes OTLP over HTTP."""
    server = HTTPServer(("127.0.0.1", 0), _Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_past_run_is_sent(url: str, receiver: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`trace ID --endpoint` sends the spans of a run that ended before tracing was on."""
    with DurableSwarm(ScriptedModel(["Done"]), database=url) as swarm:
        swarm.run(agent := Agent(name=unique()), user(), run_id="r1")
    assert agent
    assert main(["trace", "r1", "--endpoint", receiver, "--database", url]) == 0
    assert capsys.readouterr().out == "Sent 3 spans of run r1.\n"
    assert [path for path, _ in _Receiver.taken] == ["/v1/traces"]


def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of OpenTelemetry is needed to import the module."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in ("durable_swarm.otel.observer", "durable_swarm.otel.send"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'durable-swarm\[otel\]'"):
        instrument()
