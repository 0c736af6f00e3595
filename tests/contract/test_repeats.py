"""A call that the model makes again after it has succeeded: allowed, answered with the earlier result, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ToolError, tool
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, Run, tool_contents, user
from tests.engine.helpers import unique
from tests.support.patience import PATIENCE

PAY = ("pay", '{"order": "A", "amount": 5}')
SAME = ("pay", '{ "amount":5,"order":"A" }')
OTHER = ("pay", '{"order": "B", "amount": 5}')


def paying(repeat: Any, **more: Any) -> tuple[Agent, list[str]]:
    """Make an agent with a tool that counts its calls, and fails for an order called "none"."""
    entered: list[str] = []

    @tool(repeat=repeat, **more)
    def pay(order: str, amount: int = 1) -> str:
        entered.append(order)
        if order == "none" and len(entered) < 3:
            raise ToolError("no such order")
        return f"paid {order}, number {len(entered)}"

    return Agent(name=unique(), functions=[pay]), entered


@pytest.mark.parametrize("together", [False, True])
def test_in_later_turns(make_swarm: MakeSwarm, run: Run, together: bool) -> None:
    """`reuse` gives the earlier result, `refuse` an error that has it; other arguments, or `allow`, enter the tool."""
    told = {}
    for repeat in ("allow", "reuse", "refuse"):
        agent, entered = paying(repeat)
        swarm = make_swarm(ScriptedModel([[PAY], [SAME, OTHER], "Done"]), tool_concurrency=2 if together else 1)
        told[repeat] = (tool_contents(run(swarm, agent, user())), sorted(entered))
    first, refused, _ = told["refuse"][0]
    assert first == "paid A, number 1"
    assert refused.startswith("Error: ")
    assert refused.endswith("paid A, number 1")
    assert told["reuse"] == (["paid A, number 1", "paid A, number 1", "paid B, number 2"], ["A", "B"])
    assert told["refuse"][1] == ["A", "B"]
    assert told["allow"][1] == ["A", "A", "B"]


@pytest.mark.parametrize("together", [False, True])
def test_twins_in_one_reply(make_swarm: MakeSwarm, run: Run, together: bool) -> None:
    """Of equal calls in one reply the first is made, and the others get its result, or an error."""
    told = {}
    for repeat in ("allow", "reuse", "refuse"):
        agent, entered = paying(repeat)
        swarm = make_swarm(ScriptedModel([[PAY, OTHER, SAME], "Done"]), tool_concurrency=3 if together else 1)
        told[repeat] = (tool_contents(run(swarm, agent, user())), len(entered))
    assert told["reuse"][0][0] == told["reuse"][0][2]
    assert told["reuse"][1] == told["refuse"][1] == 2
    assert told["refuse"][0][2].startswith("Error: ")
    assert told["allow"][1] == 3


@pytest.mark.parametrize("repeat", ["reuse", "refuse"])
def test_what_failed_may_be_tried_again(make_swarm: MakeSwarm, run: Run, repeat: str) -> None:
    """Only a success stands in the way: a call that failed, or was refused for its arguments, is made again."""
    agent, entered = paying(repeat)
    calls = [("pay", '{"order": "none"}'), ("pay", '{"amount": 5}')]
    swarm = make_swarm(ScriptedModel([calls, calls, calls, "Done"]))
    contents = tool_contents(run(swarm, agent, user()))
    assert len(entered) == 3
    assert contents[4] == "paid none, number 3"


@pytest.mark.parametrize("repeat", ["reuse", "refuse"])
def test_nobody_is_asked_again(make_swarm: MakeSwarm, plain_run: Run, repeat: str) -> None:
    """Neither a person nor the effect class has a say in a call that is not made."""
    agent, entered = paying(repeat, effect="once", approval=lambda order: order == "never")
    swarm = make_swarm(ScriptedModel([[PAY], [PAY], "Done"]))
    plain_run(swarm, agent, user())
    assert entered == ["A"]


def test_a_handoff_is_made_again(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A call that hands over does so each time: its result is no answer that could stand for it."""

    @tool(repeat="reuse")
    def back() -> Agent:
        return first

    @tool(repeat="reuse")
    def over() -> Agent:
        return second

    first, second = Agent(name="First", functions=[over]), Agent(name="Second", functions=[back])
    swarm = make_swarm(ScriptedModel([["over"], ["back"], ["over"], "Done"]))
    assert plain_run(swarm, first, user()).agent.name == "Second"


