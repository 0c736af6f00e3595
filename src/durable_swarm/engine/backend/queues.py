"""Queues that DBOS serves in this process: serving, limiting, stopping and removing them.

Beyond DBOS's public interface:

- `_register_internal_queue`: a queue in memory, served only by processes that declare it. Public queues are rows that
  every process polls, so another program would take over runs whose agents it does not have.
- `_active_workflows_set`, `_worker_concurrency`: DBOS limits the executions of one queue in a process; we limit those
  of all queues. With the limit 0 it asks the database nothing.
- `background_thread_stop_events`, `_background_threads`, `queue_thread`: DBOS stops its event loop before the threads
  that claim runs for it have ended. A run claimed at that moment is then never started, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from dbos import Queue, _dbos, _queue

from durable_swarm.engine.backend.launch import instance, launched_instance

ServedQueue = Queue
"""A queue that DBOS serves in this process."""


class QueueRate(TypedDict):
    """How many runs of a queue begin, at most, within how many seconds."""

    limit: int
    period: float


_queues: dict[str, ServedQueue] = {}
_shared: dict[str, Callable[[], bool]] = {}
_claims: dict[str, str] = {}
"""The shared queues from which runs were claimed whose executions have not begun yet."""


def serve_queue(
    name: str,
    polling_interval: float,
    *,
    worker_concurrency: int | None = None,
    global_concurrency: int | None = None,
    limiter: QueueRate | None = None,
    by_thread: Callable[[], bool] = lambda: False,
) -> ServedQueue:
    """Serve a queue from now on: one of this process alone, or with `worker_concurrency`, a shared one.

    For each run claimed for the first time from a shared queue, `by_thread` returns True if a thread is to execute it.
    """
    registry = _dbos._get_or_create_dbos_registry()
    # The same object: a DBOS that was not relaunched since has a thread that serves it.
    queue = _queues.setdefault(name, registry._register_internal_queue(name))
    registry.internal_queue_map[name] = queue
    queue._worker_concurrency, queue._concurrency, queue._limiter = worker_concurrency, global_concurrency, limiter
    if worker_concurrency is not None:
        _shared[name] = by_thread
    queue._polling_interval_sec = polling_interval
    return queue


def limit_queue(queue: ServedQueue, most: int) -> None:
    """Limit the queue so that this process executes at most `most` of its runs at once."""
    queue._worker_concurrency = max(0, most)


def note_claim(run_id: str, queue: str) -> bool:
    """Note from which queue DBOS has claimed a run; return True if that is a shared one."""
    if queue in _shared:
        _claims[run_id] = queue
    else:
        _claims.pop(run_id, None)
    return queue in _shared


def claimed_from(run_id: str) -> str:
    """Return the shared queue from which a run was claimed whose execution begins, or ''."""
    return _claims.pop(run_id, "")


def executing() -> set[str]:
    """Return the ids of the workflows that this process is executing."""
    dbos = launched_instance()
    return set() if dbos is None else set(dbos._active_workflows_set.activeList())


def open_queue(queue: ServedQueue, is_open: bool) -> None:
    """Begin the runs of a queue of this process alone, or do not even look at it, from the next poll on."""
    queue._worker_concurrency = None if is_open else 0


def stop_queues(seconds: float) -> None:
    """Stop the launched DBOS from claiming runs, and wait at most `seconds` for claims in progress."""
    dbos = instance()
    for event in dbos.background_thread_stop_events if dbos else ():
        event.set()
    for thread in dbos._background_threads if dbos else ():
        if getattr(thread, "_target", None) is _queue.queue_thread:
            thread.join(seconds)


def forget_queue(queue: ServedQueue) -> None:
    """Start nothing more from the queue, and do not serve it after the next launch."""
    queue._worker_concurrency = 0
    _dbos._get_or_create_dbos_registry().internal_queue_map.pop(queue.name, None)
