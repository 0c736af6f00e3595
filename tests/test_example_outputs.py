"""The examples of answers with a type and of guardrails, and the pages on them, run offline."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Blocked, DurableSwarm, Swarm
from durable_swarm.testing import ScriptedModel, call, otherwise, when
from tests.docs.pages import examples_of

ROOT = Path(__file__).parent.parent
WRONG = '{"customer": 1815, "lines": []}'
RIGHT = '{"customer": 1815, "lines": [{"item": "lamp", "count": 2, "cents": 2000}]}'


def test_the_example_gives_an_invoice() -> None:
    """The example looks up the customer, corrects the model once, and gives a value whose total can be asked."""
    model = ScriptedModel([[call("customer_number", name="Analytical Engines")], WRONG, RIGHT])
    invoice = runpy.run_path(str(ROOT / "examples" / "invoice" / "main.py"))["main"](model)
    assert invoice.total == 4000
    assert "lines: List should have at least 1 item" in model.calls[-1]["messages"][-1]["content"]


def test_the_page_is_a_program(tmp_path: Path) -> None:
    """The example of the page decides about a refund."""
    [block] = examples_of("docs/structured-output.md")
    (tmp_path / "page.py").write_text(block)
    decide = runpy.run_path(str(tmp_path / "page.py"))["decide"]
    with DurableSwarm(ScriptedModel(['{"order": "A1", "amount": 5, "reason": "broken"}'])) as swarm:
        assert decide(swarm, "It is broken.").amount == 5


def test_the_page_on_guardrails_is_a_program(tmp_path: Path) -> None:
    """The guardrails of the page refuse what is off topic, and answers with secrets."""
    [block] = examples_of("docs/guardrails.md")
    (tmp_path / "page.py").write_text(block)
    ask = runpy.run_path(str(tmp_path / "page.py"))["ask"]
    swarm = Swarm(ScriptedModel(["Rain.", "It was shipped.", "The password is x."]))
    assert ask(swarm, "How is the weather?") == "I can only help with orders."
    assert ask(swarm, "Where is my order?") == "It was shipped."
    with pytest.raises(Blocked, match="secret in the answer"):
        ask(swarm, "My order?")


def test_the_guarded_clerk_helps_with_orders_only(capsys: pytest.CaptureFixture[str]) -> None:
    """The example asks its judge, looks up an order beside it, and pays back only what was on topic."""

    def topic(request: dict[str, Any]) -> str:
        on_topic = "order" in str(request["messages"][-1])
        return f'{{"about_orders": {str(on_topic).lower()}, "reason": "it says so"}}'

    rules = [
        when(system="Is this about", reply=topic),
        when(said="weather", reply=[call("refund", order="A1")]),
        when(said="number", reply="It is +49 30 1."),
        when(tool="look_up", reply=[call("refund", order="A1")]),
        when(tool="refund", reply="Refunded."),
        otherwise([call("look_up", order="A1")]),
    ]
    main = runpy.run_path(str(ROOT / "examples" / "guarded" / "main.py"))["main"]
    assert main("Refund the parcel with the hat of yesterday's order", ScriptedModel(rules)) == "Refunded."
    assert main("How is the weather?", ScriptedModel(rules)) == "I can only help with orders."
    with pytest.raises(Blocked, match="a phone number"):
        main("The number of the shop of my order?", ScriptedModel(rules))
    assert capsys.readouterr().out == "looking up A1\nrefunding A1\n"
