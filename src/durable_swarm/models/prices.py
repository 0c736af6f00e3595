"""Prices of model calls in US dollars: by the program's own function, or by `genai-prices` where that is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.limits import dollars
from durable_swarm.models.call import Completion
from durable_swarm.types import Usage

Prices = Callable[[str, Usage], Any]
"""Returns the price of a model call in US dollars from the model's name and its tokens; None if it is unknown."""

SAMPLE = Usage(requests=1, prompt_tokens=1, completion_tokens=1, total_tokens=2)
"""The tokens with which a model's price is looked up before the first call."""


def check_prices(prices: object) -> Prices | None:
    """Check that it is a function or None, and return it. Raises `ConfigurationError`."""
    if prices is not None and not callable(prices):
        raise ConfigurationError(f"prices must be a function of a model's name and its Usage, not {prices!r:.80}")
    found: Prices | None = prices
    return found


def price(prices: Prices | None, model: str, usage: Usage) -> Decimal | None:
    """Return the price of a call, None if it is unknown. Raises `ConfigurationError` for one that is not an amount."""
    found = listed(model, usage) if prices is None else prices(model, usage)
    return None if found is None else dollars(f"prices({model!r}, ...)", found)


def cost_of(prices: Prices | None, completion: Completion, *, limited: bool) -> Decimal | None:
    """Return the price of an answered call, None if it is unknown, or if nobody asks for it."""
    if completion.usage is None or (prices is None and not limited):
        return None
    return price(prices, completion.model, completion.usage)


def refuse_unpriced(prices: Prices | None, model: str) -> None:
    """Check that a limit of cost can be kept. Raises `ConfigurationError` if the model has no known price."""
    if price(prices, model, SAMPLE) is not None:
        return
    missing = "" if prices is not None or _table() else ", or install durable-swarm[prices]"
    raise ConfigurationError(
        f"the price of model {model!r} is unknown, so a limit of cost cannot be kept; give prices=f, where "
        f"f(model, usage) returns US dollars{missing}"
    )


def listed(model: str, usage: Usage) -> Decimal | None:
    """Return the price that `genai-prices` lists, also for a name with a provider before it, as in `openai/gpt-4o`."""
    calc = _table()
    if calc is None:
        return None
    from genai_prices import Usage as Tokens

    tokens = Tokens(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    parts = model.split("/")
    for name in ("/".join(parts[first:]) for first in range(len(parts))):
        try:
            return Decimal(calc(tokens, name).total_price)
        except LookupError:
            continue
    return None


@functools.cache
def _table() -> Any:
    """Return the price function of `genai-prices`, None if that is not installed; its import takes a second."""
    try:
        from genai_prices import calc_price
    except ImportError:
        return None
    return calc_price
