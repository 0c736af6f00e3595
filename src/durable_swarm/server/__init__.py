"""What the package serves over HTTP; needs the extra `server`, which is imported at first use.

app.mount("/ops/swarm", durable_swarm.server.console(user=lambda request: request.user.name))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.types import AgentLike
from durable_swarm.webhooks import Webhook

if TYPE_CHECKING:
    from durable_swarm.engine.api.durable import DurableSwarm
    from durable_swarm.server.doors import Server
    from durable_swarm.server.guard import Access
    from durable_swarm.server.web.app import Console

__all__ = ["Webhook", "app", "console"]

INSTALL = "the server needs more packages: pip install 'durable-swarm[server]'"


def console(
    database: str | None = None, *, user: Callable[[Any], object] | None = None, read_only: bool = False
) -> Console:
    """Return the web console of a database as an ASGI application, to be mounted in another under any path.

    `database` is as in `DurableSwarm`. `user` takes a Starlette request and returns the name of who asks, which is
    recorded with every decision, or None to refuse; it may be async. Without `user` everyone whom the application
    around it lets through may use the console: `durable-swarm console` is the one with a token of its own, which
    `$DURABLE_SWARM_SERVER_TOKEN` asks for here, too. With `read_only` nothing can be changed. The database is opened at
    the first request, and closed by its `close()`. Raises `ConfigurationError` without the extra `server`.
    """
    import os

    made, access = parts()
    token = None if user is not None else os.environ.get("DURABLE_SWARM_SERVER_TOKEN") or None
    return made(database, access(token=token, user=user), read_only=read_only)


DOORS = ("api", "openai", "agui", "a2a", "mcp")
"""The doors of `app`."""
NEEDS = {"agui": "ag_ui", "a2a": "a2a", "mcp": "mcp"}
"""The package that a door needs, beside those of the extra `server`."""


def app(
    swarm: DurableSwarm,
    *,
    agents: Any = None,
    doors: Collection[str] = DOORS,
    console: bool = True,
    authorize: Callable[[Any], object] | None = None,
    read_only: bool = False,
    operators: Container[str] = (),
) -> Server:
    """Return the server of a swarm as an ASGI application, to be served or mounted in another under any path.

    `agents` are those that can be asked, by default all that the program defines. `doors` names the interfaces, by
    default all of `DOORS` whose extras are installed. With `console` the web console is there, too. `authorize` takes a
    Starlette request and returns the name of who asks, which is recorded with every decision, or None to refuse; it may
    be async. A run belongs to whom a door began it for; to others, unless they are among the `operators`, it does not
    exist. Without `authorize` `$DURABLE_SWARM_SERVER_TOKEN` is the token that every request must show; without both,
    everyone whom the application around it lets through may ask. With `read_only` nothing can be started or changed.
    Raises `ConfigurationError`, also without the extra `server`.
    """
    import os

    token = None if authorize is not None else os.environ.get("DURABLE_SWARM_SERVER_TOKEN") or None
    made, access = server_parts()
    who = access(token=token, user=authorize, owners=authorize is not None, operators=operators)
    return made(
        swarm, known(agents), checked_doors(doors), who, console=console,
        read_only=read_only,
    )  # fmt: skip


def known(agents: Collection[AgentLike] | None) -> dict[str, AgentLike] | None:
    """Return the agents by name; None stands for all. Raises `ConfigurationError`."""
    if agents is None:
        return None
    named = {agent.name: agent for agent in agents}
    if len(named) != len(agents):
        raise ConfigurationError("agents that are served must have different names")
    return named


def checked_doors(doors: Collection[str]) -> list[str]:
    """Return the doors without repetitions. Raises `ConfigurationError` for an unknown one."""
    if doors is DOORS:  # Nobody has named them: those whose extras are missing stay shut.
        return [door for door in DOORS if door not in NEEDS or find_spec(NEEDS[door]) is not None]
    if isinstance(doors, str):
        doors = doors.split(",")
    for door in doors:
        if door not in DOORS:
            raise ConfigurationError(f"there is no door {door!r}; the doors are {', '.join(DOORS)}")
    return list(dict.fromkeys(doors))


def server_parts() -> tuple[type[Server], type[Access]]:
    """Return the classes `Server` and `Access`. Raises `ConfigurationError` without the extra `server`."""
    try:
        from durable_swarm.server.doors import Server
        from durable_swarm.server.guard import Access
    except ModuleNotFoundError as error:
        raise ConfigurationError(INSTALL) from error
    return Server, Access


def parts() -> tuple[type[Console], type[Access]]:
    """Return the classes `Console` and `Access`. Raises `ConfigurationError` without the extra `server`."""
    try:
        from durable_swarm.server.guard import Access
        from durable_swarm.server.web.app import Console
    except ModuleNotFoundError as error:
        raise ConfigurationError(INSTALL) from error
    return Console, Access
