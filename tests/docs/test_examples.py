"""Each example prints what its page shows; those with servers are used as a browser would use them."""

from __future__ import annotations

import runpy
import shlex
import sys
import threading
import warnings
from typing import Any

import pytest

from durable_swarm.testing import mock_model, serve_scripted
from tests.docs.pages import ROOT, blocks_of, text_of
from tests.docs.transcripts import commands_of, pattern_of, plain

EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/main.py"))
SHOWN = [name for name in FOLDERS if blocks_of(f"examples/{name}/README.md", "console")]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let every client ask the offline model."""
    with serve_scripted(mock_model()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
        yield


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_prints_what_its_page_shows(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the offline model the program prints the output of its page."""
    [block] = blocks_of(f"examples/{name}/README.md", "console")
    [command] = commands_of(block)
    words = shlex.split(command.text)
    assert words[:4] == ["durable-swarm", "run", "--mock", "main.py"]
    monkeypatch.setattr(sys, "argv", words[3:])
    runpy.run_path(str(EXAMPLES / name / "main.py"), run_name="__main__")
    printed = "".join(f"{plain(line)}\n" for line in capsys.readouterr().out.splitlines())
    assert pattern_of(command.expected).fullmatch(printed), printed


def test_the_list_of_examples_is_complete() -> None:
    """Every example has a page, and the list of examples leads to it."""
    assert [name for name in FOLDERS if f"({name}/README.md)" not in text_of("examples/README.md")] == []
    assert [name for name in FOLDERS if not (EXAMPLES / name / "README.md").exists()] == []


def test_a_worker_answers_for_the_queue_desk(capsys: pytest.CaptureFixture[str]) -> None:
    """What the example puts on the queue is answered by a worker of the same module."""
    names = runpy.run_path(str(EXAMPLES / "queue_desk" / "main.py"))
    with names["swarm"] as swarm:
        swarm.serve(2)
        answer = names["main"]("Refund order 7", "queued-7")
    assert answer.endswith("Order 7 is refunded with queued-7/0.0.")
    assert "reference queued-7/0.0" in capsys.readouterr().out


def test_the_order_desk_waits_for_a_yes_in_the_browser() -> None:
    """A browser asks, reads the events up to the question, approves, and reads the rest; a second verdict is a 409."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the test client, about its own libraries
        from fastapi.testclient import TestClient
    names = runpy.run_path(str(EXAMPLES / "order_desk" / "main.py"))
    answered = threading.Event()

    def approve(browser: Any) -> None:
        run = names["swarm"].get("order-7")
        for event in run.events():
            if event.type == "request.opened":
                assert browser.post("/runs/order-7/verdict", json={"approve": True}).status_code == 200
                answered.set()
                return

    with TestClient(names["app"]) as browser:
        assert "EventSource" in browser.get("/").text
        asked = {"text": "Refund my order 7, please.", "id": "order-7"}
        assert [browser.post("/runs", json=asked).json() for _ in range(2)] == [{"id": "order-7"}] * 2
        person = threading.Thread(target=approve, args=[browser])
        person.start()
        events = browser.get("/runs/order-7/events").text
        person.join()
        rest = browser.get("/runs/order-7/events", headers={"last-event-id": "5"}).text
        late = browser.post("/runs/order-7/verdict", json={"approve": False})
        missing = browser.get("/runs/none/events")
    assert answered.is_set()
    assert events.index("event: request.opened") < events.index("event: request.closed")
    assert "Order 7 is refunded." in events
    assert rest.startswith("id: 6\nevent: request.closed")
    assert (late.status_code, missing.status_code) == (409, 404)
