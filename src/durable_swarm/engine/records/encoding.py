"""The program's codec applied to records: encoded before they are stored, decoded after they are read.

An encoded record keeps the fields in `READABLE` beside its text. They are the structure of a run, which DBOS, the
command line and a process without the codec need. All other fields are in the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from durable_swarm import ends, errors
from durable_swarm.codec import Codec, Place
from durable_swarm.credentials import without_secrets
from durable_swarm.engine.records.base import Record, read
from durable_swarm.engine.records.owners import BELONGS_TO
from durable_swarm.engine.signals import RunHeld
from durable_swarm.errors import safe_text

SEALED = "sealed"
"""The field of a record that holds the codec's text."""

ENCRYPTED = "(encrypted)"
"""Shown in place of data that this process cannot decode."""

READABLE = (
    *("v", "agent", "swarm", "at", "debug", "model_override", "max_turns", "execute_tools"),
    *("parent", "root", BELONGS_TO),
    *("model", "version", "usage", "usage_details", "finish", "run_id", "step", "type", "failed"),
    *("session", "number", "base"),
    *("limits", "accounts", "limit", "cost", "worked"),
)


class Unreadable(errors.ConfigurationError):
    """A record cannot be decoded here: the codec is missing, has another key, or refuses the record."""


def is_sealed(stored: object) -> bool:
    """Return True if the record was encoded, so that it cannot be read without the codec."""
    return isinstance(stored, dict) and SEALED in stored


def input_of(run_id: str) -> Place:
    """Return the place of a run's input."""
    return Place(run_id, "input")


def output_of(call: str) -> Place:
    """Return the place of the output of an undecorated tool call."""
    return Place(call, "output")


def failure_of(run_id: str) -> Place:
    """Return the place of the error that ended a run."""
    return Place(run_id, "error")


def context_of(session: str) -> Place:
    """Return the place of the context variables of a session."""
    return Place(session, "session")


def arguments_text(arguments: list[Record]) -> str:
    """Return a workflow's arguments as its row has them: JSON as pure ASCII, which every database accepts."""
    return json.dumps({"namedArgs": {}, "positionalArgs": arguments}, separators=(",", ":"))


@dataclass(frozen=True)
class RecordCodec:
    """The codec of one swarm, or None if it has none."""

    codec: Codec | None

    def close(self, record: Record, place: Place) -> Record:
        """Return the record as it is stored. Raises `ConfigurationError`."""
        if self.codec is None:
            return record
        beside, data = _divide(record)
        with self._trying("could not encode", f"{place.step!r} of {place.run_id!r}"):
            stored: object = self.codec.encode(data, replace(place, beside=beside))
        if isinstance(stored, str):
            return {**beside, SEALED: stored}
        if not isinstance(stored, dict) or stored.keys() != data.keys():
            raise errors.ConfigurationError(
                f"the codec's encode() gave a {type(stored).__name__} for {place.step!r} of {place.run_id!r}; it must "
                "give a string, or a dictionary with the keys it was given"
            )
        return {**beside, **stored}

    def close_step(self, record: Record, place: Place) -> Record:
        """Encode a record inside a step. An error of the codec holds the run and is not stored as the step's result."""
        try:
            return self.close(record, place)
        except errors.ConfigurationError as error:
            raise RunHeld(error) from error

    def settle(self, record: Record, place: Place) -> Record:
        """Return the record as it will be read back, for a codec that changes what it stores."""
        return record if self.codec is None else self.open(self.close(record, place), place, "what was just encoded")

    def open(self, stored: object, place: Place, what: str) -> Record:
        """Return the decoded record; `what` names it in errors. Raises `ReplayMismatch`, `Unreadable`."""
        record = read(stored, what)
        if self.codec is None:
            if record.get(SEALED) is not None:
                raise Unreadable(
                    f"{what} was stored through a codec, such as encryption, and this DurableSwarm has none; give it "
                    "codec=..., the one with which the run was started"
                )
            return record
        beside, data = _divide(record)
        closed = data.get(SEALED)
        with self._trying("cannot open", what):
            opened: object = self.codec.decode(data if closed is None else closed, replace(place, beside=beside))
        if not isinstance(opened, dict):
            raise Unreadable(
                f"the codec's decode() gave a {type(opened).__name__} for {what}; it must give a dictionary"
            )
        return {**opened, **beside}

    @contextmanager
    def _trying(self, fails: str, what: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if ends.failure_of(error) is None:
                raise
            reason = " ".join(without_secrets(safe_text(error)).split())[:500] or type(error).__name__
            raise Unreadable(f"{type(self.codec).__name__} {fails} {what}: {reason}") from error


def _divide(record: Record) -> tuple[Record, Record]:
    """Return the fields that stay readable, and the others."""
    beside = {key: value for key, value in record.items() if key in READABLE}
    return beside, {key: value for key, value in record.items() if key not in READABLE}
