"""More examples as scenarios: their model is the offline one, which asks for the tools that a message is about."""

from __future__ import annotations

from typing import Any

from sqlalchemy import create_engine, text

from durable_swarm.engine.database.urls import choose
from durable_swarm.testing import ScriptedModel, mock_model
from tests.kit.programs import load


def mock() -> ScriptedModel:
    """Return the offline model. It depends on the request alone, so it answers alike after a crash."""
    return ScriptedModel(mock_model())


def triage() -> Any:
    """`examples/triage/main.py`."""
    return load("triage").main("I want a refund for item 5", mock())


def weather() -> Any:
    """`examples/weather/main.py`, asked for what needs no mail: a mail that is in doubt waits for a person."""
    return load("weather").main("How is the weather in Oslo?", mock())


def airline() -> Any:
    """`examples/airline/main.py`."""
    return load("airline").main("I want to cancel my flight for a voucher", mock())


def support_bot() -> Any:
    """`examples/support_bot/main.py`."""
    return load("support_bot").main("How do I reset my password?", mock())


def personal_shopper() -> Any:
    """`examples/personal_shopper/main.py`, and the rows that it leaves."""
    said = load("personal_shopper").main("Order 2 of 'lamp', please", mock())
    with create_engine(choose(None)).connect() as connection:
        return [said, *map(list, connection.execute(text("SELECT * FROM orders")))]


def inbox_triage() -> Any:
    """`examples/inbox_triage/main.py`, with the mail that needs nobody."""
    module = load("inbox_triage")
    del module.MAILS["mail-2"]
    return module.main(mock(), patience=60)


def nightly_report() -> Any:
    """`examples/nightly_report/main.py`."""
    return load("nightly_report").main("2026-11-29", mock())


GALLERY = [triage, weather, airline, support_bot, personal_shopper, inbox_triage, nightly_report]
