"""Rules for a scripted model: conditions on a request, and the reply.

    ScriptedModel([
        when(said="refund", reply=[call("look_up", order="A1")]),
        when(tool="look_up", result="not found", reply="There is no such order."),
        when(tool="look_up", reply=[call("refund", order="A1")]),
        otherwise("How can I help?"),
    ])

The first rule that fits answers. Rules have no memory: the reply depends on the request alone, ids of tool calls
included, so a program that was killed and started again gets the same replies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.testing.replies import check_reply
from durable_swarm.testing.request_reader import ending, offers_in, results_in, said_in, short, system_of

Text = str | re.Pattern[str]


@dataclass(frozen=True)
class Rule:
    """The result of `when` and `otherwise`: the conditions that are not None must all hold."""

    reply: Any
    said: Text | None = None
    tool: str | None = None
    result: Text | None = None
    system: Text | None = None
    offers: str | None = None
    where: Callable[[dict[str, Any]], object] | None = None

    def fits(self, request: dict[str, Any]) -> bool:
        """Return True if the rule answers this request."""
        return (
            (self.said is None or _holds(self.said, said_in(request)))
            and ((self.tool is None and self.result is None) or self._answered(request))
            and (self.system is None or _holds(self.system, system_of(request)))
            and (self.offers is None or self.offers in offers_in(request))
            and (self.where is None or bool(self.where(request)))
        )

    def _answered(self, request: Mapping[str, object]) -> bool:
        return any(
            self.tool in (None, name) and (self.result is None or _holds(self.result, text))
            for name, text in results_in(request)
        )


def when(
    *,
    said: Text | None = None,
    tool: str | None = None,
    result: Text | None = None,
    system: Text | None = None,
    offers: str | None = None,
    where: Callable[[dict[str, Any]], object] | None = None,
    reply: object,
) -> Rule:
    """Write a rule: if all its conditions hold, the model gives `reply`, in any form of a reply.

    - `said`: the last message is the user's, and its text holds this;
    - `tool`: the request ends with the result of the tool of this name, alone or among those of one reply;
    - `result`: the request ends with a tool's result that holds this (with `tool`: a result of that tool);
    - `system`: the system prompt holds this, which distinguishes the agents of a program;
    - `offers`: a tool of this name is available;
    - `where`: a function of the request (the dict of arguments of `create`) that returns True.

    Texts match regardless of case; otherwise pass a compiled pattern, which is searched for. Raises
    `ConfigurationError` for a rule without condition, and for a reply of no known form.
    """
    rule = Rule(reply, said, tool, result, system, offers, where)
    if rule == Rule(reply):
        raise ConfigurationError(
            "when() needs a condition, such as said='refund'; for every other request use otherwise()"
        )
    _check_conditions(rule)
    check_reply(reply)
    return rule


def otherwise(reply: object) -> Rule:
    """Write the last rule: it fits every request. Raises `ConfigurationError` for a reply of an unknown form."""
    check_reply(reply)
    return Rule(reply)


def choose(rules: list[Rule], request: dict[str, Any]) -> Any:
    """Return the reply of the first rule that fits. Raises `ConfigurationError` if none does."""
    for rule in rules:
        if rule.fits(request):
            return rule.reply
    raise ConfigurationError(
        f"no rule of the ScriptedModel fits the request; add a when(...) for it, or otherwise(...). "
        f"The request ended with {_shown_ending(request)}; its system prompt was {short(system_of(request))!r}, "
        f"the tools on offer: {', '.join(offers_in(request)) or 'none'}"
    )


def _check_conditions(rule: Rule) -> None:
    for name in ("said", "result", "system"):
        if not isinstance(given := getattr(rule, name), str | re.Pattern | None):
            raise ConfigurationError(f"when({name}=...) takes a text or a compiled pattern, not {given!r}")
    for name in ("tool", "offers"):
        if not isinstance(given := getattr(rule, name), str | None):
            raise ConfigurationError(f"when({name}=...) takes the name of one tool, not {given!r}")
    if rule.where is not None and not callable(rule.where):
        raise ConfigurationError(f"when(where=...) takes a function of the request, not {rule.where!r}")


def _holds(wanted: Text, text: str | None) -> bool:
    if text is None:
        return False
    if isinstance(wanted, re.Pattern):
        return wanted.search(text) is not None
    return wanted.casefold() in text.casefold()


def _shown_ending(request: Mapping[str, object]) -> str:
    results = results_in(request)
    return ", ".join(f"tool {name}: {short(text)}" for name, text in results) if results else ending(request)
