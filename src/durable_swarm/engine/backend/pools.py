"""Separates the threads of the DBOS that we launch from the program's threads.

DBOS makes its threads the default executor of every event loop on which one of its coroutines runs, and ends them when
it is destroyed. Our DBOS sends its own work to its threads, and leaves each loop's executor as the program set it.

Parts of DBOS used here beyond its public interface: the name `asyncio` in the modules that call `asyncio.to_thread`;
`_configure_asyncio_thread_pool`, which replaces a loop's executor; `_executor_field`; and `_background_event_loop`, on
which DBOS executes recovered workflows if no loop of the program runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from dbos import DBOS, _core, _dbos, _outcome, _sys_db

from durable_swarm.background import Threads, equip
from durable_swarm.tasks import engine_scope

ENDING = 0.2
"""Seconds that closing waits at most for DBOS's threads."""
_USERS: tuple[Any, ...] = (_core, _dbos, _outcome, _sys_db)


class _Asyncio:
    """The module `asyncio`, as DBOS is to see it."""

    def __init__(self) -> None:
        self.dbos: Any = None
        self.executor: Executor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def to_thread(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call the function in a thread of the DBOS that we launched, even if it was destroyed meanwhile."""
        if self.executor is None or _dbos._dbos_global_instance not in (None, self.dbos):
            return await asyncio.to_thread(function, *args, **kwargs)
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.executor, call)


_ours = _Asyncio()
_configure = DBOS._configure_asyncio_thread_pool


async def _leave_executor() -> None:
    """Leave the running loop's executor unchanged if the DBOS is ours."""
    if _dbos._dbos_global_instance is not _ours.dbos:
        await _configure()


def keep_apart() -> None:
    """Restrict the DBOS that was just launched here to its own threads, and give its own loop the threads for tools."""
    dbos: Any = _dbos._dbos_global_instance
    _ours.dbos, _ours.executor = dbos, dbos._executor_field
    for module in _USERS:
        vars(module)["asyncio"] = _ours
    type.__setattr__(DBOS, "_configure_asyncio_thread_pool", staticmethod(_leave_executor))
    loop = dbos._background_event_loop._loop
    loop.call_soon_threadsafe(equip, loop)


def destroy() -> None:
    """Destroy the DBOS that was launched here, and wait for its idle threads; busy ones end when their work is done."""
    with engine_scope():  # A tool may close the engine.
        DBOS.destroy()
    run_threads.close()
    until = time.monotonic() + ENDING
    for thread in list(getattr(_ours.executor, "_threads", ())):
        if thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))


run_threads = Threads("durable-swarm-run")
"""The threads in which a worker executes runs. They are not DBOS's, because these runs may wait for other runs."""
to_thread = _ours.to_thread
"""Calls a function in a thread of DBOS."""
