"""`examples/concierge/main.py` is a program: it books, hands over, and remembers the guest when it is started again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from durable_swarm.testing import ScriptedModel

EXAMPLE = Path(__file__).parent.parent / "examples" / "concierge" / "main.py"


def load() -> ModuleType:
    """Import the example as a program that is started."""
    spec = importlib.util.spec_from_file_location("concierge_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_concierge_remembers_a_guest() -> None:
    """The second start of the program answers with the agent and the conversation of the first."""
    example = load()
    first = ScriptedModel([[("book_table", {"guests": 2})], "Booked.", [("to_kitchen", {})], "Fish."])
    assert example.main("ann", "A table for two", client=first) == "Booked."
    assert example.main("ann", "What is there to eat?", client=first) == "Fish."
    second = ScriptedModel(["With rice."])
    assert example.main("ann", "With what?", client=second) == "With rice."
    request = second.calls[0]["messages"]
    assert "kitchen" in request[0]["content"]
    assert [message["content"] for message in request if message["role"] == "user"] == [
        *("A table for two", "What is there to eat?", "With what?")
    ]
