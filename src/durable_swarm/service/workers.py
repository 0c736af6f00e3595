"""Reads who works on a database: its processes, its queues, and the rates of its models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from durable_swarm.engine.api.inspector import Inspector
from durable_swarm.engine.database.urls import is_sqlite
from durable_swarm.engine.records.names import QUEUE, UNCLAIMED, work_queue
from durable_swarm.engine.storage.heartbeats import LEASE, Leases
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.process_facts import ProcessFacts, QueueFacts
from durable_swarm.engine.storage.rates import Rates
from durable_swarm.engine.storage.run_state import STATES_OF, moment
from durable_swarm.engine.storage.runs import Store
from durable_swarm.runs import ENDED, State

HOUR = 3_600_000
"""Milliseconds."""


@dataclass(frozen=True)
class ProcessView:
    """A process that works on the database, or one that was killed and has left runs.

    `host`, `pid`, `version` and `started_at` are None for a process that has not reported yet. `swarms` are the names
    of its open swarms, `serves` of those whose queue it serves. `places` is the number of queued runs that it executes
    at once, `runs` how many unfinished runs it owns; those of a dead process wait to be taken over. `seen_at` is its
    last sign of life: its heartbeat on PostgreSQL; on SQLite, where its lock says whether it lives, the present time if
    it does, else the last report. `failing` are the jobs of its maintenance that failed the last time, with their
    errors. Times are aware UTC.
    """

    name: str
    alive: bool
    host: str | None
    pid: int | None
    version: str | None
    swarms: list[str]
    serves: list[str]
    places: int
    runs: int
    started_at: datetime | None
    seen_at: datetime | None
    failing: dict[str, str]


@dataclass(frozen=True)
class QueueView:
    """The queue of a swarm: how many runs wait, since when the oldest does, and its limits.

    `places` is how many of its runs all living workers execute at once. `everywhere` limits that; `rate` is how many
    runs begin within how many seconds; both are None without a limit, and where no living worker serves the queue.
    """

    swarm: str
    waiting: int
    oldest_at: datetime | None
    places: int
    everywhere: int | None
    rate: tuple[int, float] | None


@dataclass(frozen=True)
class RateView:
    """A model whose calls are limited: one each `spacing` seconds, the next one in `wait` seconds."""

    model: str
    spacing: float
    wait: float


@dataclass(frozen=True)
class Workers:
    """The processes of a database, and what waits: living processes first.

    `unclaimed` counts the runs that any process with their agents may continue, `ended` those that have ended within
    the last hour, by status.
    """

    processes: list[ProcessView]
    queues: list[QueueView]
    rates: list[RateView]
    unclaimed: int
    ended: dict[State, int]


def workers(visitor: Inspector) -> Workers:
    """Return who works on the database."""
    store = visitor.store
    loads, known = store.claims.loads(), {facts.name: facts for facts in store.processes.all()}
    owned: dict[str, int] = {}
    for status, queue, process, count, _ in loads:
        owner = process if status == "PENDING" else (queue or "").removeprefix(QUEUE)
        if owner and (status == "PENDING" or (queue or "").startswith(QUEUE)) and queue != UNCLAIMED:
            owned[owner] = owned.get(owner, 0) + count
    ages = {} if is_sqlite(store.url) else Leases(store.url, store.engine).ages()
    dead = visitor.dead([*owned, *known]) | {name for name, age in ages.items() if age > LEASE}
    shown = [name for name in {**known, **owned} if name not in dead or name in owned]
    processes = [
        _process(name, known.get(name), owned.get(name, 0), name not in dead, ages.get(name)) for name in shown
    ]
    living = [facts for facts in known.values() if facts.name not in dead]
    return Workers(
        processes=sorted(processes, key=lambda view: (not view.alive, view.started_at is None)),
        queues=_queues(loads, living),
        rates=[RateView(*slot) for slot in Rates(store.url, store.engine).slots()],
        ended=_ended(store),
        unclaimed=sum(count for status, queue, _, count, _ in loads if status == "ENQUEUED" and queue == UNCLAIMED),
    )


def _ended(store: Store) -> dict[State, int]:
    found: dict[State, int] = {}
    for status, count in store.claims.ended_since(now() - HOUR).items():
        if (state := STATES_OF.get(status)) in ENDED:
            found[state] = found.get(state, 0) + count
    return found


def _process(name: str, facts: ProcessFacts | None, runs: int, alive: bool, age: float | None) -> ProcessView:
    present = datetime.now(UTC)
    reported = None if facts is None else moment(facts.seen_at)
    return ProcessView(
        name=name,
        alive=alive,
        host=facts.host if facts else None,
        pid=facts.pid if facts else None,
        version=facts.version if facts else None,
        swarms=facts.swarms if facts else [],
        serves=[*facts.queues] if facts else [],
        places=facts.places if facts else 0,
        runs=runs,
        started_at=moment(facts.started_at) if facts else None,
        seen_at=present - timedelta(seconds=age) if age is not None else present if alive else reported,
        failing=facts.failing if facts else {},
    )


def _queues(loads: list[tuple[str, str | None, str | None, int, int]], living: list[ProcessFacts]) -> list[QueueView]:
    prefix, waiting = work_queue(""), dict[str, tuple[int, int]]()
    for status, queue, _, count, oldest in loads:
        if status == "ENQUEUED" and queue is not None and queue.startswith(prefix):
            before = waiting.get(queue, (0, oldest))
            waiting[queue] = before[0] + count, min(before[1], oldest)
    served: dict[str, list[QueueFacts]] = {}
    for facts in living:
        for swarm, limits in facts.queues.items():
            served.setdefault(swarm, []).append(limits)
    swarms = sorted({queue.removeprefix(prefix) for queue in waiting} | served.keys())
    return [_queue(swarm, *waiting.get(work_queue(swarm), (0, 0)), served.get(swarm, [])) for swarm in swarms]


def _queue(swarm: str, waiting: int, oldest: int, served: list[QueueFacts]) -> QueueView:
    last: QueueFacts = served[-1] if served else {"places": 0}
    rate = last.get("rate")
    return QueueView(
        swarm=swarm,
        waiting=waiting,
        oldest_at=moment(oldest) if waiting else None,
        places=sum(limits["places"] for limits in served),
        everywhere=last.get("everywhere"),
        rate=(int(rate[0]), rate[1]) if isinstance(rate, list) and len(rate) == 2 else None,
    )
