"""Scripts by rules: which request gets which reply, and that a killed program gets the replies it would have got."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, Swarm
from durable_swarm.errors import ConfigurationError
from durable_swarm.testing import ProviderError, ScriptedModel, call, cut, otherwise, rate_limited, slowly, when
from tests.support import programs

USER = {"role": "user", "content": "I want a Refund now"}
SYSTEM = {"role": "system", "content": "You are the triage agent."}


def called(*names: str) -> dict[str, Any]:
    """Give an assistant message that calls tools, with the ids `id_NAME`."""
    calls = [{"id": f"id_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}} for name in names]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(name: str, text: str) -> dict[str, Any]:
    """Give the tool message of `called`."""
    return {"role": "tool", "tool_call_id": f"id_{name}", "content": text}


def offer(*names: str) -> list[dict[str, Any]]:
    """Give the tools of a request."""
    return [{"type": "function", "function": {"name": name}} for name in names]


def ask(model: ScriptedModel, *messages: dict[str, Any], **more: Any) -> Any:
    """Give the message with which the model answers."""
    return model.chat.completions.create(model="m", messages=[SYSTEM, *messages], **more).choices[0].message


LOOKED = [USER, called("look_up", "weigh"), result("look_up", "Order A1: paid"), result("weigh", "2 kg")]


@pytest.mark.parametrize(
    ("conditions", "messages", "more"),
    [
        ({"said": "refund"}, [USER], {}),
        ({"said": re.compile(r"Refund\b")}, [USER], {}),
        ({"said": "parts"}, [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}], {}),
        ({"tool": "look_up"}, LOOKED, {}),
        ({"tool": "weigh"}, LOOKED, {}),
        ({"result": "order a1"}, LOOKED, {}),
        ({"tool": "weigh", "result": re.compile(r"^\d kg$")}, LOOKED, {}),
        ({"system": "triage"}, [USER], {}),
        ({"offers": "refund"}, [USER], {"tools": offer("look_up", "refund")}),
        ({"where": lambda request: request["temperature"] == 0}, [USER], {"temperature": 0}),
        ({"said": "refund", "system": "triage", "offers": "a"}, [USER], {"tools": offer("a")}),
    ],
)
def test_a_rule_that_fits(conditions: Any, messages: list[Any], more: Any) -> None:
    """Each condition holds for the request it describes, alone and with others."""
    assert ask(ScriptedModel([when(**conditions, reply="yes"), otherwise("no")]), *messages, **more).content == "yes"


@pytest.mark.parametrize(
    ("conditions", "messages", "more"),
    [
        ({"said": "discount"}, [USER], {}),
        ({"said": re.compile("refund")}, [USER], {}),
        ({"said": "refund"}, LOOKED, {}),
        ({"said": "refund"}, [USER, {"role": "assistant", "content": "refund"}], {}),
        ({"tool": "look"}, LOOKED, {}),
        ({"tool": "look_up"}, [USER], {}),
        ({"tool": "look_up"}, [*LOOKED, {"role": "assistant", "content": "Paid."}, USER], {}),
        ({"tool": "look_up"}, [*LOOKED, called("ship"), result("ship", "sent")], {}),
        ({"result": "refund"}, [USER], {}),
        ({"tool": "weigh", "result": "paid"}, LOOKED, {}),
        ({"system": "refunds agent"}, [USER], {}),
        ({"offers": "refund"}, [USER], {}),
        ({"offers": "refund"}, [USER], {"tools": offer("refund_all")}),
        ({"where": lambda request: "temperature" in request}, [USER], {}),
        ({"said": "refund", "system": "refunds agent"}, [USER], {}),
    ],
)
def test_a_rule_that_does_not_fit(conditions: Any, messages: list[Any], more: Any) -> None:
    """A condition that does not hold passes the request on, whatever else holds."""
    assert ask(ScriptedModel([when(**conditions, reply="yes"), otherwise("no")]), *messages, **more).content == "no"


def test_the_first_rule_that_fits_answers() -> None:
    """Rules are tried in their order, as often as they fit."""
    model = ScriptedModel([when(said="refund", reply="one"), when(said="want", reply="two"), otherwise("three")])
    assert [ask(model, USER).content for _ in range(3)] == ["one"] * 3
    assert ask(model, {"role": "user", "content": "I want"}).content == "two"


def test_every_form_of_reply_is_one_of_a_rule() -> None:
    """A rule gives tool calls, messages, exceptions, faults and what callables make, like a list of replies."""
    forms: dict[str, Any] = {
        "calls": [call("look_up", order="A1")],
        "message": {"role": "assistant", "content": "both", "tool_calls": ["look_up"]},
        "callable": lambda request: request["messages"][-1]["content"].upper(),
        "slow": slowly("late", latency=0.01),
        "limit": rate_limited(3),
        "class": TimeoutError,
        "cut": cut("never"),
    }
    model = ScriptedModel([when(said=said, reply=reply) for said, reply in forms.items()])

    def asked(said: str) -> Any:
        return ask(model, {"role": "user", "content": said})

    assert asked("calls").tool_calls[0].function.arguments == '{"order": "A1"}'
    assert (asked("message").content, asked("message").tool_calls[0].function.name) == ("both", "look_up")
    assert (asked("callable").content, asked("slow").content) == ("CALLABLE", "late")
    for said, error in (("limit", ProviderError), ("class", TimeoutError), ("cut", ConnectionError)):
        with pytest.raises(error):
            asked(said)


def test_no_rule_fits() -> None:
    """The error shows the request's ending, its prompt and its tools, and says what to add."""
    model = ScriptedModel([when(said="hello", reply="Hi")])
    with pytest.raises(ConfigurationError, match=r"add a when\(\.\.\.\) .*otherwise.*user: I want a Refund") as told:
        ask(model, USER, tools=offer("look_up"))
    assert "'You are the triage agent.'" in str(told.value)
    assert str(told.value).endswith("the tools on offer: look_up")
    with pytest.raises(ConfigurationError, match=r"tool look_up: Order A1: paid, tool weigh: 2 kg;.* none$"):
        ask(model, *LOOKED)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda: when(reply="Hi"), r"use otherwise\(\)"),
        (lambda: when(said="a", reply=None), "cannot give the reply None"),
        (lambda: otherwise([]), "cannot give the reply"),
        (lambda: when(said="a", reply=slowly(cut(3))), "cannot give the reply 3"),
        (lambda: when(said=["a"], reply="Hi"), r"when\(said=\.\.\.\) takes a text or a compiled pattern"),
        (lambda: when(tool=re.compile("a"), reply="Hi"), r"when\(tool=\.\.\.\) takes the name of one tool"),
        (lambda: when(offers=["a"], reply="Hi"), r"when\(offers=\.\.\.\) takes the name of one tool"),
        (lambda: when(where="a", reply="Hi"), r"when\(where=\.\.\.\) takes a function"),
        (lambda: ScriptedModel([otherwise("Hi"), "Ho"]), "not both in one list"),
        (lambda: ScriptedModel([otherwise("Hi"), when(said="a", reply="Ho")]), "would never answer; put it last"),
    ],
)
def test_a_wrong_rule_is_refused_at_once(write: Any, text: str) -> None:
    """A rule that cannot work is refused where it is written."""
    with pytest.raises(ConfigurationError, match=text):
        write()


