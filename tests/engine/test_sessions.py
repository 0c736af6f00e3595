"""Sessions in a database: what is stored of them, whose turn it is, and what becomes of them after a crash."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    Compaction,
    ConfigurationError,
    DurableSwarm,
    RunCancelled,
    RunConflict,
    RunNotFound,
    SessionBusy,
)
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.engine.storage.retention import Retention
from durable_swarm.engine.storage.runs import Store
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, rows, stored_texts, unique, user, wait_until


def echo(request: Any) -> str:
    return f"re: {request['messages'][-1]['content']}"


def said(request: Any) -> list[str]:
    return [message["content"] for message in request["messages"][1:]]


def texts(session: Any) -> list[str]:
    return [message["content"] for message in session.messages()]


class Gate:
    """An agent whose tool waits until it is let go, at the message "wait"."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.agent = Agent(name=unique(), functions=[self.wait])
        self.model = ScriptedModel(lambda request: [("wait", {})] if said(request)[-1] == "wait" else echo(request))

    def wait(self) -> str:
        """Wait."""
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return "waited"


def test_each_message_is_stored_once(make_anywhere: Make, database_url: str) -> None:
    """A run's record has its own messages only, with the session, its number and the run before it."""
    swarm = make_anywhere(ScriptedModel(echo))
    session = swarm.session("once", Agent(name=unique()))
    for number in range(5):
        session.run(f"text-{number}-of-five")
    stored = "".join(stored_texts(database_url))
    assert [stored.count(f"text-{number}-of-five") for number in range(5)] == [2] * 5  # The message, and its echo.
    runs = session.runs()
    starts = [swarm._store().start_record(swarm._store().found(run.id)) for run in runs]
    assert [(start["session"], start["number"], start.get("base")) for start in starts] == [
        ("once", number + 1, runs[number - 1].id if number else None) for number in range(5)
    ]


def test_a_session_goes_on_in_another_process(make_anywhere: Make) -> None:
    """The first request after a restart is the one that would have been sent without it."""
    agent = Agent(name=unique())
    first, second = ScriptedModel(echo), ScriptedModel(echo)
    with make_anywhere(first) as swarm:
        session = swarm.session("restart", agent)
        for text in ("one", "two"):
            session.run(text)
        session.run("three")
        swarm.session("twin", agent).run("x")
    with make_anywhere(second) as swarm:
        assert swarm.session("restart").run("four").messages[-1]["content"] == "re: four"
        assert {session.id for session in swarm.sessions()} == {"restart", "twin"}
    expected = [*first.calls[2]["messages"], {"role": "assistant", "content": "re: three"}, *user("four")]
    assert json.dumps(second.calls[0]["messages"]) == json.dumps(expected)


