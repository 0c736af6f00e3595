"""Functions for use inside tools: `step`, `sleep`, `emit`, `current_call`; and the decorator `tool` with its options.

They reach the engine through `inside`, a context variable that is set around a call. Outside a run the same functions
are plain calls, so tools can be tested as ordinary functions.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, overload

from durable_swarm import ends
from durable_swarm.awaitables import is_async, is_generator, settled
from durable_swarm.errors import ConfigurationError
from durable_swarm.schema import checked_schema
from durable_swarm.tools.attempts import retrying
from durable_swarm.tools.context import Inside, calling
from durable_swarm.tools.inside import IN_MEMORY
from durable_swarm.types import TOOL_NAME, Effect, Repeat, ToolSettings, note_settings, settings_of, tool_name
from durable_swarm.validation import check_name, check_seconds, check_whole

F = TypeVar("F", bound=Callable[..., object])
_NOT_GIVEN: object = object()


@overload
def step(function: F) -> F: ...
@overload
def step(
    *, name: str | None = None, retries: int = 0, backoff: float = 1.0, timeout: float | None = None
) -> Callable[[F], F]: ...
def step(
    function: object = _NOT_GIVEN,
    *,
    name: str | None = None,
    retries: int = 0,
    backoff: float = 1.0,
    timeout: float | None = None,
) -> Any:
    """Make each call of a function inside a tool a checkpoint: after a crash it returns the recorded result.

    As a tool itself, such a function costs one database write. After an exception it is tried `retries` more times,
    first after `backoff` seconds, doubling; `timeout` bounds one try in seconds. Outside a run it is a plain call. Its
    result must be storable as JSON (see `NotSerializable`), and so must the exceptions that it raises, to be the same
    again.
    """
    settings = ToolSettings(retries=retries, backoff=backoff, timeout=timeout, is_step=True)
    _check_settings("step", settings)
    if name is not None:
        check_name("@step: name", name)

    def decorate(target: Any) -> object:
        _check_function("step", target)
        label = name or check_name("@step: the function's name", tool_name(target))

        @functools.wraps(target)
        def wrapper(*args: object, **kwargs: object) -> object:
            here = calling()
            if here is None or here.recorder is None:
                return target(*args, **kwargs)
            return _call_step(here, label, functools.partial(target, *args, **kwargs), settings)

        note_settings(wrapper, dataclasses.replace(settings, name=settings_of(target).name))
        return _as_coroutine_function(wrapper) if is_async(target) else wrapper

    return decorate if function is _NOT_GIVEN else decorate(function)


def _as_coroutine_function(wrapper: Any) -> object:
    @functools.wraps(wrapper)
    async def asynchronous(*args: object, **kwargs: object) -> object:
        return await wrapper(*args, **kwargs)

    return asynchronous


def _call_step(here: Inside, label: str, target: Callable[[], object], settings: ToolSettings) -> object:
    """Call a step, unless an earlier attempt of the tool has finished it.

    A function that is not declared async shows only when called whether its result must be awaited.
    """
    here.check()
    scope = here.next_id()
    place = f"{scope} {label}"
    recorder = here.recorder or IN_MEMORY
    within = Inside(here.call, None, here.people, scope, emit=here.emit, owner=here.owner, swarm=here.swarm)
    body = retrying(target, settings, within)

    async def on_loop() -> object:
        if place not in here.finished:
            with ends.bare():
                here.finished[place] = await recorder.step(label, body)
        return here.finished[place]

    async def rest(value: Any) -> object:
        with ends.bare():
            here.finished[place] = _Awaited(await value)
        return here.finished[place].value

    if is_async(target):
        return on_loop()
    if place not in here.finished:
        with ends.bare():
            value = recorder.step(label, body)
        if inspect.isawaitable(value):
            return rest(value)
        here.finished[place] = value
    found = here.finished[place]
    return settled(found.value) if isinstance(found, _Awaited) else found


@dataclass(frozen=True)
class _Awaited:
    """The result of a finished step, for a caller that expects an awaitable."""

    value: object


@overload
def tool(function: F) -> F: ...
@overload
def tool(
    *,
    effect: Effect = "idempotent",
    retries: int = 0,
    timeout: float | None = None,
    approval: bool | Callable[..., object] = False,
    name: str | None = None,
    description: str | None = None,
    check: Callable[..., object] | None = None,
    approval_timeout: float | None = None,
    repeat: Repeat = "allow",
) -> Callable[[F], F]: ...
def tool(
    function: Any = _NOT_GIVEN,
    *,
    effect: Effect = "idempotent",
    retries: int = 0,
    timeout: float | None = None,
    approval: bool | Callable[..., object] = False,
    name: str | None = None,
    description: str | None = None,
    check: Callable[..., object] | None = None,
    approval_timeout: float | None = None,
    repeat: Repeat = "allow",
) -> Any:
    """Set a tool's options: its behaviour in a crash, approval, repetition, retries, name and description.

    `effect` says how recovery treats a call that was in progress when its process died:

    - `"read"` and `"idempotent"`: make it again, with the same `current_call().idempotency_key`.
    - `"once"`: never enter it again. `check`, a function that takes the tool's arguments or some of them, finds out
      whether the call happened: it returns the result, or None if it did not happen and must be made. Without `check`,
      or if it raises, a request `unknown_outcome` waits for a person.
    - `"transactional"`: the tool gets a SQLAlchemy connection as its parameter `connection`; its writes with it
      are committed together with the call's checkpoint, so they exist exactly once. For plain functions only.

    `approval=True`, or a function of the call's arguments that returns True, opens a request `approval` before the call
    is made: nothing is executed until a person has approved these arguments, or changed ones. A rule that raises also
    asks. After `approval_timeout` seconds the call counts as rejected, and the model is informed.

    `repeat` says how to treat a call that the model makes again, with the same arguments in the same run, after it has
    succeeded: `"allow"` makes it, `"reuse"` returns the earlier result without entering the tool, `"refuse"` informs
    the model that it was made. Of twins in one reply the first is made. The idempotency key does not help here: each
    call has its own.

    After an exception the tool is tried `retries` more times, without repeating its finished steps; `timeout` bounds
    one try in seconds, waiting included. A plain function cannot be interrupted: after its `timeout` the run continues
    with a `TimeoutError`, and the function's thread ends by itself. Above `@step` it adds to the options of the step.
    """

    def decorate(target: F) -> F:
        _check_function("tool", target)
        inner = settings_of(target)
        settings = dataclasses.replace(
            inner,
            name=inner.name if name is None else name,
            description=description or inner.description,
            retries=retries or inner.retries,
            timeout=inner.timeout if timeout is None else timeout,
            effect=effect,
            check=check,
            approval=approval,
            approval_timeout=approval_timeout,
            repeat=repeat,
        )
        _check_settings("tool", settings)
        _check_effect(settings, target)
        note_settings(target, settings)
        return target

    return decorate if function is _NOT_GIVEN else decorate(function)


def tool_from_schema(
    name: str,
    description: str,
    parameters: dict[str, Any],
    function: Callable[..., Any],
    *,
    effect: Effect = "idempotent",
    approval: bool | Callable[..., object] = False,
) -> Callable[..., Any]:
    """Return a tool with a JSON schema for its arguments, for functions whose signature does not describe them.

    `function`, plain or async, gets the arguments as keywords, and `context_variables` if it names them. The arguments
    are checked against the schema; invalid ones are refused, and the model gets the reason. Everything else is as for
    any tool. Raises `ConfigurationError` for an invalid schema.
    """
    _check_function("tool_from_schema", function)
    schema = checked_schema(name, parameters)
    if not isinstance(description, str):
        raise ConfigurationError(f"tool_from_schema: the description of {name!r} must be a text")
    settings = dataclasses.replace(
        settings_of(function), name=name, description=description, effect=effect, approval=approval, parameters=schema
    )
    _check_settings("tool", settings)

    def plain(**arguments: object) -> object:
        return function(**arguments)

    async def asynchronous(**arguments: object) -> object:
        return await function(**arguments)

    made = asynchronous if is_async(function) else plain
    functools.update_wrapper(made, function, updated=())
    made.__name__ = name
    _check_effect(settings, made)
    note_settings(made, settings)
    return made


def _check_settings(decorator: str, settings: ToolSettings) -> None:
    check_whole(f"@{decorator}: retries", settings.retries, 0)
    check_seconds(f"@{decorator}: backoff", settings.backoff)
    if settings.timeout is not None:
        check_seconds(f"@{decorator}: timeout", settings.timeout, above_zero=True)
    if settings.name is not None and not (isinstance(settings.name, str) and TOOL_NAME.fullmatch(settings.name)):
        raise ConfigurationError(
            f"@{decorator}: name must be 1 to 64 letters, digits, _ or -, as providers ask, not {settings.name!r:.80}"
        )


def _check_effect(settings: ToolSettings, target: object) -> None:
    """Check options that only `@tool` has. Raises `ConfigurationError`."""
    if settings.effect not in get_args(Effect):
        raise ConfigurationError(
            f"@tool: effect must be one of {', '.join(get_args(Effect))}, not {settings.effect!r:.40}"
        )
    if settings.repeat not in get_args(Repeat):
        raise ConfigurationError(
            f"@tool: repeat must be one of {', '.join(get_args(Repeat))}, not {settings.repeat!r:.40}"
        )
    if not isinstance(settings.approval, bool) and not callable(settings.approval):
        raise ConfigurationError("@tool: approval must be True, False, or a function of the call's arguments")
    if settings.approval_timeout is not None:
        check_seconds("@tool: approval_timeout", settings.approval_timeout)
        if settings.approval is False:
            raise ConfigurationError("@tool: approval_timeout counts with approval=... only; give that, too")
    described = (settings.parameters or {}).get("properties", {})
    _check_rule("approval", settings.approval, target, *described)
    _check_rule("check", settings.check, target, *described, "context_variables")
    if settings.check is not None and (settings.effect != "once" or not callable(settings.check)):
        raise ConfigurationError('@tool: check must be a function, and belongs to effect="once"')
    if settings.effect == "once" and settings.retries:
        raise ConfigurationError('@tool: effect="once" and retries exclude each other: a retry enters the tool again')
    if settings.effect == "transactional" and (is_async(target) or settings.is_step):
        raise ConfigurationError('@tool: effect="transactional" takes a plain function, not async and without @step')
    if settings.effect == "transactional" and (settings.retries or settings.timeout):
        raise ConfigurationError('@tool: effect="transactional" takes no retries and no timeout: it is one transaction')


def _check_rule(word: str, rule: Any, target: Any, *more: str) -> None:
    """Check that a rule takes only arguments of its tool."""
    try:
        wanted, given = inspect.signature(rule).parameters, {*inspect.signature(target).parameters}
    except (TypeError, ValueError):  # Not a function, or one whose parameters Python cannot read.
        return
    known = {*given, *more} - ({"context_variables"} - {*more})
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in wanted.items():
        if name not in known and parameter.default is parameter.empty and parameter.kind not in free:
            raise ConfigurationError(
                f"@tool: {word} asks for {name!r}, which is not an argument of the tool; it may ask for "
                f"{', '.join(sorted(known)) or 'none'}"
            )


def _check_function(decorator: str, target: object) -> None:
    if not callable(target):
        raise ConfigurationError(f"@{decorator} decorates a function, not {target!r:.80}")
    if is_generator(target):
        raise ConfigurationError(
            f"@{decorator}: {tool_name(target)!r} is a generator, and nobody would take what it yields; "
            "return the whole result, and report progress by emit()"
        )
