"""The demo and the examples as scenarios: scripted models, and services that report their effects."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from durable_swarm import DurableSwarm, Response
from durable_swarm.testing import ScriptedModel, call, effect, otherwise, when

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    """Import an example from its file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refund() -> str:
    """`examples/refund/main.py` with a payment service that reports."""
    module = load("refund")

    class Reporting(module.Payments):  # type: ignore[misc]
        def refund(self, amount: int, key: str) -> str:
            effect("payment", key=key)
            return str(super().refund(amount, key))

    module.payments = Reporting()
    found: str = module.main(ScriptedModel([[call("refund", order="Z9")], [call("refund", order="A1")], "Refunded."]))
    return found


def travel() -> Any:
    """`examples/travel/main.py` with a booking service that reports."""
    module = load("travel")

    class Reporting(module.Hotels):  # type: ignore[misc]
        def book(self, city: str, nights: int, reference: str) -> str:
            effect("booking", key=reference)
            return str(super().book(city, nights, reference))

    module.hotels = Reporting()
    booked = [call("book_hotel", city="Rome", nights=2)]
    return module.main(ScriptedModel([["transfer_to_hotels"], booked, "Enjoy Rome."]))


def research() -> str:
    """`examples/research/main.py`."""
    searches = [call("search", source=source, topic="tea") for source in ("library", "archive", "press")]
    found: str = load("research").main("tea", ScriptedModel([searches, "Tea is old."]))
    return found


def newsroom() -> str:
    """`examples/newsroom/main.py`."""
    asked = [call("reporter", message="the bridge"), call("fact_checker", message="Built in 1899?")]
    model = ScriptedModel(
        [
            when(system="Ask the reporter", where=_has_results, reply="The bridge of 1899 is closed."),
            when(system="Ask the reporter", reply=asked),
            when(where=_has_results, reply="So it is."),
            when(offers="search", reply=[call("search", topic="the bridge")]),
            when(offers="look_up", reply=[call("look_up", claim="Built in 1899")]),
        ]
    )
    found: str = load("newsroom").main("bridge", model)
    return found


def _has_results(request: dict[str, Any]) -> bool:
    return bool(request["messages"][-1]["role"] == "tool")


def invoice() -> Any:
    """`examples/invoice/main.py`; the first value of the model lacks its lines."""
    sure = {"customer": 1815, "lines": [{"item": "lamp", "count": 2, "cents": 2000}]}
    replies = [
        [call("customer_number", name="Analytical Engines")],
        '{"customer": 1815, "lines": []}',
        json.dumps(sure),
    ]
    found = load("invoice").main(ScriptedModel(replies))
    return found.model_dump()


def guarded() -> str:
    """`examples/guarded/main.py`, asked for what needs reading alone."""
    verdict = '{"about_orders": true, "reason": "it says so"}'
    rules = [
        when(system="Is this about", reply=verdict),
        when(tool="look_up", reply="It was shipped yesterday."),
        otherwise([call("look_up", order="A1")]),
    ]
    found: str = load("guarded").main("Where is order A1?", ScriptedModel(rules), "guarded-1")
    return found


def concierge() -> str:
    """`examples/concierge/main.py`: two messages of one guest, the second of which stands on the first."""
    module, rules = (
        load("concierge"),
        [
            when(said="table", reply=[call("book_table", guests=4)]),
            when(said="vegan", reply=["to_kitchen"]),
            when(system="kitchen of a hotel", reply="Yes, we cook vegan dishes."),
            otherwise("Your table is booked."),
        ],
    )
    module.main("ann", "A table for 4, please", "m1", ScriptedModel(rules))
    found: str = module.main("ann", "Is there vegan food?", "m2", ScriptedModel(rules))
    return found


def limits() -> str:
    """`examples/limits/main.py`."""
    pages = [[call("read_page", number=number)] for number in range(3)]
    found: str = load("limits").main(ScriptedModel([*pages, "Chairs are on sale."]))
    return found


def outage() -> None:
    """`examples/outage/main.py`, which has a provider of its own."""
    load("outage").main()


def demo() -> Response:
    """The agents of `durable-swarm demo refund`, without the pauses."""
    os.environ["DURABLE_SWARM_DEMO_SECONDS"] = "0"
    from durable_swarm.demos.refund_agents import refund_agent

    model = ScriptedModel([[call("process_refund", item_id="99")], ["apply_discount"], "Refunded, and 11 % off."])
    asked = [{"role": "user", "content": "I want to refund item 99. And can I get a discount?"}]
    with DurableSwarm(model) as swarm:
        return swarm.run(refund_agent, asked, {"user_name": "Max"}, run_id="demo")


PROGRAMS = [refund, travel, research, demo, newsroom, invoice, guarded, concierge, limits, outage]