def test_the_messages_before_a_run_are_read_once(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that executes run after run of a session reads no earlier run again, however long the session is."""
    read: list[int] = []
    some = Store.some

    def counted(store: Store, run_ids: list[str]) -> Any:
        read.append(len(run_ids))
        return some(store, run_ids)

    agent = Agent(name=unique())
    with make_anywhere(ScriptedModel(echo)) as swarm:
        session = swarm.session("read", agent)
        monkeypatch.setattr(Store, "some", counted)
        for number in range(12):
            session.run(str(number))
        assert read == []
    with make_anywhere(ScriptedModel(echo)) as swarm:
        session = swarm.session("read")
        for number in range(3):
            session.run(str(number))
        assert read == [12]
        assert len(session.messages(limit=4)) == 4


def test_the_same_run_id_is_one_message(make_anywhere: Make) -> None:
    """The same `run_id` returns the recorded response; with other messages or in another session it is refused."""
    model, agent = ScriptedModel(echo), Agent(name=unique())
    swarm = make_anywhere(model)
    session = swarm.session("ids", agent)
    assert session.run("one", run_id="first").messages == session.run("one", run_id="first").messages
    session.run("two")
    again = session.run("one", run_id="first", when_busy="interrupt")
    assert (again.messages[-1]["content"], len(model.calls)) == ("re: one", 2)
    with pytest.raises(RunConflict):
        session.run("other", run_id="first")
    with pytest.raises(RunConflict):
        swarm.session("others", agent).run("one", run_id="first")
    with pytest.raises(RunConflict):
        swarm.run(agent, user("one"), run_id="first")
    assert texts(session) == ["one", "re: one", "two", "re: two"]


def test_runs_wait_for_their_turn(make_anywhere: Make) -> None:
    """A run that waits is `queued`, says for what, may be cancelled, and is then left out; streams wait, too."""
    gate = Gate()
    swarm = make_anywhere(gate.model)
    session = swarm.session("turns", gate.agent)
    first = session.start("wait")
    assert gate.entered.wait(PATIENCE)
    waiting, withdrawn = session.start("second"), session.start("withdrawn")
    assert (waiting.status, first.status) == ("queued", "running")
    assert "turn in session 'turns'" in str(waiting.waits_for)
    assert [run.id for run in session.runs()] == [first.id, waiting.id, withdrawn.id]
    withdrawn.cancel()
    with pytest.raises(RunCancelled):
        withdrawn.result(PATIENCE)
    threading.Timer(0, gate.opened.set).start()
    pieces = list(session.run("third", stream=True))
    assert pieces[-1]["response"].messages[-1]["content"] == "re: third"
    assert waiting.result(PATIENCE).messages[-1]["content"] == "re: second"
    assert texts(session)[3:] == ["re: waited", "second", "re: second", "third", "re: third"]
    assert (waiting.waits_for, [event.type for event in waiting.events()][-1]) == (None, "run.finished")


def test_an_older_run_is_not_resumed(make_anywhere: Make) -> None:
    """A failed run continues only while no newer one stands on it."""
    broken = [True]

    def work() -> str:
        if broken[0]:
            raise ValueError("broken")
        return "worked"

    agent = Agent(name=unique(), functions=[work])
    model = ScriptedModel(lambda request: [("work", {})] if said(request)[-1] == "work" else echo(request))
    swarm = make_anywhere(model)
    session = swarm.session("resumed", agent)
    failed = session.start("work")
    with pytest.raises(ValueError, match="broken"):
        failed.result(PATIENCE)
    wait_until(lambda: session.context_variables == {})
    broken[0] = False
    failed.resume()
    with pytest.raises(SessionBusy):
        session.run("x", when_busy="reject")
    assert failed.result(PATIENCE).messages[-1]["content"] == "re: worked"
    broken[0] = True
    older = session.start("work")
    with pytest.raises(ValueError, match="broken"):
        older.result(PATIENCE)
    session.run("next")
    with pytest.raises(RunConflict, match="fork"):
        older.resume()
    assert older.status == "failed"
    assert texts(session)[-2:] == ["next", "re: next"]
    broken[0] = False
    fork = older.fork(0)
    assert fork.result(PATIENCE).messages[-1]["content"] == "re: worked"
    assert said(model.calls[-1])[:3] == ["work", None, "worked"]


def test_a_cancelled_message_may_be_sent_after_all(make_anywhere: Make) -> None:
    """Resuming a run that was cancelled before its turn lets it wait for its turn again."""
    gate = Gate()
    session = make_anywhere(gate.model).session("after-all", gate.agent)
    session.start("wait")
    assert gate.entered.wait(PATIENCE)
    withdrawn = session.start("second")
    withdrawn.cancel()
    withdrawn.resume()
    assert withdrawn.status == "queued"
    gate.opened.set()
    assert withdrawn.result(PATIENCE).messages[-1]["content"] == "re: second"
    assert texts(session)[-2:] == ["second", "re: second"]


def test_a_cancelled_message_does_not_keep_its_session_busy(make_anywhere: Make, database_url: str) -> None:
    """A run that was cancelled before its turn while none was in progress is noted, so the session can be deleted."""
    session = make_anywhere(ScriptedModel(echo)).session("noted", Agent(name=unique()))
    run = session.start("one")
    run.result(PATIENCE)
    wait_until(lambda: session.agent and session._swarm._store().sessions.unsettled({""}) == [])
    change(database_url, "UPDATE {schema}durable_swarm_session_runs SET state = 'waits'")
    wait_until(lambda: rows(database_url, "state", "durable_swarm_session_runs") == [("withdrawn",)])
    session.delete()
    assert session.runs() == []


def test_async_senders_are_answered_in_order(make_anywhere: Make) -> None:
    """On an event loop, too, messages of a session are answered one after the other, whole or streamed."""
    model = ScriptedModel(echo)
    swarm = make_anywhere(model)

    async def main() -> list[str]:
        session = swarm.session("async", Agent(name=unique()))

        async def streamed(text: str) -> str:
            items = [item async for item in session.run_async(text, stream=True)]
            return str(items[-1]["response"].messages[-1]["content"])

        async def plain(text: str) -> str:
            return str((await session.run_async(text)).messages[-1]["content"])

        started = await session.start_async("0")
        answers = await asyncio.gather(plain("1"), streamed("2"), plain("3"))
        await started.result_async()
        assert len(await session.runs_async()) == 4
        assert len(await session.messages_async()) == 8
        fork = await session.fork_async("async-fork")
        await fork.delete_async()
        return answers

    assert asyncio.run(main()) == ["re: 1", "re: 2", "re: 3"]
    assert [len(said(request)) for request in model.calls] == [1, 3, 5, 7]


def test_a_tool_cannot_wait_for_its_own_run(make_anywhere: Make) -> None:
    """A tool that sends a message to its own session is told why that would never end."""

    def ask() -> str:
        with pytest.raises(ConfigurationError, match="its own"):
            session.run("from the tool")
        return "refused"

    session = make_anywhere(ScriptedModel([[("ask", {})], "Done."])).session(
        "own", Agent(name=unique(), functions=[ask])
    )
    assert session.run("Hi").messages[-1]["content"] == "Done."


def test_swarms_of_other_names_have_other_sessions(make_anywhere: Make) -> None:
    """A session belongs to the swarms of its name; another one is refused before anything runs."""
    agent = Agent(name=unique())
    model = ScriptedModel(echo)
    make_anywhere(model, name="first").session("owned", agent).run("Hi")
    with pytest.raises(ConfigurationError, match="belongs to a swarm named 'first'"):
        make_anywhere(model, name="second").session("owned", agent).run("Hi")
    assert len(model.calls) == 1


def test_an_encrypted_session_is_stored_encrypted(make_anywhere: Make, database_url: str) -> None:
    """Nothing that users say stands in the tables of a session whose swarm encrypts."""
    keys = EncryptionCodec(new_key())
    swarm = make_anywhere(ScriptedModel(echo), codec=keys)
    session = swarm.session("sealed", Agent(name=unique()), context_variables={"card": "secret-card"})
    session.run("secret-text")
    session.run("more")
    assert (session.context_variables, len(texts(session))) == ({"card": "secret-card"}, 4)
    stored = [*stored_texts(database_url), *[row[0] for row in rows(database_url, "context", "durable_swarm_sessions")]]
    assert not [text for text in stored if "secret" in text]


def test_old_sessions_are_deleted_whole(make_anywhere: Make) -> None:
    """Retention deletes a session with all its runs or not at all, because later runs stand on the earlier ones."""
    agent = Agent(name=unique())
    swarm = make_anywhere(ScriptedModel(echo))
    for name in ("kept", "old"):
        swarm.session(name, agent).run("one")
    swarm.run(agent, user())
    store = swarm._store()
    wait_until(lambda: not store.sessions.unsettled({""}))
    before = max(row.updated_at for row in [*store.sessions.listed(), *store.rows()]) + 1
    swarm.session("kept").run("two")
    wait_until(lambda: swarm.session("kept").updated_at is not None and not store.sessions.unsettled({""}))
    old = Retention(store, before)
    assert (old.count(), old.delete()) == (2, 2)
    assert len(swarm.session("kept").messages()) == 4
    assert swarm.session("old").messages() == []
    assert [session.id for session in swarm.sessions()] == ["kept"]


def test_deleting_a_session_deletes_its_runs(make_anywhere: Make, database_url: str) -> None:
    """After `delete` nothing of the session's runs is stored; runs that a fork has stay until that is deleted."""
    swarm = make_anywhere(ScriptedModel(echo))
    session = swarm.session("deleted", Agent(name=unique()))
    first, second = session.run("one").run_id, session.run("two").run_id
    fork = session.fork("fork", run=first)
    session.delete()
    assert first is not None
    assert second is not None
    assert swarm.get(first).status == "done"
    with pytest.raises(RunNotFound):
        swarm.get(second)
    assert swarm.export(first)["start"]["messages"] == user("one")
    fork.run("three")
    exported = swarm.export(fork.runs()[-1].id)
    assert [message["content"] for message in exported["start"]["messages"]] == ["one", "re: one", "three"]
    assert "session" not in exported["start"]
    fork.delete()
    assert rows(database_url, "run_id", "durable_swarm_session_runs") == []
    assert rows(database_url, "workflow_uuid", "operation_outputs") == []


def test_an_exported_run_stands_alone(make_anywhere: Make, tmp_path: Any) -> None:
    """A run of a session is exported with the messages before it, and imported as a run of its own."""
    session = make_anywhere(ScriptedModel(echo)).session("exported", Agent(name=unique()))
    session.run("one")
    run_id = session.run("two").run_id
    assert run_id is not None
    document = session._swarm.export(run_id)
    assert session._swarm.import_run(document).id == run_id
    session._swarm.close()
    with DurableSwarm(ScriptedModel(echo), database=f"sqlite:///{tmp_path}/other.sqlite") as other:
        run = other.import_run(document)
        assert run.messages()[-1]["content"] == "re: two"
        assert other.sessions() == []


def test_a_summary_outlives_its_process(make_anywhere: Make) -> None:
    """Another process sends the summary and what follows it, reads no more than that, and shows the step."""
    given: list[int] = []

    def summarize(messages: list[Any]) -> str:
        given.append(len(messages))
        return "so far"

    agent, compaction = Agent(name=unique()), Compaction(at_messages=5, keep_last=2, function=summarize)
    first, second = ScriptedModel(echo), ScriptedModel(echo)
    with make_anywhere(first) as swarm:
        session = swarm.session("summary", agent, compaction=compaction)
        for number in range(4):
            session.run(str(number))
        assert [step.name for step in session.runs()[-1].steps()] == [f"compact:{agent.name}", f"model:{agent.name}"]
        exported = swarm.export(session.runs()[-1].id)["start"]["messages"]
    sent = first.calls[3]["messages"][1:]
    assert [message["content"] for message in exported] == [message["content"] for message in sent]
    with make_anywhere(second) as swarm:
        session = swarm.session("summary")
        session.run("more")
        assert len(texts(session)) == 10
        assert session.fork("fork").run("in the fork").messages[-1]["content"] == "re: in the fork"
    assert said(second.calls[0]) == [*[message["content"] for message in sent], "re: 3", "more"]
    assert said(second.calls[1]) == [*said(second.calls[0]), "re: more", "in the fork"]
    assert given == [5]
