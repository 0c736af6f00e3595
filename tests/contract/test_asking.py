"""Questions, approvals and results that come later, in memory and durably alike."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    AlreadyAnswered,
    ConfigurationError,
    InvalidAnswer,
    NotInRun,
    RequestExpired,
    Response,
    ask_human,
    ask_human_async,
    later,
    step,
    tool,
)
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import PATIENCE, MakeSwarm, Run, tool_contents, user

Answer = Callable[[Any, Any], None]
"""Answers a request of a swarm."""


def asked(swarm: Any, number: int = 1) -> list[Any]:
    """Wait until so many requests are open, and give them."""
    end = time.monotonic() + PATIENCE
    while len(found := swarm.requests()) < number:
        assert time.monotonic() < end, f"only {found} are open"
        time.sleep(0.005)
    return list(found)


def answered(run: Run, swarm: Any, agent: Agent, *answers: Answer) -> Response:
    """Run the agent in a thread, and answer its requests one after the other."""
    with ThreadPoolExecutor(1) as pool:
        over = pool.submit(run, swarm, agent, user())
        for answer in answers:
            answer(swarm, asked(swarm)[0])
        return over.result(PATIENCE)


def says(value: Any) -> Answer:
    return lambda swarm, request: swarm.answer(value, request.id)


def scripted(*calls: Any) -> ScriptedModel:
    return ScriptedModel([list(calls), "Done."])


def test_a_question_is_answered(make_swarm: MakeSwarm, run: Run) -> None:
    """`ask_human` gives a tool what a person has answered, in plain tools and async ones."""

    def plain() -> str:
        return f"plain {ask_human('Colour?')}"

    async def waiting() -> str:
        return f"async {await ask_human_async('Size?', choices=['s', 'm'])}"

    agent = Agent(functions=[plain, waiting])
    response = answered(
        run,
        make_swarm(ScriptedModel([["plain"], ["waiting"], "Done."])),
        agent,
        says("red"),
        says("m"),
    )
    assert tool_contents(response) == ["plain red", "async m"]


def test_a_request_shows_what_is_asked(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A request names its run, agent, tool and question, and the choices there are."""
    seen: list[Any] = []

    def paint() -> str:
        return ask_human("Colour?", choices=["red", "blue"], timeout=100)

    def look(swarm: Any, request: Any) -> None:
        seen.append(request)
        swarm.answer("red", request.id)

    answered(plain_run, make_swarm(scripted("paint")), Agent(name="Desk", functions=[paint]), look)
    request = seen[0]
    assert (request.kind, request.status) == ("question", "open")
    assert (request.agent, request.tool, request.question) == ("Desk", "paint", "Colour?")
    assert request.choices == ["red", "blue"]
    assert 90 < (request.expires_at - request.created_at).total_seconds() <= 100


