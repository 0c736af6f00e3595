"""The explanations for records that cannot be decoded here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from durable_swarm.encryption import VARIABLE
from durable_swarm.engine.records.encoding import Unreadable
from durable_swarm.errors import ConfigurationError


@contextlib.contextmanager
def opened(what: str) -> Iterator[None]:
    """Explain how to proceed if `what` cannot be decoded. Raises `ConfigurationError`."""
    try:
        yield
    except Unreadable as error:
        raise ConfigurationError(f"{what} cannot be read here: {why_closed(error)}") from error


def why_closed(error: Unreadable) -> str:
    """Return how to proceed if records cannot be decoded here."""
    if os.environ.get(VARIABLE):
        return str(error)
    return (
        "what was said in it was stored through a codec, such as encryption; "
        f"set {VARIABLE} to its keys to read it here, or read it in its own program"
    )
