"""Swarm's own import names, for programs that were written for it and stay as they are.

`install` puts modules called `swarm`, `swarm.core`, `swarm.types`, `swarm.util`, `swarm.repl` and `swarm.repl.repl` in
`sys.modules`; later imports of them get the classes of this package. The small helpers of `swarm.util` are here too,
since only old programs use them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.errors import ConfigurationError
from durable_swarm.repl import demo_loop
from durable_swarm.schema import function_to_json
from durable_swarm.swarm.memory import Swarm
from durable_swarm.types import Agent, Response, Result, ignore_unknown_fields

__all__ = ["install", "uninstall"]

AgentFunction = Callable[[], str | Agent | dict[str, Any]]
"""Swarm's annotation of a tool."""

_PACKAGES = frozenset({"swarm", "swarm.repl"})

_OPENAI_NAMES = {
    "ChatCompletionMessage": "openai.types.chat.chat_completion_message",
    "ChatCompletionMessageToolCall": "openai.types.chat.chat_completion_message_tool_call",
    "Function": "openai.types.chat.chat_completion_message_tool_call",
}

_installed: dict[str, ModuleType] = {}


def install(durable: bool = True) -> None:
    """Make `import swarm` and its submodules return this package; `Swarm` is `DurableSwarm`, or `Swarm` itself.

    Call it before anything imports `swarm`. A second call is harmless; with another `durable` it determines the later
    imports. Raises ConfigurationError if the original package is already imported.
    """
    _refuse_original()
    ignore_unknown_fields(True)
    for name, content in _contents(durable).items():
        module = sys.modules[name] = _installed.setdefault(name, _new_module(name))
        vars(module).update(content)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def uninstall() -> None:
    """Remove the modules of `install` from `sys.modules`. Names already imported from them keep working."""
    ignore_unknown_fields(False)
    for name, module in _installed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _installed.clear()


def _refuse_original() -> None:
    for name, module in sys.modules.items():
        if (name == "swarm" or name.startswith("swarm.")) and module is not _installed.get(name):
            raise ConfigurationError(
                f"{name} is already imported from {getattr(module, '__file__', None) or 'another package'}. "
                "Call durable_swarm.compat.install() before anything imports swarm."
            )


def _new_module(name: str) -> ModuleType:
    return module_from_spec(ModuleSpec(name, None, is_package=name in _PACKAGES))


def _contents(durable: bool) -> dict[str, dict[str, Any]]:
    """Return the contents of each module, parents first."""
    swarm_class = DurableSwarm if durable else Swarm
    data = {"Agent": Agent, "Response": Response, "Result": Result}
    types = {**data, "AgentFunction": AgentFunction, "__getattr__": _openai_type}
    util = {
        "debug_print": debug_print,
        "function_to_json": function_to_json,
        "merge_chunk": merge_chunk,
        "merge_fields": merge_fields,
    }
    printers = ("pretty_print_messages", "process_and_print_streaming_response")
    demo = {"run_demo_loop": demo_loop.run_demo_loop if durable else partial(demo_loop.run_demo_loop, durable=False)}
    return {
        "swarm": {"Swarm": swarm_class, **data, "__all__": ["Swarm", *data]},
        "swarm.core": {"Swarm": swarm_class, **types, **util, "__CTX_VARS_NAME__": "context_variables"},
        "swarm.types": types,
        "swarm.util": util,
        "swarm.repl": demo,
        "swarm.repl.repl": {
            **demo,
            **{name: getattr(demo_loop, name) for name in printers if hasattr(demo_loop, name)},
        },
    }


def _openai_type(name: str) -> object:
    """Return an openai type that Swarm re-exports; imported only now, since openai takes long to import."""
    if name not in _OPENAI_NAMES:
        raise AttributeError(f"this module of swarm has no attribute {name!r}")
    return getattr(importlib.import_module(_OPENAI_NAMES[name]), name)


def debug_print(debug: bool, *args: object) -> None:
    """Print the arguments in grey after the local time, if `debug`."""
    if not debug:
        return
    timestamp = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
    sys.stdout.write(f"\033[97m[\033[90m{timestamp}\033[97m]\033[90m {' '.join(map(str, args))}\033[0m\n")


def merge_fields(target: dict[str, Any], source: Mapping[str, object]) -> None:
    """Append every string of `source` to the string under the same key of `target`, in nested dictionaries too."""
    for key, value in source.items():
        if isinstance(value, str):
            target[key] += value
        elif isinstance(value, dict):
            merge_fields(target[key], value)


def merge_chunk(final_response: dict[str, Any], delta: dict[str, Any]) -> None:
    """Merge one streamed `delta` into the message so far.

    `final_response["tool_calls"]` maps each index to its call. As in Swarm, `delta` loses its `role` and its first
    tool call loses the `index`, and only that call is merged.
    """
    delta.pop("role", None)
    merge_fields(final_response, delta)
    if tool_calls := delta.get("tool_calls"):
        index = tool_calls[0].pop("index")
        merge_fields(final_response["tool_calls"][index], tool_calls[0])
