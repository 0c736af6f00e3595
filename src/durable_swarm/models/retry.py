"""Retrying a model call: which errors are transient, and how long to pause."""

from __future__ import annotations

from durable_swarm.credentials import without_secrets
from durable_swarm.errors import ModelError
from durable_swarm.models.provider_errors import (
    LONGEST_RETRY_AFTER,
    TOO_LONG,
    is_away,
    is_too_long,
    retry_after,
    root_of,
    status_of,
)

DEFAULT_RETRIES = 5


def _model_error(error: Exception, tries: int, hint: str) -> ModelError:
    # One exception in a traceback: the message contains what the others would say. The error stays the context, and a
    # key
    # that the provider repeats must not appear there either.
    error.args = tuple(without_secrets(part) if isinstance(part, str) else part for part in error.args)
    times = f" after {tries} tries" if tries > 1 else ""
    wish = retry_after(error) or 0
    later = f" (the provider asks to be asked again in {wish:.0f} s)" if wish > LONGEST_RETRY_AFTER else ""
    text = without_secrets(f"{str(error)[:1000]}{root_of(error)}")
    if is_too_long(text):
        later = f"{later}. {TOO_LONG}"
    return ModelError(
        f"the model call failed{times}: {type(error).__name__}: {text}{later}{hint}",
        status=status_of(error),
        error_type=type(error).__name__,
        tries=tries,
        away=is_away(error),
        retry_after=wish or None,
    )
