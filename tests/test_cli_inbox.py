"""`inbox`, `answer`, `approve`, `reject`, `complete`, `say`: what runs ask, and what people tell them."""

from __future__ import annotations

import getpass
import json
import re
import sqlite3
from pathlib import Path

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.testing import ScriptedModel
from tests.support.asking import asking, leave
from tests.support.patience import PATIENCE
from tests.support.shell import Shell

HERE = "continues in its process"
LATER = "continues when its program is started"


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_the_inbox_lists_what_is_open(shell: Shell) -> None:
    """`inbox` has the open requests of all runs, oldest first, with what is asked, its age and what answers it."""
    leave("one", "choose")
    leave("two", "refund")
    shown = shell("inbox")
    for expected in (
        r"^one/\S+  question, open$",
        r"^  run +one of agent Refund Clerk$",
        r"^  asked +\S+ \S+ \(.+ ago\) Which colour\?$",
        r"^  choices +red, blue$",
        r"^  answer: +durable-swarm answer one/\S+ TEXT$",
        r"^  call +refund\(amount=250\)$",
        r"^  approve: +durable-swarm approve two/\S+$",
        r"^  reject: +durable-swarm reject two/\S+ --reason TEXT$",
    ):
        assert re.search(expected, shown, re.MULTILINE), expected
    assert shown.index("one/") < shown.index("two/")
    assert [request["run_id"] for request in json.loads(shell("inbox", "--json"))] == ["one", "two"]
    assert [request["run_id"] for request in json.loads(shell("inbox", "--json", "--limit", "1"))] == ["one"]
    assert [request["run_id"] for request in json.loads(shell("inbox", "--json", "--run", "two"))] == ["two"]


def test_answered_while_its_process_lives(shell: Shell) -> None:
    """A run that is executed goes on at once, and `show` says who answered what, and when."""
    with asking("one", "choose") as run:
        assert run.status == "waiting"
        assert "one" in shell("runs", "--status", "waiting")
        assert "durable-swarm answer one/" in shell("show", "one")
        told = shell("answer", "one", "blue", "--by", "ann")
        assert re.fullmatch(rf"Request one/\S+ is answered by ann\. Run one {HERE}\.\n", told)
        assert run.result(timeout=PATIENCE).messages[-2]["content"] == "blue"
    shown = shell("show", "one")
    assert re.search(r"^  decided +\d{4}-\S+ \S+ answered blue by ann$", shown, re.MULTILINE)
    assert "durable-swarm answer" not in shown
    assert shell("inbox") == "No open requests.\n"
    decided = json.loads(shell("inbox", "--decided", "--json"))
    assert decided
    assert [one["answered_at"] for one in decided] == sorted((one["answered_at"] for one in decided), reverse=True)
    assert json.loads(shell("inbox", "--decided", "--limit", "1", "--json")) == decided[:1]
    assert "--decided" in shell("inbox", "--decided", "--run", "one", code=2)


def test_answered_while_nothing_runs(shell: Shell) -> None:
    """Without a process the decision is kept until the program is started; its author is the login name."""
    leave("one", "refund")
    assert LATER in shell("approve", "one", "--arguments", '{"amount": 120}')
    [request] = json.loads(shell("show", "one", "--json"))["requests"]
    assert (request["answered_by"], request["decision"]["arguments"]) == (getpass.getuser(), {"amount": 120})
    with DurableSwarm(ScriptedModel([["refund"], "Done."])) as swarm:
        swarm.recover()
        assert swarm.get("one").result(timeout=PATIENCE).messages[-2]["content"] == "refunded 120"


def test_rejected_with_a_reason(shell: Shell) -> None:
    """A rejection reaches the agent with its reason, and `show` has it."""
    with asking("one", "refund") as run:
        assert "is rejected by bob" in shell("reject", "one", "--reason", "too much", "--by", "bob")
        assert "too much" in run.result(timeout=PATIENCE).messages[-2]["content"]
    assert "rejected: too much by bob" in shell("show", "one")


def test_a_result_that_comes_later(shell: Shell) -> None:
    """`complete` posts a result under its token, once; one that comes too early is kept, and says so."""
    with asking("one", "ship") as run:
        assert "durable-swarm complete parcel RESULT" in shell("inbox")
        assert shell("complete", "parcel", "sent") == f"Result for parcel posted. Run one {HERE}.\n"
        assert run.result(timeout=PATIENCE).messages[-2]["content"] == "sent"
    assert "was answered already" in shell("complete", "parcel", "sent", code=1)
    assert "No run waits for it yet" in shell("complete", "other", "sent")


def test_said_to_a_run(shell: Shell) -> None:
    """`say` is heard with the next model call; a run that has ended hears nothing, and an unknown one is told."""
    with asking("one", "choose") as run:
        told = shell("say", "one", "Hurry up")
        assert told == f"The agent gets it with its next model call. Run one {HERE}; it has 1 open request.\n"
        shell("answer", "one", "red")
        run.result(timeout=PATIENCE)
        assert {"role": "user", "content": "Hurry up"} in run.messages()
    assert "has ended" in shell("say", "one", "Too late", code=2)
    assert "there is no run" in shell("say", "other", "Hi", code=1)


def test_a_run_is_named_by_the_beginning_of_its_id(shell: Shell) -> None:
    """`say` and `inbox --run` take a prefix that fits one run alone, and name the runs that one fits otherwise."""
    with asking("order-12", "choose") as run, asking("order-34", "choose") as other:
        assert "order-12" in shell("inbox", "--run", "order-1")
        assert f"Run order-12 {HERE}" in shell("say", "order-1", "Hurry up")
        for words in (["say", "order", "Hi"], ["inbox", "--run", "order"]):
            assert "'order' is the beginning of several ids: order-34, order-12; write more" in shell(*words, code=2)
        for one in (run, other):
            one.answer("red")
            one.result(timeout=PATIENCE)
        assert {"role": "user", "content": "Hurry up"} in run.messages()


