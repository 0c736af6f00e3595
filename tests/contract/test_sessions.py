"""Sessions: conversations of many runs, the same in memory and in a database."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    ConfigurationError,
    Result,
    RunCancelled,
    RunConflict,
    Session,
    SessionBusy,
    tool,
)
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import PATIENCE, MakeSwarm, Run


def said(request: Any) -> list[str]:
    """Give the texts of a request, without the system prompt."""
    return [message["content"] for message in request["messages"][1:]]


def echo(request: Any) -> str:
    return f"re: {request['messages'][-1]['content']}"


class Gate:
    """An agent whose tool waits until it is let go; other messages are answered at once."""

    def __init__(self, name: str) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.agent = Agent(name=name, functions=[self.wait])
        self.model = ScriptedModel(self.reply)

    def reply(self, request: Any) -> Any:
        last = request["messages"][-1]
        if last["role"] == "user" and last["content"] == "wait":
            return [("wait", {})]
        return echo(request)

    def wait(self) -> str:
        """Wait."""
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return "waited"


def assert_legal(request: Any) -> None:
    """Check that each call of a request has its result right behind it."""
    open_calls: list[str] = []
    for message in request["messages"]:
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
        else:
            assert not open_calls
            open_calls = [call["id"] for call in message.get("tool_calls") or []]
    assert not open_calls


def test_a_session_continues_where_it_was(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Each run of a session gets the messages, the agent and the context variables that the last one left."""

    def sell(context_variables: dict[str, Any]) -> Result:
        return Result(value="ok", agent=sales, context_variables={"count": context_variables["count"] + 1})

    desk = Agent(name="SessionDesk", instructions="Desk.", functions=[sell])
    sales = Agent(name="SessionSales", instructions=lambda context_variables: f"Sales {context_variables['count']}.")
    model = ScriptedModel(["Welcome.", [("sell", {})], "Sold.", "Again."])
    session = make_swarm(model).session("s", desk, context_variables={"count": 1})
    assert isinstance(session, Session)
    assert (session.agent, session.context_variables, session.created_at) == ("SessionDesk", {"count": 1}, None)
    plain_run(session, "Hi")
    plain_run(session, "Buy")
    response = plain_run(session, "More")
    assert [message["content"] for message in response.messages] == ["Again."]
    assert response.agent.name == session.agent == "SessionSales"
    assert session.context_variables == response.context_variables == {"count": 2}
    assert said(model.calls[-1]) == ["Hi", "Welcome.", "Buy", None, "ok", "Sold.", "More"]
    assert model.calls[-1]["messages"][0]["content"] == "Sales 2."
    assert [message["role"] for message in session.messages()] == [
        *("user", "assistant", "user", "assistant", "tool", "assistant", "user", "assistant")
    ]
    assert [message["content"] for message in session.messages(limit=2)] == ["More", "Again."]
    assert session.usage is not None
    assert session.usage.requests == 4
    assert session.created_at is not None
    assert session.created_at <= session.updated_at


