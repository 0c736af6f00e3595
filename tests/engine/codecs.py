"""What the tests of codecs share: a conversation full of canaries, and where to look for them."""

from __future__ import annotations

import base64
import json
import threading
import zlib
from collections.abc import Callable
from typing import Any

import sqlalchemy

from durable_swarm import Agent, DurableSwarm, Result, step
from durable_swarm.codec import Place
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.redaction import Redacting
from tests.engine.helpers import PATIENCE, connected, schema, unique, user

KEYS = [new_key(), new_key()]


class Declined(Exception):
    """A card that was declined."""


class Desk:
    """Agents whose every text is a canary: in arguments, results, context, inner steps, errors and replies."""

    CANARIES = ("canary-user", "canary-context", "canary-argument", "canary-text", "canary-step", "canary-args")
    CANARIES += ("canary-change", "canary-state", "canary-final", "canary-update", "canary-key")

    def __init__(self, entered: threading.Event | None = None, opened: threading.Event | None = None) -> None:
        self.entered, self.opened, self.calls = entered, opened, list[str]()
        self.second = Agent(name=unique("Second"), functions=[self.ask])
        self.agent = Agent(name=unique("First"), functions=[self.compute, self.double, self.hand_over])

    def compute(self, number: str, context_variables: dict[str, Any]) -> str:
        """Make steps, one of which raises."""
        self.calls.append("compute")
        value = inner(number)
        try:
            decline("canary-args")
        except Declined as error:
            context_variables["changed"] = ["canary-change", str(error), vars(error)["note"]]
        return f"canary-text {value}"

    @step
    def double(self, number: str) -> str:
        """Double a text."""
        return f"canary-text {number}{number}"

    def hand_over(self) -> Result:
        """Hand off."""
        self.calls.append("hand_over")
        return Result(value="canary-text", agent=self.second, context_variables={"canary-key": "canary-update"})

    def ask(self) -> str:
        """Wait, in the run's last turn."""
        if self.entered is not None and self.opened is not None and not self.opened.is_set():
            self.entered.set()
            assert self.opened.wait(PATIENCE)
        self.calls.append("ask")
        return "canary-text"

    def replies(self) -> list[Any]:
        """Give what the model says."""
        calls: list[Any] = [("compute", {"number": "canary-argument"}), ("double", {"number": "canary-argument"})]
        return [[*calls, "hand_over"], ["ask"], "canary-final"]


@step
def inner(number: str) -> dict[str, Any]:
    """Make an inner step."""
    return {"canary-key": f"canary-step {number}"}


@step
def decline(text: str) -> None:
    """Raise."""
    error = Declined(text)
    vars(error)["note"] = "canary-state"
    raise error


def ask(swarm: DurableSwarm, desk: Desk, **options: Any) -> Any:
    """Run the desk's conversation."""
    context = {"note": "canary-context", "canary-key": {"deep": ("canary-context",)}}
    return swarm.run(desk.agent, user("canary-user"), context, run_id="r", **options)


class Zipped:
    """A codec as a program may write one: it makes texts smaller."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    def encode(self, data: dict[str, Any], place: Place) -> str:
        """Pack."""
        self.places.append(place)
        return base64.b64encode(zlib.compress(json.dumps(data).encode())).decode()

    def decode(self, stored: dict[str, Any] | str, place: Place) -> dict[str, Any]:
        """Unpack."""
        assert isinstance(stored, str)
        assert place in self.places
        data: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(stored)))
        return data


def all_texts(url: str) -> str:
    """Give every text that stands in any column of any table of DBOS's."""
    with connected(url) as connection:
        prefix = schema(url).rstrip(".") or None
        found = []
        for table in sqlalchemy.inspect(connection).get_table_names(schema=prefix):
            for row in connection.execute(sqlalchemy.text(f'SELECT * FROM {schema(url)}"{table}"')):
                found += [str(value) for value in row]
    return "\n".join(found)


def found_in(text: str | bytes) -> list[str]:
    """Give the canaries that stand in the text, as they are or in base64 of any alignment."""
    raw = text if isinstance(text, bytes) else text.encode()
    spelled = {canary: [canary.encode()] for canary in Desk.CANARIES}
    for canary, forms in spelled.items():
        forms += [base64.b64encode(b" " * shift + canary.encode())[4:-4] for shift in range(3)]
    return [canary for canary, forms in spelled.items() if any(form in raw for form in forms)]


def encrypted() -> EncryptionCodec:
    """Give a codec with the test's keys."""
    return EncryptionCodec(KEYS)


CODECS: dict[str, Callable[[], Any]] = {
    "encrypted": encrypted,
    "zipped": Zipped,
    "redacting": lambda: Redacting(["no such text"]),
    "redacting, encrypted": lambda: Redacting(["no such text"], encrypted()),
}

SECRET = "sk-live-4111222233334444"