def test_a_run_with_several_requests(shell: Shell) -> None:
    """A run's id is not enough where it has several open requests: the error names them, and each is decided alone."""
    with asking("one", "refund", "choose", tool_concurrency=2) as run:
        requests = run.requests()
        told = shell("approve", "one", code=2)
        assert all(request.id in told for request in requests)
        approval = next(request for request in requests if request.kind == "approval")
        assert f"Run one {HERE}; it has 1 open request." in shell("approve", approval.id)
        shell("answer", "one", "red")
        run.result(timeout=PATIENCE)


def test_what_is_not_taken(shell: Shell) -> None:
    """Exit code 1 for what is unknown or decided, 2 for what is not taken; the request stays open then."""
    with asking("one", "choose") as run:
        assert "takes one of 'red', 'blue'" in shell("answer", "one", "green", code=2)
        assert "takes answer," in shell("approve", "one", code=2)
        assert "there is no request 'other'" in shell("answer", "other", "red", code=1)
        assert "there is no run 'other'" in shell("inbox", "--run", "other", code=1)
        assert "--limit" in shell("inbox", "--limit", "0", code=2)
        shell("answer", "one", "red")
        run.result(timeout=PATIENCE)
        assert "was answered already" in shell("answer", "one", "blue", code=1)
        assert "was answered already" in shell("answer", run.requests(all=True)[0].id, "blue", code=1)


def test_arguments_that_do_not_fit(shell: Shell) -> None:
    """`--arguments` must be a JSON object that fits the tool; anything else is wrong use, and changes nothing."""
    leave("one", "refund")
    assert "is not JSON" in shell("approve", "one", "--arguments", "{", code=2)
    assert "must be a JSON object" in shell("approve", "one", "--arguments", "[5]", code=2)
    assert "do not fit tool 'refund'" in shell("approve", "one", "--arguments", '{"amount": "much"}', code=2)
    assert "one/" in shell("inbox")


def test_a_request_that_has_expired(shell: Shell) -> None:
    """Past its time a request takes no answer: exit code 1."""
    leave("one", "refund")
    with sqlite3.connect("durable_swarm.sqlite") as connection:
        connection.execute("UPDATE durable_swarm_requests SET expires_at = 1")
    assert "has expired" in shell("approve", "one", code=1)


def test_a_database_of_an_earlier_version(shell: Shell) -> None:
    """Where the tables of requests are missing, nothing is open, and what is answered is unknown."""
    with DurableSwarm(ScriptedModel(["Hello"])) as swarm:
        swarm.run(Agent(name="Clerk"), [{"role": "user", "content": "Hi"}], run_id="one")
    with sqlite3.connect("durable_swarm.sqlite") as connection:
        connection.execute("DROP TABLE durable_swarm_requests")
        connection.execute("DROP TABLE durable_swarm_messages")
    assert shell("inbox") == "No open requests.\n"
    assert json.loads(shell("inbox", "--json")) == []
    assert "no open request" in shell("answer", "one", "red", code=1)
    assert "there is no request 'two'" in shell("approve", "two", code=1)
    assert "one" in shell("show", "one")


def test_without_a_database(shell: Shell, tmp_path: Path) -> None:
    """Where there is no database yet, that is told, and none is made."""
    for command in (("inbox",), ("answer", "one", "red"), ("complete", "parcel", "sent"), ("say", "one", "Hi")):
        assert "there is no database" in shell(*command, code=1)
    assert list(tmp_path.iterdir()) == []


def test_encrypted_requests_need_their_keys(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the keys an encrypted request is listed, not shown, and nothing is answered or said; with them it is."""
    key = new_key()
    leave("one", "choose", codec=EncryptionCodec([key]))
    assert "Which colour?" not in shell("inbox")
    assert "set DURABLE_SWARM_ENCRYPTION_KEYS" in shell("answer", "one", "red", code=2)
    assert "set DURABLE_SWARM_ENCRYPTION_KEYS" in shell("say", "one", "a secret", code=2)
    assert not any(b"a secret" in file.read_bytes() for file in Path.cwd().iterdir())
    monkeypatch.setenv("DURABLE_SWARM_ENCRYPTION_KEYS", key)
    assert "Which colour?" in shell("inbox")
    assert LATER in shell("say", "one", "Hurry up")
    assert LATER in shell("answer", "one", "red")
    with DurableSwarm(ScriptedModel([["choose"], "Done."]), codec=EncryptionCodec([key])) as swarm:
        swarm.recover()
        assert swarm.get("one").result(timeout=PATIENCE).messages[-1]["content"] == "Done."


def test_watch_tells_what_is_asked(shell: Shell) -> None:
    """`watch` tells that a call asks, what answers it, and what was decided by whom."""
    with asking("one", "refund") as run:
        request = run.requests()[0].id
        shell("approve", "one", "--by", "ann")
        run.result(timeout=PATIENCE)
    lines = shell("watch", "one").splitlines()
    start = lines.index(f"  refund asks: Refund Clerk asks to call refund [{request}]")
    assert lines[start + 1 : start + 4] == [
        f"  refund waits; approve it, or reject it: durable-swarm approve {request}",
        "  refund approved by ann",
        "  refund → refunded 250",
    ]
