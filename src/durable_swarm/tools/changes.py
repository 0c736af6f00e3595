"""The changes that tools make to their context variables in place, and how those of one batch are combined.

Calls made one after the other see the changes of earlier calls. Each call of a batch that is made together gets a copy
of the context as it was before the batch, and the loop absorbs the changes in the model's order, so that the result
does not depend on which call ends first. If two such calls set one variable, one of the values is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from durable_swarm import codec
from durable_swarm.errors import NotSerializable
from durable_swarm.loop import Call, Outcome

log = logging.getLogger("durable_swarm")


class _Live(NamedTuple):
    """A value without a JSON form: a tool gets the object itself, and changes of it are the object's own."""

    value: object


_REMOVED = _Live(object())


@dataclass(frozen=True)
class Change:
    """A tool's changes to its context variables in place, found by comparing their JSON before and after."""

    before: dict[str, object]
    is_stored: bool

    @staticmethod
    def watch(context: Mapping[str, object], *, is_stored: bool) -> tuple[Change, dict[str, object]]:
        """Return a private copy of the context for a tool, and the object that detects its changes.

        Where the changes are stored, every value must have a JSON form, else `NotSerializable` is raised. In memory a
        value without one is not copied.
        """
        before = _forms(context, is_stored)
        return Change(before, is_stored), {key: _copy(form) for key, form in before.items()}

    def read(self, outcome: Outcome, context: Mapping[str, object]) -> Outcome:
        """Return the outcome with the changes the tool made in `context`. Raises `NotSerializable`, as `watch` does."""
        context = codec.mended_values(context)
        changed = {
            key: context[key]
            for key, form in _forms(context, self.is_stored).items()
            if key not in self.before or not _same(self.before[key], form)
        }
        return replace(outcome, changed=changed, removed=[key for key in self.before if key not in context])


def _forms(context: Mapping[str, object], is_stored: bool) -> dict[str, object]:
    return {key: _form(value, f"context_variables[{key!r}]", is_stored) for key, value in context.items()}


def _form(value: object, path: str, is_stored: bool) -> object:
    try:
        return codec.encode(value, path)
    except NotSerializable:
        if is_stored:
            raise
        return _Live(value)


def _copy(form: object) -> object:
    return form.value if isinstance(form, _Live) else codec.decode(form)


def _same(one: object, other: object) -> bool:
    if isinstance(one, _Live) or isinstance(other, _Live):
        return isinstance(one, _Live) and isinstance(other, _Live) and one.value is other.value
    return codec.dumps(one) == codec.dumps(other)


class _Written(NamedTuple):
    """The value that the call of that number left in a variable. `Result`s are applied after the whole batch."""

    by_result: bool
    number: int
    form: object


def warn_of_lost_updates(run_id: str, calls: Sequence[Call], outcomes: Sequence[Outcome]) -> None:
    """Log each variable that calls made together set to different values, because only one of the values is kept."""
    written: dict[str, list[_Written]] = {}
    for index, outcome in enumerate(outcomes):
        for key, one in _written(index, outcome).items():
            written.setdefault(key, []).append(one)
    for key, several in written.items():
        kept = max(several, key=lambda one: (one.by_result, one.number))
        if all(_same(one.form, kept.form) for one in several):
            continue
        tools = ", ".join(_named(calls, one) for one in several)
        log.warning(
            "run %r: context_variables[%r] was set to different values by tools called together: %s; the value of %s "
            "is kept. Calls made together do not see each other's changes: let one tool set the variable, or give the "
            "agent parallel_tool_calls=False",
            run_id,
            key,
            tools,
            _named(calls, kept),
        )


def _written(index: int, outcome: Outcome) -> dict[str, _Written]:
    """Return what a call did to each variable, its `Result` outranking its changes in place."""
    return {
        **{key: _Written(False, index, _REMOVED) for key in outcome.removed},
        **{key: _Written(False, index, _form(value, key, False)) for key, value in outcome.changed.items()},
        **{key: _Written(True, index, _form(value, key, False)) for key, value in outcome.updates.items()},
    }


def _named(calls: Sequence[Call], one: _Written) -> str:
    return f"{calls[one.number].tool!r} (call {one.number + 1})"
