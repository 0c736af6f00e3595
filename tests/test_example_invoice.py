"""The example of an agent that answers with a value, and the page on such agents, run offline."""

from __future__ import annotations

import runpy
from pathlib import Path

from durable_swarm import DurableSwarm
from durable_swarm.testing import ScriptedModel, call
from tests.test_readme import blocks_of

ROOT = Path(__file__).parent.parent
WRONG = '{"customer": 1815, "lines": []}'
RIGHT = '{"customer": 1815, "lines": [{"item": "lamp", "count": 2, "cents": 2000}]}'


def test_the_example_gives_an_invoice() -> None:
    """The example looks up the customer, corrects the model once, and gives a value whose total can be asked."""
    model = ScriptedModel([[call("customer_number", name="Analytical Engines")], WRONG, RIGHT])
    invoice = runpy.run_path(str(ROOT / "examples" / "invoice.py"))["main"](model)
    assert invoice.total == 4000
    assert "lines: List should have at least 1 item" in model.calls[-1]["messages"][-1]["content"]


def test_the_page_is_a_program(tmp_path: Path) -> None:
    """The example of the page decides about a refund."""
    [block] = blocks_of("docs/structured-output.md")
    (tmp_path / "page.py").write_text(block)
    decide = runpy.run_path(str(tmp_path / "page.py"))["decide"]
    with DurableSwarm(ScriptedModel(['{"order": "A1", "amount": 5, "reason": "broken"}'])) as swarm:
        assert decide(swarm, "It is broken.").amount == 5
