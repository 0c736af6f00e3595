"""Checks of arguments, each with one clear `ConfigurationError` that names the argument and says what it must be."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from durable_swarm.codec import storable
from durable_swarm.errors import ConfigurationError

LARGEST = 2**31 - 1
"""The largest integer that a column of the database holds."""


def check_threads() -> None:
    """Check that threads are the system's, because `gevent`'s replacements cannot have event loops."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ConfigurationError(
            "DurableSwarm needs the system's threads, and gevent has replaced them in this program; "
            "start it without gevent.monkey.patch_all(), or call patch_all(thread=False)"
        )


def check_whole(name: str, value: object, least: int) -> None:
    """Check that it is a whole number from `least` up, and not above the database's limit."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        upper = f", {LARGEST} at most" if isinstance(value, int) and value > LARGEST else ""
        raise ConfigurationError(f"{name} must be a whole number from {least} up{upper}, not {value!r:.40}")


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> float:
    """Check that it is a number of seconds, 0 or more, or more than 0, and return it."""
    least = "above 0" if above_zero else "from 0 up"
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (value > 0 or (value == 0 and not above_zero))
    ):
        raise ConfigurationError(f"{name} must be a number of seconds {least}, not {value!r:.40}")
    return value


def check_rate(name: str, value: object, what: str) -> None:
    """Check that it is a number of `what` per number of seconds: a tuple (number, seconds)."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ConfigurationError(f"{name} must be ({what}, seconds), not {value!r:.80}")
    check_whole(f"{name}: {what}", value[0], 1)
    check_seconds(f"{name}: seconds", value[1], above_zero=True)
    if math.isinf(value[1]):
        raise ConfigurationError(f"{name}: seconds must not be infinite")


def check_model_rates(rates: object) -> None:
    """Check that it maps model names to rates, each as (calls, seconds)."""
    if not isinstance(rates, Mapping):
        raise ConfigurationError(f'model_rates must be like {{"gpt-4o": (500, 60)}}, not {rates!r:.80}')
    for model, rate in rates.items():
        check_rate(f"model_rates[{check_name('the model of a rate', model)!r}]", rate, "calls")


def check_changed_agents(value: object) -> str:
    """Check the policy for runs whose agents have changed, and return it."""
    if value not in ("continue", "hold"):
        raise ConfigurationError(f"changed_agents must be 'continue' or 'hold', not {value!r:.40}")
    return str(value)


def check_queue(queue: object, priority: object) -> bool:
    """Check how a run is to be queued; return True if it is."""
    if not isinstance(queue, bool):
        raise ConfigurationError(f"queue must be True or False, not {queue!r:.80}")
    check_whole("priority", priority, 0)
    if priority and not queue:
        raise ConfigurationError("priority counts on the queue only; give queue=True, too")
    return queue


def check_delay(delay: object, at: object) -> float:
    """Return the seconds after which a run is to begin. Raises `ConfigurationError`."""
    if delay is not None and at is not None:
        raise ConfigurationError("give delay or at, not both")
    if at is not None:
        if not isinstance(at, datetime) or at.tzinfo is None:
            raise ConfigurationError(f"at must be an aware datetime, such as datetime.now(UTC) + ..., not {at!r:.80}")
        return max(0.0, (at - datetime.now(UTC)).total_seconds())
    return 0.0 if delay is None else float(check_seconds("delay", delay))


def check_codec(codec: object) -> None:
    """Check that it is a codec (an object with `encode` and `decode`) or None."""
    if isinstance(codec, type):
        raise ConfigurationError(f"codec must be a codec, not the class {codec.__name__}; make one of it")
    if codec is not None and not all(callable(getattr(codec, name, None)) for name in ("encode", "decode")):
        raise ConfigurationError(
            f"codec must have the methods encode(data, place) and decode(stored, place); {type(codec).__name__!r} "
            "objects have not"
        )


def check_text(name: str, value: object) -> str:
    """Check that it is a non-empty string that a database can store, and return it."""
    if not isinstance(value, str) or not value.strip() or not storable(value):
        raise ConfigurationError(
            f"{name} must be a string that is not empty and that a database can store: without NUL and without half "
            f"of a surrogate pair; it is {value!r:.80}"
        )
    return value


LONGEST_NAME, LONGEST_ID = 500, 1000
"""Maximum bytes in UTF-8. An index of PostgreSQL holds 2,700, and ids of calls and requests extend these names."""


def check_name(name: str, value: object, longest: int = LONGEST_NAME) -> str:
    """Check that it is a text that a database can store and find again by an index, and return it."""
    text = check_text(name, value)
    if (size := len(text.encode())) > longest:
        raise ConfigurationError(f"{name} must be at most {longest} bytes in UTF-8, not {size}: {text[:40]!r}…")
    return text
