"""Tools for testing agent programs: crash tests, replay, scripted models, and a server for real clients.

`crash_test` kills a program of yours at each of its durable boundaries and compares; its tools report with `effect`.

`ScriptedModel(["Hello"])` answers with the replies of a list, `ScriptedModel([when(said="refund", reply=...)])` by
rules, `ScriptedModel(lambda request: ...)` with a callable's reply to each request; hand it to `DurableSwarm(client)`
or `Swarm(client)`. `AsyncScriptedModel` is the same for `await`, `serve_scripted` the same over HTTP. `call` writes a
tool call in a reply; `rate_limited`, `timed_out`, `cut` and their like are replies that fail (`testing/faults.py` lists
them). `mock_model()` is a script that answers any request offline, by the tools that it offers. `REAL_REPLIES` is a
table of replies that real models give and scripts do not: cut, repeated, refused, empty. Each request is checked by
`check_request`, which raises `ProviderError` if a strict provider would refuse it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_swarm.first_use import at_first_use

if TYPE_CHECKING:
    from durable_swarm.testing.crash import CrashReport, CrashTestFailed, Finding, crash_test, effect
    from durable_swarm.testing.faults import (
        cut,
        cut_off,
        dropped,
        garbled,
        http_error,
        no_choices,
        proxy_page,
        rate_limited,
        slowly,
        timed_out,
    )
    from durable_swarm.testing.golden import assert_replays, record_golden
    from durable_swarm.testing.mock import mock_model
    from durable_swarm.testing.provider_rules import ProviderError, check_request
    from durable_swarm.testing.real import REAL_REPLIES, RealReply
    from durable_swarm.testing.replaying import Difference, Replay, replay
    from durable_swarm.testing.replies import call
    from durable_swarm.testing.rules import otherwise, when
    from durable_swarm.testing.scripted import AsyncScriptedModel, ScriptedModel
    from durable_swarm.testing.server import ScriptedServer, serve_scripted

_HOMES = {
    "durable_swarm.testing.crash": ["CrashReport", "CrashTestFailed", "Finding", "crash_test", "effect"],
    "durable_swarm.testing.faults": [
        "cut",
        "cut_off",
        "dropped",
        "garbled",
        "http_error",
        "no_choices",
        "proxy_page",
        "rate_limited",
        "slowly",
        "timed_out",
    ],
    "durable_swarm.testing.golden": ["assert_replays", "record_golden"],
    "durable_swarm.testing.mock": ["mock_model"],
    "durable_swarm.testing.provider_rules": ["ProviderError", "check_request"],
    "durable_swarm.testing.real": ["REAL_REPLIES", "RealReply"],
    "durable_swarm.testing.replaying": ["Difference", "Replay", "replay"],
    "durable_swarm.testing.replies": ["call"],
    "durable_swarm.testing.rules": ["otherwise", "when"],
    "durable_swarm.testing.scripted": ["AsyncScriptedModel", "ScriptedModel"],
    "durable_swarm.testing.server": ["ScriptedServer", "serve_scripted"],
}
"""The modules of the public names: a scripted model does without the rest."""

__all__ = [
    "REAL_REPLIES",
    "AsyncScriptedModel",
    "CrashReport",
    "CrashTestFailed",
    "Difference",
    "Finding",
    "ProviderError",
    "RealReply",
    "Replay",
    "ScriptedModel",
    "ScriptedServer",
    "assert_replays",
    "call",
    "check_request",
    "crash_test",
    "cut",
    "cut_off",
    "dropped",
    "effect",
    "garbled",
    "http_error",
    "mock_model",
    "no_choices",
    "otherwise",
    "proxy_page",
    "rate_limited",
    "record_golden",
    "replay",
    "serve_scripted",
    "slowly",
    "timed_out",
    "when",
]

__getattr__, __dir__ = at_first_use(__name__, _HOMES)