def test_a_message_is_a_text_a_dictionary_or_a_list(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A message may be a text, a message dictionary or a list of them; anything else is refused before the run."""
    model = ScriptedModel(echo)
    swarm = make_swarm(model)
    session = swarm.session("shapes", Agent(name="SessionShapes"))
    plain_run(session, "one")
    plain_run(session, {"role": "user", "content": "two"})
    plain_run(session, [{"role": "user", "content": "three"}, {"role": "user", "content": "four"}])
    assert said(model.calls[-1]) == ["one", "re: one", "two", "re: two", "three", "four"]
    bad: list[Any] = [[], 3, None, {"content": "no role"}, {"role": "user"}, ["text in a list"]]
    for message in bad:
        with pytest.raises(ConfigurationError, match="message"):
            plain_run(session, message)
    with pytest.raises(ConfigurationError, match="when_busy"):
        plain_run(session, "x", when_busy="later")
    with pytest.raises(ConfigurationError, match="run_id"):
        plain_run(session, "x", when_busy="join", run_id="mine")
    with pytest.raises(ConfigurationError, match="limit"):
        session.messages(limit=0)
    with pytest.raises(ConfigurationError, match="id"):
        swarm.session("")
    assert len(model.calls) == 3


def test_a_new_session_needs_an_agent(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A new session without an agent is refused; one that exists needs none, and ignores another agent and context."""
    swarm, model = make_swarm(ScriptedModel(echo)), Agent(name="SessionFirst")
    with pytest.raises(ConfigurationError, match="agent"):
        plain_run(swarm.session("new"), "Hi")
    assert swarm.sessions() == []
    plain_run(swarm.session("new", model, context_variables={"a": 1}), "Hi")
    again = swarm.session("new", Agent(name="SessionOther"), context_variables={"a": 2})
    assert plain_run(again, "Hi").agent.name == "SessionFirst"
    assert plain_run(swarm.session("new"), "Hi").context_variables == {"a": 1}
    assert [session.id for session in swarm.sessions()] == ["new"]
    assert swarm.sessions(agent="SessionOther") == []


def test_a_failed_run_leaves_legal_messages(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A run that fails leaves its messages, with a result for each call, and the session continues."""

    def fail() -> str:
        raise ValueError("broken")

    model = ScriptedModel([[("fail", {})], "Sorry."])
    session = make_swarm(model).session("fails", Agent(name="SessionFailing", functions=[fail]))
    with pytest.raises(ValueError, match="broken"):
        plain_run(session, "Try")
    plain_run(session, "And now?")
    assert_legal(model.calls[-1])
    roles = [message["role"] for message in model.calls[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "user"]


def test_a_failed_run_leaves_the_results_it_has(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A call that has ended keeps its result for the next run, though another call of its reply fails the run."""

    def fail() -> str:
        raise ValueError("broken")

    model = ScriptedModel([[("look", {}), ("fail", {})], "Sorry."])
    session = make_swarm(model).session("partly", Agent(name="SessionPartly", functions=[look, fail]))
    with pytest.raises(ValueError, match="broken"):
        plain_run(session, "Try")
    plain_run(session, "And now?")
    results = [message["content"] for message in model.calls[-1]["messages"] if message["role"] == "tool"]
    assert results[0] == look()
    assert results[1].startswith("Error: this call has no result")


def test_calls_that_are_not_made_have_a_result_for_the_next_run(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """With `execute_tools=False` a run ends with open calls; the next run's request has a result for each."""
    model = ScriptedModel([[("look", {}), ("look", {})], "Well."])
    session = make_swarm(model).session("unmade", Agent(name="SessionUnmade", functions=[look]))
    plain_run(session, "Look", execute_tools=False)
    plain_run(session, "And?")
    assert_legal(model.calls[-1])


def look() -> str:
    return "seen"


def test_a_run_that_is_too_long_is_left_out(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Messages that a model could not take do not make every further run fail."""
    too_long = RuntimeError("This model's maximum context length is 8192 tokens")
    model = ScriptedModel(["Hi.", too_long, "Fine."])
    session = make_swarm(model).session("long", Agent(name="SessionLong"))
    plain_run(session, "Hi")
    with pytest.raises(Exception, match="maximum context"):
        plain_run(session, "a very long text")
    plain_run(session, "short")
    assert said(model.calls[-1]) == ["Hi", "Hi.", "short"]
    assert [message["content"] for message in session.messages()] == ["Hi", "Hi.", "short", "Fine."]


def test_messages_at_once_are_answered_in_order(make_swarm: MakeSwarm) -> None:
    """Messages to a busy session wait their turn, and each is answered with all that came before it."""
    gate = Gate("SessionGate")
    session = make_swarm(gate.model).session("busy", gate.agent)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(session.run, "wait")
        assert gate.entered.wait(PATIENCE)
        with pytest.raises(SessionBusy) as refused:
            session.run("now", when_busy="reject")
        assert refused.value.session == "busy"
        with pytest.raises(SessionBusy):
            session.delete()
        with pytest.raises(SessionBusy, match="when its first run has ended"):
            session.fork("too-early")
        others = [pool.submit(session.run, str(number)) for number in range(3)]
        gate.opened.set()
        assert first.result(PATIENCE).messages[-1]["content"] == "re: waited"
        assert sorted(one.result(PATIENCE).messages[-1]["content"] for one in others) == ["re: 0", "re: 1", "re: 2"]
    assert all(request["messages"][-1]["role"] in ("user", "tool") for request in gate.model.calls)
    for request in gate.model.calls:
        assert_legal(request)
    texts = [message["content"] for message in session.messages()][4:]
    assert texts[1::2] == [f"re: {text}" for text in texts[::2]]


class Busy:
    """An agent that calls its tool again and again, until one of these texts is among the messages."""

    def __init__(self, name: str, *until: str) -> None:
        self.begun, self.until = threading.Event(), until
        self.agent = Agent(name=name, functions=[self.tick])
        self.model = ScriptedModel(self.reply)

    def reply(self, request: Any) -> Any:
        found = [message["content"] for message in request["messages"] if message["content"] in self.until]
        return f"re: {found[-1]}" if found else [("tick", {})]

    def tick(self) -> str:
        """Tick."""
        self.begun.set()
        return "ticked"


def test_a_message_may_join_the_run_in_progress(make_swarm: MakeSwarm) -> None:
    """`when_busy="join"` gives the message to the run in progress, and returns its response to both senders."""
    busy = Busy("SessionJoined", "and this", "idle")
    session = make_swarm(busy.model).session("joined", busy.agent)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(session.run, "begin")
        assert busy.begun.wait(PATIENCE)
        joined = session.run("and this", when_busy="join")
        assert joined.messages == first.result(PATIENCE).messages
        assert joined.messages[-1]["content"] == "re: and this"
    assert [message["content"] for message in session.messages()].count("and this") == 1
    assert session.run("idle", when_busy="join").messages[-1]["content"] == "re: idle"


def test_a_message_may_interrupt_the_run_in_progress(make_swarm: MakeSwarm) -> None:
    """`when_busy="interrupt"` cancels the run in progress; its legal messages stay, and the new one is answered."""
    busy = Busy("SessionInterrupted", "stop")
    session = make_swarm(busy.model).session("interrupted", busy.agent)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(session.run, "begin")
        assert busy.begun.wait(PATIENCE)
        assert session.run("stop", when_busy="interrupt").messages[-1]["content"] == "re: stop"
        with pytest.raises(RunCancelled):
            first.result(PATIENCE)
    assert_legal(busy.model.calls[-1])
    assert said(busy.model.calls[-1])[:1] == ["begin"]


def test_a_repeated_call_is_known_in_the_whole_session(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """For `@tool(repeat=...)` a session counts as one run: a call of an earlier run is not made again."""
    paid: list[int] = []

    @tool(repeat="refuse")
    def pay(amount: int) -> str:
        paid.append(amount)
        return "paid"

    model = ScriptedModel([[("pay", {"amount": 5})], "Done.", [("pay", {"amount": 5})], "Again."])
    session = make_swarm(model).session("repeat", Agent(name="SessionRepeat", functions=[pay]))
    plain_run(session, "Pay 5")
    response = plain_run(session, "Pay 5")
    assert paid == [5]
    assert response.messages[1]["content"].startswith("Error:")


def test_a_fork_has_the_conversation_so_far(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A fork begins with the conversation, up to and with a run, and neither session changes the other."""
    swarm = make_swarm(ScriptedModel(echo))
    session = swarm.session("source", Agent(name="SessionForked"), context_variables={"a": 1})
    ids = [plain_run(session, text, run_id=f"fork-{text}").run_id for text in ("one", "two", "three")]
    whole, part = session.fork("whole"), session.fork("part", run=ids[0])
    assert whole.messages() == session.messages()
    assert part.messages() == session.messages()[:2]
    assert (part.agent, part.context_variables) == ("SessionForked", {"a": 1})
    plain_run(part, "other")
    plain_run(session, "four")
    assert [message["content"] for message in part.messages()] == ["one", "re: one", "other", "re: other"]
    assert len(whole.messages()) == 6
    for name in ("whole", "source"):
        with pytest.raises(RunConflict):
            session.fork(name)
    with pytest.raises(ConfigurationError):
        session.fork("new", run="unknown")
    with pytest.raises(ConfigurationError):
        swarm.session("empty").fork("new")


def test_a_deleted_session_is_gone(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A deleted session has no messages and begins anew; its fork keeps what it has."""
    swarm = make_swarm(ScriptedModel(echo))
    session = swarm.session("gone", Agent(name="SessionGone"))
    plain_run(session, "one")
    fork = session.fork("kept")
    session.delete()
    assert (session.messages(), session.created_at) == ([], None)
    assert [one.id for one in swarm.sessions()] == ["kept"]
    assert [message["content"] for message in fork.messages()] == ["one", "re: one"]
    plain_run(session, "two")
    assert [message["content"] for message in session.messages()] == ["two", "re: two"]
    session.delete()
    session.delete()