def test_a_history_of_its_own(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """What an earlier run did, and a program gives as history, stands in nobody's way."""
    agent, entered = paying("refuse")
    swarm = make_swarm(ScriptedModel([[PAY], "Done", [PAY], "Done"]))
    said = plain_run(swarm, agent, user()).messages
    plain_run(swarm, agent, [*user(), *said, *user()])
    assert entered == ["A", "A"]


@pytest.mark.parametrize("repeat", ["never", None, True])
def test_a_wrong_setting(repeat: Any) -> None:
    """A setting that is none of the three is refused at once."""
    with pytest.raises(ConfigurationError, match="repeat must be one of allow, reuse, refuse"):
        tool(repeat=repeat)(user)


@pytest.mark.parametrize("calls", [[PAY, SAME], [PAY, OTHER, SAME]])
def test_records_hold_the_decision(tmp_path: Any, calls: list[Any]) -> None:
    """Read from records, the run is what it was, with the code gone; a fork keeps it; events tell each result once."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    agent, _ = paying("reuse")
    with DurableSwarm(ScriptedModel([calls, [SAME], "Done"]), database=url) as swarm:
        response = swarm.run(agent, user(), run_id="r")
        live = [(event.seq, event.type, event.data) for event in swarm.get("r").events()]
    with DurableSwarm(ScriptedModel(["Else"]), database=url) as swarm:
        found = swarm.get("r")
        assert found.messages() == response.messages
        assert [(event.seq, event.type, event.data) for event in found.events()] == live
        results = [data["result"] for _, kind, data in live if kind == "tool.finished"]
        assert results == tool_contents(response)
        forked = found.fork(2)
        assert forked.result(PATIENCE).messages[:-1] == response.messages[:-1]
        steps = [step for step in forked.steps() if step.kind == "tool"]
        assert [step.output for step in steps] == results
        assert [step.same_as for step in steps][-1] == 2


def test_approvals_name_the_step(make_swarm: MakeSwarm) -> None:
    """The request for a repeated call, or for a twin, names the step that it repeats; others name none."""
    agent, _ = paying("allow", approval=True)
    swarm = make_swarm(ScriptedModel([[PAY, SAME], [OTHER, PAY], "Done"]))
    asked = _approve_all(swarm, agent)
    assert asked == [(0, "A", None), (1, "A", 2), (2, "B", None), (3, "A", 2)]


def _approve_all(swarm: Any, agent: Agent) -> list[tuple[int, str, int | None]]:
    """Run in a thread, approve what is asked, and return each request's number, order and `same_as`."""
    from concurrent.futures import ThreadPoolExecutor

    asked: dict[str, tuple[int, str, int | None]] = {}
    with ThreadPoolExecutor() as pool:
        over = pool.submit(swarm.run, agent, user())
        while not over.done():
            for request in swarm.requests():
                if request.id not in asked:
                    asked[request.id] = (len(asked), request.arguments["order"], request.same_as)
                    swarm.approve(request.id)
        over.result()
    return list(asked.values())


def test_a_result_that_no_parser_reads(make_swarm: MakeSwarm, run: Run) -> None:
    """A result that looks like a handoff and is nested too deep for any parser counts as a result."""
    result, entered = '{"assistant": ' + "[" * 100_000, list[str]()

    @tool(repeat="reuse")
    def nest() -> str:
        entered.append("nest")
        return result

    agent = Agent(name=unique(), functions=[nest])
    swarm = make_swarm(ScriptedModel([[("nest", "{}")], [("nest", "{}")], "Done"]))
    assert tool_contents(run(swarm, agent, user())) == [result, result]
    assert entered == ["nest"]
