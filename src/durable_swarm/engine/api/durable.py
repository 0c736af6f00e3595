"""`DurableSwarm`: Swarm's methods over the same loop, with every model call and tool call a checkpoint."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from durable_swarm import errors, validation
from durable_swarm.codec import Codec
from durable_swarm.concurrency import in_thread
from durable_swarm.engine.api import programs
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.api.run_requests import decide
from durable_swarm.engine.api.schedules import ScheduledSwarm
from durable_swarm.engine.api.session import DurableSession
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.execution.swarms import QueueLimits
from durable_swarm.engine.processes import opening
from durable_swarm.engine.processes.process import Process
from durable_swarm.engine.storage.run_list import Query, listed
from durable_swarm.engine.storage.runs import Store
from durable_swarm.limits import DEFAULT_LIMITS, Limits, check_limits
from durable_swarm.models.client import Clients
from durable_swarm.models.prices import Prices, check_prices
from durable_swarm.requests import TOKEN, Decision
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.runs import State
from durable_swarm.swarm.arguments import check_settings
from durable_swarm.swarm.compaction import Compaction
from durable_swarm.swarm.session import check_session
from durable_swarm.webhooks import Webhook, check_webhooks

if TYPE_CHECKING:
    from durable_swarm.engine.history.export_redaction import Redact

log = logging.getLogger("durable_swarm")


class DurableSwarm(ScheduledSwarm):
    """Runs agents so that no crash loses them: Swarm's client, with checkpoints in a database.

    `client` is any object with `client.chat.completions.create(**kwargs)`, sync or async; by default `openai`'s.
    `database` is a SQLAlchemy URL, by default `$DURABLE_SWARM_DATABASE_URL`, else `sqlite:///durable_swarm.sqlite`.
    `name` separates the runs of several swarms on one database: a run is recovered only by a swarm of its name.
    `worker_id` names this process in the database, for cases where something outside relies on the name; no two
    processes may share one. `tool_concurrency` above 1 lets plain functions of one reply run concurrently.
    `tool_errors="tell"` reports a tool's exception to the model; `"raise"` ends the run with it. `codec` encodes all
    users' data on its way to the database and decodes it on the way back, such as
    `durable_swarm.encryption.EncryptionCodec`. `tool_database` is the URL of the database whose connection
    transactional tools get, by default that of the runs. `keep_for` is the number of seconds for which ended runs of
    this swarm are kept, by default for ever. `model_rates` limits the calls of models, as in `{"gpt-4o": (500, 60)}`:
    500 calls in 60 seconds, over all processes of the database. `changed_agents="hold"` holds a run before the first
    reply of an agent that has changed since it last answered in that run, until `Run.resume()` accepts the agent as it
    is; with `"continue"` the run continues. `provider_patience` is how many seconds a run waits for a provider that is
    away (no connection, status 408, 409, 429 or 5xx) before it fails; with 0 it fails at once. `webhooks` get
    messages about its runs.

    Nothing is opened before first use. Use it as a context manager, or call `close`, to release all resources.
    """

    def __init__(
        self,
        client: object = None,
        *,
        database: str | None = None,
        name: str | None = None,
        worker_id: str | None = None,
        tool_concurrency: int = 1,
        tool_errors: str = "raise",
        codec: Codec | None = None,
        tool_database: str | None = None,
        keep_for: float | None = None,
        model_rates: Mapping[str, tuple[int, float]] = MappingProxyType({}),
        changed_agents: str = "continue",
        default_model: str | None = None,
        provider_patience: float = 24 * 3600,
        limits: Limits | None = DEFAULT_LIMITS,
        prices: Prices | None = None,
        webhooks: Sequence[Webhook] = (),
    ) -> None:
        check_settings(client, tool_concurrency, tool_errors, default_model)
        validation.check_codec(codec)
        self.codec = codec
        self.clients = Clients(client)
        self.name = programs.default_name() if name is None else validation.check_name("name", name)
        self.tool_concurrency = tool_concurrency
        self.tool_errors = tool_errors
        self.default_model = default_model
        self.limits = check_limits(limits)
        self.prices = check_prices(prices)
        self.webhooks = check_webhooks(webhooks)
        self.tool_database = tool_database if tool_database is None else _check_database(tool_database)
        if keep_for is not None:
            validation.check_seconds("keep_for", keep_for)
        self.keep_for = keep_for
        validation.check_model_rates(model_rates)
        self.model_rates: Mapping[str, tuple[int, float]] = dict(model_rates)
        validation.check_seconds("provider_patience", provider_patience)
        self.provider_patience = provider_patience
        self.changed_agents = validation.check_changed_agents(changed_agents)
        self.database = database if database is None else _check_database(database)
        self._worker_id = None if worker_id is None else validation.check_name("worker_id", worker_id)
        self._opening = threading.Lock()
        self._process: Process | None = None
        self._limits: QueueLimits | None = None
        self._begun: set[asyncio.Task[Run]] = set()
        self._taken: list[str] = []
        """Runs taken over at opening that `recover` has not returned yet."""
        self._earlier: list[str] = []  # Interrupted runs not yet compared with a run without `run_id`.

    # Opening and closing

    def _open(self) -> Process:
        """Launch at first use, then take over the unfinished runs of dead processes."""
        with self._opening:
            if self._process is not None:
                self._process.check_fork()
            else:
                self._process = opening.open_for(self, self.database, self._worker_id)
                if self._limits is not None:
                    self._process.worker.serve(self, self._limits)
                self._taken, self._earlier = [], []
                self._process.recovery.begin(self._taken, self._earlier)
            return self._process

    def serve(
        self, concurrency: int = 10, *, queue_concurrency: int | None = None, rate: tuple[int, float] | None = None
    ) -> None:
        """Become a worker: execute queued runs of this swarm, and those of dead processes, `concurrency` at once.

        `queue_concurrency` limits how many runs of the queue all workers execute at once, and `rate`, as (runs,
        seconds), how many they start; use the same values in all workers. Agents must be defined before. Returns at
        once; `drain` and `close` end it. `durable-swarm worker` calls it. Raises `ConfigurationError`, also in a swarm
        that is in use already.
        """
        if self._process is not None:
            raise errors.ConfigurationError("serve() must come before anything else that uses this DurableSwarm")
        self._limits = QueueLimits(concurrency, queue_concurrency, rate)
        self.clients.ready()
        self._open()

    def drain(self, seconds: float = 30.0) -> bool:
        """Start nothing more, and wait at most `seconds` for the steps in progress; return True if all have ended.

        This applies to all swarms of the process, until the last one is closed. Unfinished runs are left to other
        processes.
        """
        validation.check_seconds("seconds", seconds)
        return self._process is None or self._process.worker.drain(seconds)

    def _open_on_loop(self) -> Process:
        """Open on the running loop, so that DBOS executes recovered runs where async tools find their resources."""
        opened = self._open()
        opened.loops.add(asyncio.get_running_loop())
        return opened

    def _store(self) -> Store:
        return self._open().store

    def close(self) -> None:
        """Release all resources. Runs in progress stop and stay unfinished; a later use opens the swarm again."""
        with self._opening:
            if self._process is not None:
                opening.close_for(self)
                self._process = None
                self.clients.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Looking at runs

    def get(self, run_id: str) -> Run:
        """Return the handle of a run. Raises `RunNotFound`."""
        self._store().found(validation.check_text("run_id", run_id), load_output=False)
        return self._handle(run_id)

    def runs(self, status: State | None = None, agent: str | None = None, limit: int = 100) -> list[Run]:
        """Return the runs, newest first: all, or those of one status or one agent."""
        return [self._handle(row.workflow_id) for row in listed(self._store(), Query(status, agent, limit))]

    def session(
        self,
        id: str,
        agent: object = None,
        *,
        context_variables: dict[str, Any] | None = None,
        limits: Limits | None = None,
        compaction: Compaction | None = None,
    ) -> DurableSession:
        """Return the session of an id, which may be new; nothing is read or written.

        A new session needs an `agent` for its first message, and begins with a copy of `context_variables`. A session
        that exists continues with the agent and the context that its last run left. `limits` are one total over all its
        runs, beside those of each run; other ones given later replace them. With `compaction`, messages that
        this object sends are answered with a summary in place of the first messages, once they have become many.
        Raises `ConfigurationError`.
        """
        check_session(id, agent, context_variables, limits, compaction)
        return DurableSession(self, id, agent, dict(context_variables or {}), limits, compaction)

    def sessions(self, agent: str | None = None, limit: int = 100) -> list[DurableSession]:
        """Return the sessions of all swarms, that with the latest change first; with `agent`, those it answers next."""
        validation.check_whole("limit", limit, 1)
        found = self._store().sessions.listed(agent, limit)
        return [DurableSession(self, state.id, None, {}) for state in found]

    async def sessions_async(self, agent: str | None = None, limit: int = 100) -> list[DurableSession]:
        """Return the sessions as `sessions` does, on the event loop."""
        self._open_on_loop()
        return await in_thread(self.sessions, agent, limit)

    def recover(self) -> list[Run]:
        """Take over, now, the unfinished runs that no living process executes and whose agents are defined here.

        Return the runs taken over, including those of the first use.
        """
        more = self._open().recovery.take(sure=True)
        taken, self._taken = dict.fromkeys([*self._taken, *more]), []
        return [self._handle(run_id) for run_id in taken]

    def export(self, run_id: str, *, redact: Redact | None = None) -> dict[str, Any]:
        """Return everything that is recorded of a run as one document of plain JSON data.

        `redact(path, value)` receives every user value (texts, numbers, outputs of tools) with its path in the
        document, as in `start.messages[0].content`, and returns its replacement. Raises `RunNotFound`.
        """
        from durable_swarm.engine.history.export import export

        return export(self._store(), self._store().found(validation.check_text("run_id", run_id), waits=True), redact)

    def import_run(self, document: dict[str, Any]) -> Run:
        """Put an exported run into this database: ended, to be read, replayed and forked.

        Nothing is executed. Importing the same run again changes nothing. Raises `ConfigurationError` for a document
        that is not an exported run, and `RunConflict` if its id belongs to another run.
        """
        from durable_swarm.engine.history import importing

        return self._handle(importing.import_run(self._store(), document))

    # What runs ask

    def requests(self) -> list[HumanRequest]:
        """Return the open requests of all runs in the database, oldest first."""
        return self._store().inbox.open_requests()

    def _decide(self, request_id: str, decision: Decision, by: str | None) -> None:
        opened = self._open()
        decide(opened.store, opened, request_id, decision, by)

    def _complete(self, token: str, decision: Decision, by: str | None) -> bool:
        opened = self._open()
        waits = opened.store.inbox.complete(token, decision, by, self.name)
        opened.waiting_calls.notify(TOKEN + token)
        return waits

    async def export_async(self, run_id: str, *, redact: Redact | None = None) -> dict[str, Any]:
        """Export as `export` does, on the event loop."""
        self._open_on_loop()
        return await in_thread(lambda: self.export(run_id, redact=redact))

    async def import_run_async(self, document: dict[str, Any]) -> Run:
        """Import as `import_run` does, on the event loop."""
        self._open_on_loop()
        return await in_thread(self.import_run, document)

    async def get_async(self, run_id: str) -> Run:
        """Return the handle as `get` does, on the event loop."""
        self._open_on_loop()
        return await in_thread(self.get, run_id)

    async def runs_async(self, status: State | None = None, agent: str | None = None, limit: int = 100) -> list[Run]:
        """Return the runs as `runs` does, on the event loop."""
        self._open_on_loop()
        return await in_thread(self.runs, status, agent, limit)

    async def recover_async(self) -> list[Run]:
        """Take over as `recover` does, on the event loop."""
        self._open_on_loop()
        return await in_thread(self.recover)

    def _handle(self, run_id: str, live: Execution | None = None) -> Run:
        return Run(run_id, self._store, self._open, live, self.name)


def _check_database(database: object) -> str:
    if isinstance(database, os.PathLike):
        raise errors.ConfigurationError(f"database must be a URL, not a path; use 'sqlite:///{database}'")
    return validation.check_text("database", database)
