"""`mcp_tools`: the tools of an MCP server, in the place of one tool of an agent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from durable_swarm.errors import ConfigurationError
from durable_swarm.types import Effect
from durable_swarm.validation import check_seconds

if TYPE_CHECKING:
    from durable_swarm.mcp.toolset import Approval, McpTools


def mcp_tools(
    source: object,
    *,
    prefix: str | None = None,
    only: Collection[str] | None = None,
    trust: bool = False,
    effects: Mapping[str, Effect] | None = None,
    approval: Approval | Mapping[str, Approval] = False,
    timeout: float | None = None,
    auth: object = None,
) -> McpTools:
    """Return the tools of an MCP server, to stand in `Agent.functions` like a tool.

    `source` is the URL of a server (streamable HTTP), a command as a list (a program that talks over stdin and stdout;
    it gets PATH, HOME and the like of the environment only), the SDK's `StdioServerParameters`, or a server object in
    this process. Nothing is connected before the first turn of an agent that has the tools.

    `prefix` is put before each name, unchanged; `only` keeps the tools of these names, without the prefix. With
    `trust=True` the server's hints decide what a crash in the middle of a call means: `readOnlyHint` is `"read"`,
    `idempotentHint` is `"idempotent"`, and no hint is `"once"`. Without it every tool is `"once"`: it is never repeated
    unseen. `effects`, by name without prefix, has the last word. `approval` is as in `@tool`, for all tools or by name.

    `timeout` is in seconds, for each request to the server. `auth` is a bearer token or an `httpx2.Auth`, such as the
    SDK's OAuth provider. Raises `ConfigurationError`.
    """
    _check_source(source)
    if timeout is not None:
        check_seconds("mcp_tools: timeout", timeout, above_zero=True)
    for name, effect in (effects or {}).items():
        if effect not in get_args(Effect) or effect == "transactional":
            raise ConfigurationError(
                f"mcp_tools: the effect of {name!r} must be 'read', 'idempotent' or 'once', not {effect!r:.40}"
            )
    if isinstance(only, str):
        raise ConfigurationError(f"mcp_tools: only must be a list of names, such as [{only!r}]")
    if auth is not None and not isinstance(source, str):
        raise ConfigurationError("mcp_tools: auth is for servers with a URL")
    try:  # The SDK takes a second to import.
        from durable_swarm.mcp.connection import Connection
        from durable_swarm.mcp.toolset import McpTools
    except ImportError as error:
        raise ConfigurationError(
            f"mcp_tools needs the extra `mcp`: pip install 'durable-swarm[mcp]' ({error})"
        ) from error
    return McpTools(
        Connection(source, auth, timeout),
        prefix=prefix or "",
        only=None if only is None else set(only),
        trust=trust,
        effects=dict(effects or {}),
        approval=approval,
    )


def _check_source(source: object) -> None:
    if isinstance(source, str) and not source.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"mcp_tools: {source!r:.80} is not the URL of a server; give a command as a list: {source.split()!r:.80}"
        )
    if isinstance(source, Sequence) and not isinstance(source, str):
        if not source or not all(isinstance(word, str) for word in source):
            raise ConfigurationError("mcp_tools: a command must be a list of texts")
    elif source is None or isinstance(source, bool | int | float | bytes | Mapping):
        raise ConfigurationError(f"mcp_tools: source must be a URL, a command list or a server, not {source!r:.80}")