def test_rules_have_no_memory() -> None:
    """The same request gets the same reply, ids of calls included, from a used script and from a new one."""
    rules = [when(said="refund", reply=["a", "b"]), when(tool="look_up", reply=["c"])]
    used = ScriptedModel(rules)
    seen = {**called("look_up"), "tool_calls": [{**called("look_up")["tool_calls"][0], "id": "call_7"}]}
    later = [USER, seen, {**result("look_up", "paid"), "tool_call_id": "call_7"}]
    for _ in range(2):
        assert [made.id for made in ask(used, USER).tool_calls] == ["call_1", "call_2"]
        assert ask(used, *later) == ask(ScriptedModel(rules), *later)
        assert [made.id for made in ask(used, *later).tool_calls] == ["call_8"]


PROGRAM = """
import json, os, signal
from pathlib import Path
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel
from program_rules import RULES, look_up

def refund(order: str) -> str:
    "Refund an order."
    with Path("ledger").open("a") as ledger:
        ledger.write("refund\\n")
    if Path("ledger").read_text().count("refund") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"refunded {order}"

model = ScriptedModel(RULES)
with DurableSwarm(model, database="sqlite:///runs.sqlite") as swarm:
    agent = Agent(name="Shop", functions=[look_up, refund])
    response = swarm.run(agent, [{"role": "user", "content": "Refund my order"}], run_id="r")
print(json.dumps([response.messages, [call["messages"][-1]["role"] for call in model.calls]]))
"""
RULES = """
from durable_swarm.testing import call, when

def look_up(order: str) -> str:
    "Look an order up."
    return "paid"

RULES = [
    when(tool="refund", result="refunded", reply="Done."),
    when(tool="look_up", result="paid", reply=[call("refund", order="A1")]),
    when(said="refund", reply=[call("look_up", order="A1")]),
]
"""


def test_a_killed_program_goes_on_by_its_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in a tool and started again, a run ends with the messages of a run that nothing disturbed."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "program_rules.py").write_text(RULES)
    command = [sys.executable, "program.py"]
    lives = [programs.run(command, cwd=tmp_path, capture_output=True, text=True, check=False) for _ in range(2)]
    assert [life.returncode for life in lives] == [-signal.SIGKILL, 0], lives[1].stderr
    messages, asked = json.loads(lives[1].stdout)
    assert asked == ["tool"]
    monkeypatch.syspath_prepend(str(tmp_path))
    rules = __import__("program_rules")

    def refund(order: str) -> str:
        """Refund an order."""
        return f"refunded {order}"

    undisturbed = Swarm(ScriptedModel(rules.RULES)).run(
        Agent(name="Shop", functions=[rules.look_up, refund]), [{"role": "user", "content": "Refund my order"}]
    )
    assert messages == undisturbed.messages
    assert messages[-1]["content"] == "Done."
