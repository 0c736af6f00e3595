"""What the package serves over HTTP; needs the extra `server`, which is imported at first use.

app.mount("/ops/swarm", durable_swarm.server.console(user=lambda request: request.user.name))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from durable_swarm.errors import ConfigurationError

if TYPE_CHECKING:
    from durable_swarm.server.guard import Access
    from durable_swarm.server.web.app import Console

__all__ = ["console"]

INSTALL = "the console needs more packages: pip install 'durable-swarm[server]'"


def console(
    database: str | None = None, *, user: Callable[[Any], Any] | None = None, read_only: bool = False
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


def parts() -> tuple[type[Console], type[Access]]:
    """Return the classes `Console` and `Access`. Raises `ConfigurationError` without the extra `server`."""
    try:
        from durable_swarm.server.guard import Access
        from durable_swarm.server.web.app import Console
    except ModuleNotFoundError as error:
        raise ConfigurationError(INSTALL) from error
    return Console, Access
