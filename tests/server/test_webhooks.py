"""Webhooks: what happens in runs is told once, signed, also after a crash, and only where it may be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from durable_swarm import Agent, DurableSwarm
from durable_swarm.errors import ConfigurationError
from durable_swarm.server import Webhook
from durable_swarm.service import open_runs
from durable_swarm.service.doctor import checkup
from durable_swarm.testing import ScriptedModel
from durable_swarm.webhooks import Undelivered, is_public
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.server.conftest import pay
from tests.support import programs
from tests.support.patience import PATIENCE

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver(ThreadingHTTPServer):
    """A page that takes messages; each answer has the next of `statuses`, then 204."""

    def __init__(self, port: int = 0) -> None:
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?x=1"

    def told(self) -> list[dict[str, Any]]:
        """Return the messages, each of which must be signed."""
        return [Verifier(SECRET).verify(body, headers) for headers, body in self.taken]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Receiver)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.taken.append((headers, body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("location", self.server.url)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Take messages on a port."""
    with Receiver(port) as receiver:
        thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.shutdown()
            thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A page that takes messages."""
    with receiving() as made:
        yield made


@pytest.fixture
def url(database_url: str) -> str:
    """A fresh database of each kind."""
    return database_url


def hook(receiver: Receiver, **more: Any) -> Webhook:
    """Return a webhook of a page on this machine."""
    return Webhook(receiver.url, SECRET, allow_private=True, **more)


def test_requests_and_ends_are_told(url: str, receiver: Receiver) -> None:
    """Each is told once and signed; closing the swarm sends what is due."""
    agent = Agent(name=unique(), functions=[pay])
    model = ScriptedModel([[("pay", {"amount": 5})], "Paid.", ValueError("broken")])
    told = hook(receiver, events=("run.finished", "run.failed", "request.opened"))
    with DurableSwarm(model, database=url, webhooks=[told]) as swarm:
        run = swarm.start(agent, [{"role": "user", "content": "Pay"}], run_id="r1")
        soon(lambda: receiver.taken)
        [asked] = receiver.told()
        assert (asked["type"], asked["data"]["run_id"]) == ("request.opened", "r1")
        assert (asked["data"]["tool"], asked["data"]["arguments"]) == ("pay", {"amount": 5})
        swarm.approve(asked["data"]["request_id"])
        run.result(PATIENCE)
        with pytest.raises(ValueError, match="broken"):
            swarm.run(agent, [{"role": "user", "content": "Again"}], run_id="r2")
    later = {one["data"]["run_id"]: one for one in receiver.told()[1:]}
    assert [later["r1"]["type"], later["r2"]["type"]] == ["run.finished", "run.failed"]
    assert (later["r1"]["data"]["ended_by"], later["r2"]["data"]["error_type"]) == ("answer", "ValueError")
    assert len({headers["webhook-id"] for headers, _ in receiver.taken}) == len(receiver.taken) == 3
    with DurableSwarm(ScriptedModel([]), database=url, webhooks=[told]) as again:
        again.runs(limit=1)
    assert len(receiver.taken) == 3


def test_a_message_that_is_not_taken_is_sent_again(url: str, receiver: Receiver) -> None:
    """It comes again under its id, five seconds later at first, and `doctor` names it until then."""
    receiver.statuses = [500]
    agent = Agent(name=unique())
    with DurableSwarm(ScriptedModel(["One"]), database=url, webhooks=[hook(receiver)]) as swarm:
        swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="r1")
        soon(lambda: undelivered(url))
        assert "run.finished of run 'r1' was not delivered" in undelivered(url)[0]
        assert "status 500" in undelivered(url)[0]
        soon(lambda: len(receiver.taken) == 2)
        soon(lambda: not undelivered(url))
    assert len({headers["webhook-id"] for headers, _ in receiver.taken}) == 1
    assert receiver.told()[0] == receiver.told()[1]


def undelivered(url: str) -> list[str]:
    """Return what the check-up says of webhooks."""
    return [check.text for check in checkup(url) if check.name == "webhook"]


def test_tries_end(url: str, receiver: Receiver) -> None:
    """The waits grow; after three days, or if the page is gone, a message is given up and stays listed."""
    receiver.statuses = [410]
    agent = Agent(name=unique())
    with DurableSwarm(ScriptedModel(["One"]), database=url, webhooks=[hook(receiver)]) as swarm:
        swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="r1")
    with open_runs(url) as runs:
        deliveries = runs._store.deliveries
        [gone] = deliveries.undelivered()
        assert (gone.state, gone.attempts, gone.error) == ("given up", 1, "status 410")
        waits = []
        for tries in range(4):
            young = type(gone)(**{**vars(gone), "attempts": tries})
            deliveries.failed(young, "no", final=False)
            [now] = deliveries.undelivered()
            waits.append(round((now.next_at - gone.at) / 1000, -1))
        assert waits[2:] == sorted(waits[2:])
        assert now.state == "pending"
        deliveries.failed(type(gone)(**{**vars(gone), "at": gone.at - 3 * 24 * 3_600_000}), "no", final=False)
        assert deliveries.undelivered()[0].state == "given up"
    assert "given up" in undelivered(url)[0]


def test_private_addresses_are_refused() -> None:
    """By their name or number at once, else when the name is looked up; redirections lead nowhere."""
    for private in (
        "http://127.0.0.1/x",
        "http://localhost:80/",
        "http://10.0.0.1/",
        "https://[::1]/",
        "http://[::ffff:10.0.0.1]/",
    ):
        with pytest.raises(ConfigurationError, match="private address"):
            Webhook(private, SECRET)
    assert not any(map(is_public, ("169.254.169.254", "fd00::1", "64:ff9b::7f00:1", "0.0.0.0", "224.0.0.1")))
    assert is_public("8.8.8.8")


def test_a_name_that_leads_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    """The address that was checked is the one that is asked: a name that changes meanwhile changes nothing."""
    port = receiver.server_address[1]
    found = [(2, 1, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Undelivered, match=r"private address 127\.0\.0\.1"):
        Webhook(f"http://hooks.example.com:{port}/", SECRET).send("m1", 1, b"{}")
    assert receiver.taken == []


def test_redirections_are_not_followed(receiver: Receiver) -> None:
    """A page that answers with another address has not taken the message."""
    receiver.statuses = [302]
    with pytest.raises(Undelivered, match="status 302"):
        hook(receiver).send("m1", 1, b"{}")
    assert len(receiver.taken) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ftp://example.com", SECRET), "URL of a page"),
        (("https://u:p@example.com", SECRET), "name or a password"),
        (("https://example.com", ""), "secret"),
        (("https://example.com", SECRET, ("run.started",)), "cannot tell 'run.started'"),
        (("https://example.com", SECRET, "run.finished"), r"a list, such as \['run.finished'\]"),
    ],
)
def test_wrong_webhooks_are_refused(arguments: Any, said: str) -> None:
    """Each mistake is one line that says what is wrong; the secret is not printed."""
    with pytest.raises(ConfigurationError, match=said):
        Webhook(*arguments)
    twice = [Webhook("https://example.com/a", SECRET)] * 2
    with pytest.raises(ConfigurationError, match="same url"):
        DurableSwarm(ScriptedModel([]), webhooks=twice)
    with pytest.raises(ConfigurationError, match=r"must be a list: \[Webhook"):
        DurableSwarm(ScriptedModel([]), webhooks=twice[0])  # type: ignore[arg-type]
    assert SECRET not in repr(twice)


PROGRAM = """
import sys
from durable_swarm import Agent, DurableSwarm
from durable_swarm.server import Webhook
from durable_swarm.testing import ScriptedModel

clerk = Agent(name="Clerk")
hook = Webhook(sys.argv[1], sys.argv[2], allow_private=True)
swarm = DurableSwarm(ScriptedModel(["Done."]), database="sqlite:///runs.sqlite", webhooks=[hook])
if len(sys.argv) > 3:
    swarm.run(clerk, [{"role": "user", "content": "Hi"}], run_id="r1")
else:
    swarm.recover()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_message_outlives_its_process(tmp_path: Path) -> None:
    """A run ends, and its process is killed before anybody takes the message; the next process delivers it, once."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with receiving() as gone:
        port, address = gone.server_address[1], gone.url
    with _life(tmp_path, address, "run"):
        pass
    with receiving(port) as receiver, _life(tmp_path, address):
        soon(lambda: receiver.taken)
        [told] = receiver.told()
    assert (told["type"], told["data"]["run_id"]) == ("run.finished", "r1")


@contextmanager
def _life(folder: Path, *arguments: str) -> Iterator[None]:
    """Run the program until it is ready, and kill it at the end."""
    address, *rest = arguments
    command = [sys.executable, "program.py", address, SECRET, *rest]
    process = programs.Program(
        command, cwd=folder, env={**os.environ}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
