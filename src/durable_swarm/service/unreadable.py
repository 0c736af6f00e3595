"""What is said where records cannot be opened here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from durable_swarm.encryption import VARIABLE
from durable_swarm.engine.records.encoding import Unreadable
from durable_swarm.errors import ConfigurationError


@contextlib.contextmanager
def opened(what: str) -> Iterator[None]:
    """Say what to do where `what` cannot be opened. Raises `ConfigurationError`."""
    try:
        yield
    except Unreadable as error:
        raise ConfigurationError(f"{what} cannot be read here: {why_closed(error)}") from error


def why_closed(error: Unreadable) -> str:
    """Say what to do where records cannot be opened here."""
    if os.environ.get(VARIABLE):
        return str(error)
    return (
        "what was said in it was stored through a codec, such as encryption; "
        f"set {VARIABLE} to its keys to read it here, or read it in its own program"
    )