def test_an_answer_is_one_of_the_choices(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """An answer outside the choices, or that is no text, raises `InvalidAnswer` and leaves the request open."""

    def paint() -> str:
        return ask_human("Colour?", choices=["red", "blue"])

    def insist(swarm: Any, request: Any) -> None:
        for wrong in ("green", 7, None):
            with pytest.raises(InvalidAnswer):
                swarm.answer(wrong, request.id)
        with pytest.raises(InvalidAnswer, match="takes answer"):
            swarm.approve(request.id)
        swarm.answer("blue", request.id)

    response = answered(plain_run, make_swarm(scripted("paint")), Agent(functions=[paint]), insist)
    assert tool_contents(response) == ["blue"]


def test_an_answer_is_taken_once(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Of many answers at once one is taken; all others raise `AlreadyAnswered`, which names who was first."""
    taken, refused = [], []

    def paint() -> str:
        answer = ask_human("Colour?")
        gate.wait(PATIENCE)
        return answer

    gate = threading.Event()

    def crowd(swarm: Any, request: Any) -> None:
        def one(number: int) -> None:
            try:
                swarm.answer(str(number), request.id, by=f"person {number}")
                taken.append(str(number))
            except AlreadyAnswered as error:
                refused.append(str(error).rpartition(" ")[2])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(8)))
        gate.set()

    response = answered(plain_run, make_swarm(scripted("paint")), Agent(functions=[paint]), crowd)
    assert tool_contents(response) == taken
    assert refused == taken * 7


def test_nobody_answers(make_swarm: MakeSwarm, run: Run) -> None:
    """Past its timeout a question gives its default; without one it raises `RequestExpired`."""

    def patient() -> str:
        return ask_human("Colour?", timeout=0.05, default="grey")

    async def strict() -> str:
        try:
            return await ask_human_async("Size?", timeout=0.05)
        except RequestExpired as error:
            return f"expired: {error}"

    swarm = make_swarm(ScriptedModel([["patient", "strict"], "Done."]))
    first, second = tool_contents(run(swarm, Agent(functions=[patient, strict]), user()))
    assert first == "grey"
    assert second == "expired: nobody answered 'Size?' within 0.05 s"


def test_approved_as_it_is(make_swarm: MakeSwarm, run: Run) -> None:
    """A call that needs approval is made once a person has approved it, with the arguments that were shown."""
    made: list[Any] = []

    @tool(approval=True)
    def refund(item: str, amount: int) -> str:
        made.append((item, amount))
        return "refunded"

    def approve(swarm: Any, request: Any) -> None:
        assert (request.kind, request.tool, request.arguments) == ("approval", "refund", {"item": "a", "amount": 5})
        assert made == []
        swarm.approve(request.id, by="ann")

    model = scripted(("refund", {"item": "a", "amount": 5}))
    response = answered(run, make_swarm(model), Agent(functions=[refund]), approve)
    assert (made, tool_contents(response)) == ([("a", 5)], ["refunded"])


def test_approved_with_changes(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """An approver may change the arguments to others that the tool's schema accepts."""

    @tool(approval=True)
    def refund(amount: int) -> str:
        return f"refunded {amount}"

    def less(swarm: Any, request: Any) -> None:
        for wrong in ({"amount": "much"}, {}, {"amount": 1, "to": "me"}):
            with pytest.raises(InvalidAnswer, match="do not fit"):
                swarm.approve(request.id, arguments=wrong)
        swarm.approve(request.id, arguments={"amount": 3})

    response = answered(plain_run, make_swarm(scripted(("refund", {"amount": 500}))), Agent(functions=[refund]), less)
    assert tool_contents(response) == ["refunded 3"]


def test_rejected(make_swarm: MakeSwarm, run: Run) -> None:
    """A rejection reaches the model as the tool's message, with its reason; the tool is not called."""
    made: list[int] = []

    @tool(approval=True)
    async def refund() -> str:
        made.append(1)
        return "refunded"

    response = answered(
        run,
        make_swarm(scripted("refund")),
        Agent(functions=[refund]),
        lambda swarm, request: swarm.reject("too much", request.id),
    )
    assert (made, tool_contents(response)) == ([], ["Error: this call was rejected: too much"])


def test_nobody_approves(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Past its `approval_timeout` a call counts as rejected."""

    @tool(approval=True, approval_timeout=0.05)
    def refund() -> str:
        return "refunded"

    response = plain_run(make_swarm(scripted("refund")), Agent(functions=[refund]), user())
    assert tool_contents(response) == ["Error: nobody has approved this call in time; it was not made."]


def test_a_rule_decides_who_asks(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """With a rule only the calls it names ask; it sees the defaults of what the model left out, and may take some."""

    @tool(approval=lambda amount: amount > 100)
    def refund(item: str, amount: int = 200) -> str:
        return f"{item} {amount}"

    calls = [("refund", {"item": "a", "amount": 5}), ("refund", {"item": "b"})]
    seen: list[Any] = []

    def approve(swarm: Any, request: Any) -> None:
        seen.append(request.arguments)
        swarm.approve(request.id)

    response = answered(plain_run, make_swarm(scripted(*calls)), Agent(functions=[refund]), approve)
    assert (seen, tool_contents(response)) == ([{"item": "b"}], ["a 5", "b 200"])


def test_a_rule_that_fails_asks(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A rule that raises lets nothing through: a person is asked, and told why."""

    def rule(amount: int) -> bool:
        raise LookupError("no price")

    @tool(approval=rule)
    def refund(amount: int) -> str:
        return "refunded"

    def approve(swarm: Any, request: Any) -> None:
        assert "LookupError: no price" in request.question
        swarm.approve(request.id)

    model = scripted(("refund", {"amount": 1}))
    assert tool_contents(answered(plain_run, make_swarm(model), Agent(functions=[refund]), approve)) == ["refunded"]


def test_approvals_of_a_reply_are_open_at_once(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """All calls of a reply that need approval ask at once, and may be decided in any order."""

    @tool(approval=True)
    def refund(item: str) -> str:
        return f"refunded {item}"

    def last_first(swarm: Any, _: Any) -> None:
        first, second = asked(swarm, 2)
        swarm.reject("no", second.id)
        swarm.approve(first.id)

    model = scripted(("refund", {"item": "a"}), ("refund", {"item": "b"}))
    response = answered(plain_run, make_swarm(model), Agent(functions=[refund]), last_first)
    assert tool_contents(response) == ["refunded a", "Error: this call was rejected: no"]


def test_a_result_that_comes_later(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool may give `later(token)`; the result is posted under the token, once."""

    def order() -> Any:
        return later("order-1")

    def deliver(swarm: Any, request: Any) -> None:
        assert request.kind == "result"
        assert swarm.complete("order-1", "delivered") is True
        with pytest.raises(AlreadyAnswered):
            swarm.complete("order-1", "delivered again")

    def slow() -> str:
        time.sleep(0.05)
        return "slow"

    model = ScriptedModel([["order"], ["slow"], "Done."])
    response = answered(run, make_swarm(model), Agent(functions=[order, slow]), deliver)
    assert tool_contents(response)[0] == "delivered"


def test_a_result_that_comes_too_early(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A result may be posted before the tool has given its token, as a fast webhook does."""
    swarm = make_swarm(scripted("order"))

    def order() -> Any:
        assert swarm.complete("order-2", "delivered") is False
        return later("order-2")

    assert tool_contents(plain_run(swarm, Agent(functions=[order]), user())) == ["delivered"]


def test_where_nobody_can_be_asked(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Outside a tool `ask_human` raises `NotInRun`; on the event loop it says what to use."""
    with pytest.raises(NotInRun):
        ask_human("Colour?")

    async def hasty() -> str:
        with pytest.raises(ConfigurationError, match="ask_human_async"):
            ask_human("Colour?")
        return "told"

    assert tool_contents(plain_run(make_swarm(scripted("hasty")), Agent(functions=[hasty]), user())) == ["told"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda: ask_human(""),
        lambda: ask_human("?", choices=[]),
        lambda: ask_human("?", choices="ab"),  # type: ignore[arg-type]
        lambda: ask_human("?", choices=[1]),  # type: ignore[list-item]
        lambda: ask_human("?", timeout=-1),
        lambda: later(""),
        lambda: tool(effect="twice"),  # type: ignore[call-overload]
        lambda: tool(approval="yes")(ask_human),  # type: ignore[type-var,arg-type]
        lambda: tool(check=print)(print),
        lambda: tool(effect="once", retries=1)(print),
        lambda: tool(effect="transactional", timeout=1)(print),
        lambda: tool(effect="transactional")(step(print)),
        lambda: tool(approval=True, approval_timeout=-1)(print),
        lambda: tool(approval_timeout=5)(lambda amount: ""),
        lambda: tool(approval=lambda sum: sum > 5)(lambda amount: ""),
        lambda: tool(approval=lambda context_variables: True)(lambda amount, context_variables: ""),
        lambda: tool(effect="once", check=lambda order: None)(lambda amount: ""),
    ],
)
def test_bad_arguments(ask: Callable[[], Any]) -> None:
    """What is wrong with a question or a tool's settings is told at once, in one line."""
    with pytest.raises(ConfigurationError) as error:
        ask()(print)
    assert "\n" not in str(error.value)


def test_unknown_requests(make_swarm: MakeSwarm) -> None:
    """Answering a request that does not exist says so."""
    swarm = make_swarm(ScriptedModel(["Done."]))
    with pytest.raises(ConfigurationError, match="no request 'nobody'"):
        swarm.answer("yes", "nobody")


@pytest.mark.parametrize("awaits", [False, True])
def test_a_question_ends_with_its_call(awaits: bool, make_swarm: MakeSwarm, run: Run) -> None:
    """What a tool has asked that its own timeout ended is open no more, and takes no answer."""

    @tool(timeout=2)
    def wait() -> str:
        return ask_human("Now?")

    @tool(timeout=2)
    async def wait_async() -> str:
        return await ask_human_async("Now?")

    def then() -> str:
        return ask_human("Later?")

    first = "wait_async" if awaits else "wait"
    swarm = make_swarm(ScriptedModel([[first], ["then"], "Done."]), tool_errors="tell")
    late: list[Any] = []

    def answer(swarm: Any, request: Any) -> None:
        end = time.monotonic() + PATIENCE
        while [one.question for one in swarm.requests()] != ["Later?"] and time.monotonic() < end:
            time.sleep(0.01)
        with contextlib.suppress(ConfigurationError, RequestExpired):
            swarm.answer("yes", request.id)
            late.append(request)
        swarm.answer("no", asked(swarm)[0].id)

    response = answered(run, swarm, Agent(functions=[wait, wait_async, then]), answer)
    assert not late
    assert "timeout" in tool_contents(response)[0]
    assert tool_contents(response)[1] == "no"
