"""`DurableSwarm`: Swarm's methods over the same loop, with every model call and tool call a checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm import errors, validation
from durable_swarm.agents import RemoteAgent
from durable_swarm.background import background_loop, on_background, threads
from durable_swarm.codec import Codec
from durable_swarm.concurrency import in_thread, running_loop
from durable_swarm.engine.api import programs
from durable_swarm.engine.api.live_stream import dictionaries, dictionaries_async
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.api.run_requests import decide
from durable_swarm.engine.api.start import RunStart
from durable_swarm.engine.backend import steps
from durable_swarm.engine.backend.public import DBOS, DBOSWorkflowIDInUseError, SetWorkflowAttributes, SetWorkflowID
from durable_swarm.engine.database import diagnosis
from durable_swarm.engine.execution.execution import Execution, beginning, watch
from durable_swarm.engine.execution.swarms import QueueLimits
from durable_swarm.engine.history import export as history_export
from durable_swarm.engine.history import importing
from durable_swarm.engine.history.export_redaction import Redact
from durable_swarm.engine.processes import process, workflows
from durable_swarm.engine.processes.process import Process
from durable_swarm.engine.records import names
from durable_swarm.engine.signals import Closed, RunHeld, refused
from durable_swarm.engine.storage.runs import Store, state_of
from durable_swarm.models.client import Clients
from durable_swarm.requests import TOKEN, Decision
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.runs import ENDED, State
from durable_swarm.streaming import PATIENCE, Channel, Item
from durable_swarm.swarm.arguments import RunArguments, check_settings
from durable_swarm.swarm.runner import Runner
from durable_swarm.types import Message, Response

log = logging.getLogger("durable_swarm")


class DurableSwarm(Runner):
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
    is; with `"continue"` the run continues.

    Nothing is opened before first use. Use it as a context manager, or call `close`, to release all resources.
    """

    def __init__(
        self,
        client: Any = None,
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
    ) -> None:
        check_settings(client, tool_concurrency, tool_errors, default_model)
        validation.check_codec(codec)
        self.codec = codec
        self.clients = Clients(client)
        self.name = programs.default_name() if name is None else validation.check_name("name", name)
        self.tool_concurrency = tool_concurrency
        self.tool_errors = tool_errors
        self.default_model = default_model
        self.tool_database = tool_database if tool_database is None else _check_database(tool_database)
        if keep_for is not None:
            validation.check_seconds("keep_for", keep_for)
        self.keep_for = keep_for
        validation.check_model_rates(model_rates)
        self.model_rates: Mapping[str, tuple[int, float]] = dict(model_rates)
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
                self._process = process.open_for(self, self.database, self._worker_id)
                if self._limits is not None:
                    self._process.working.serve(self, self._limits)
                self._taken, self._earlier = [], []
                self._process.orphans.begin(self._taken, self._earlier)
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
        return self._process is None or self._process.working.drain(seconds)

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
                process.close_for(self)
                self._process = None
                self.clients.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Running

    def _respond(self, asked: RunArguments, run_id: str | None) -> Response:
        prepared = RunStart(self, asked, run_id)
        loop = running_loop()
        with prepared.withdrawing(self._handle):
            if loop is not None:
                self._refuse_to_block(loop)
                # DBOS refuses to block a thread that has an event loop, but not another thread.
                return threads().submit(self._run_here, prepared, context=steps.outside()).result()
            return steps.outside().run(self._run_here, prepared)

    def _run_here(self, prepared: RunStart) -> Response:
        run = self._attach(prepared)
        if run is not None:
            return run.result()
        with self._starting(prepared) as live:
            try:
                workflows.run_in_thread(prepared.stored)
            except RunHeld as held:
                if not held.passes or not live.entered:
                    raise refused(held.reason) from None
            except SQLAlchemyError as error:
                raise diagnosis.unusable(self._open().url, error) from error
            except steps.OwnershipLost:
                live.lose()
            except Exception as error:
                # The run's own recorded end, or that of another process, which was faster. Returned below either way.
                log.debug("run %r ended with %s", prepared.run_id, type(error).__name__)
        return self._started(prepared, live).result()

    def _refuse_to_block(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop in self._open().loops:
            raise errors.ConfigurationError(
                "run() would stop the event loop on which this program's runs are executed; call "
                "`await run_async(...)`, or iterate `run_async(..., stream=True)`"
            )

    async def _respond_async(self, asked: RunArguments, run_id: str | None) -> Response:
        prepared = RunStart(self, asked, run_id)
        run = await self._start_on_loop(prepared)
        with prepared.withdrawing(self._handle):
            return await run.result_async()

    def _stream(self, asked: RunArguments, run_id: str | None) -> Iterator[Item]:
        loop = running_loop()
        if loop is not None:
            self._refuse_to_block(loop)
        channel, prepared = Channel(), RunStart(self, asked, run_id)
        run = self._start(prepared, channel)
        with self._open().executor_in_this_thread(run.id, PATIENCE) as home, prepared.withdrawing(self._handle):
            yield from dictionaries(run, channel, home)

    async def _stream_async(self, asked: RunArguments, run_id: str | None) -> AsyncIterator[Item]:
        channel, prepared = Channel(), RunStart(self, asked, run_id)
        run = await self._start_on_loop(prepared, channel)
        with prepared.withdrawing(self._handle):
            async for item in dictionaries_async(run, channel):
                yield item

    def start(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        queue: bool = False,
        priority: int = 0,
    ) -> Run:
        """Start a run in the background and return once it is recorded. Raises as `run` does before that point.

        Its replies are streamed: `Run.events` yields them piece by piece. With `queue` it waits for a worker
        (`durable-swarm worker`); waiting runs with the lowest `priority` start first, 0 or above.
        """
        asked = RunArguments(agent, messages, context_variables, model_override, True, debug, max_turns, execute_tools)
        if validation.check_queue(queue, priority):
            return self._enqueue(RunStart(self, asked, run_id, queued=True), priority)
        if running_loop() is background_loop():
            raise errors.ConfigurationError(
                "start() would stop the event loop on which runs are executed; call `await start_async(...)`"
            )
        return self._start(RunStart(self, asked, run_id))

    def enqueue(
        self,
        agent: str,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        priority: int = 0,
    ) -> Run:
        """Queue a run for a worker, by the name of an agent that need not be defined here; as `start` with `queue`.

        This needs no model client and no key. The run belongs to swarms of this one's `name`, and so must the worker.
        """
        named = RemoteAgent(validation.check_name("agent: the name of one", agent))
        return self.start(
            named, messages, context_variables, model_override, debug, max_turns, execute_tools,
            run_id=run_id, queue=True, priority=priority,
        )  # fmt: skip

    async def enqueue_async(
        self,
        agent: str,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        priority: int = 0,
    ) -> Run:
        """Enqueue as `enqueue` does, on the running event loop."""
        named = RemoteAgent(validation.check_name("agent: the name of one", agent))
        return await self.start_async(
            named, messages, context_variables, model_override, debug, max_turns, execute_tools,
            run_id=run_id, queue=True, priority=priority,
        )  # fmt: skip

    def _enqueue(self, prepared: RunStart, priority: int) -> Run:
        opened = self._open()
        known = prepared.named or prepared.caller is not None
        run = self._attach(prepared) if known else None
        if run is None:
            queue = names.work_queue(self.name)
            try:
                opened.store.enqueue(prepared.run_id, prepared.stored, prepared.about, queue, opened.version, priority)
            except DBOSWorkflowIDInUseError:  # Another process recorded it first.
                prepared.check_same(opened.store.start_record(opened.store.found(prepared.run_id)))
            run = self._handle(prepared.run_id)
        return run

    def _start(self, prepared: RunStart, channel: Channel | None = None) -> Run:
        return on_background(self._start_on_loop(prepared, channel)).result()

    async def start_async(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        queue: bool = False,
        priority: int = 0,
    ) -> Run:
        """Start as `start` does, on the running event loop."""
        asked = RunArguments(agent, messages, context_variables, model_override, True, debug, max_turns, execute_tools)
        if validation.check_queue(queue, priority):
            self._open_on_loop()
            return await in_thread(self._enqueue, RunStart(self, asked, run_id, queued=True), priority)
        return await self._start_on_loop(RunStart(self, asked, run_id))

    async def _start_on_loop(self, prepared: RunStart, channel: Channel | None = None) -> Run:
        # A task of its own, because a tool may start a run, which must be outside the tool's workflow. Shielded,
        # because a start that was cancelled half-way would leave a run that no process executes.
        begun = asyncio.get_running_loop().create_task(self._begin(prepared, channel), context=steps.outside())
        self._begun.add(begun)
        begun.add_done_callback(self._begun.discard)
        return await asyncio.shield(begun)

    async def _begin(self, prepared: RunStart, channel: Channel | None) -> Run:
        self._open_on_loop()
        known = prepared.named or prepared.caller is not None
        run = await in_thread(self._attach, prepared) if known else None
        if run is not None:
            return run
        with self._starting(prepared) as live:
            live.watched = True
            if channel is not None:
                live.feed.join(channel)
            try:
                handle = await DBOS.start_workflow_async(workflows.run_on_loop, prepared.stored)
            except SQLAlchemyError as error:
                raise diagnosis.unusable(self._open().url, error) from error
        if not steps.executes(handle):
            return await in_thread(self._started, prepared, live)
        live.entered = True
        live.watcher = asyncio.get_running_loop().create_task(watch(handle, live))
        return self._handle(prepared.run_id, live)

    def _attach(self, prepared: RunStart) -> Run | None:
        """Return the run if the caller named an existing one. Raises `RunConflict`."""
        store = self._store()
        if prepared.caller is not None:
            self._open().trials.lend(prepared.run_id, prepared.caller)
        if not prepared.named:
            return None
        row = store.row(prepared.run_id)
        if not prepared.queued and (row is None or state_of(row) not in ENDED):
            self.clients.ready()  # An ended run is read without a model client.
        if row is None:
            return None
        prepared.check_same(store.start_record(row))
        if not prepared.queued:
            self._open().lend(prepared.run_id, prepared.asked.agent)
        return self._handle(prepared.run_id)

    @contextlib.contextmanager
    def _starting(self, prepared: RunStart) -> Iterator[Execution]:
        agent = prepared.asked.agent
        live = Execution(prepared.run_id, prepared.start, self, debug=prepared.asked.debug, cast={agent.name: agent})
        opened = self._open()  # Now: a waiting run's end must not reopen a swarm closed meanwhile.
        if opened.is_closed:
            raise refused(Closed("this process was drained, and begins no run any more; close its swarms"))
        prepared.warn_of_doubles(opened.store, self._earlier)
        try:
            with beginning(live), SetWorkflowID(prepared.run_id), SetWorkflowAttributes(prepared.about):
                yield live
        except BaseException:
            opened.stop(live)
            raise

    def _started(self, prepared: RunStart, live: Execution) -> Run:
        """Return the handle of the started run, or of the run of this id that another process started first."""
        if live.entered:
            return self._handle(prepared.run_id, live)
        store = self._store()
        row = store.row(prepared.run_id)
        if row is not None and not live.entered:
            prepared.check_same(store.start_record(row))
        return self._handle(prepared.run_id, live if live.entered else None)

    # Looking at runs

    def get(self, run_id: str) -> Run:
        """Return the handle of a run. Raises `RunNotFound`."""
        self._store().found(validation.check_text("run_id", run_id), load_output=False)
        return self._handle(run_id)

    def runs(self, status: State | None = None, agent: str | None = None, limit: int = 100) -> list[Run]:
        """Return the runs, newest first: all, or those of one status or one agent."""
        return [self._handle(row.workflow_id) for row in self._store().listed(status, agent, limit)]

    def recover(self) -> list[Run]:
        """Take over, now, the unfinished runs that no living process executes and whose agents are defined here.

        Return the runs taken over, including those of the first use.
        """
        more = self._open().orphans.take(sure=True)
        taken, self._taken = dict.fromkeys([*self._taken, *more]), []
        return [self._handle(run_id) for run_id in taken]

    def export(self, run_id: str, *, redact: Redact | None = None) -> dict[str, Any]:
        """Return everything that is recorded of a run as one document of plain JSON data.

        `redact(path, value)` receives every user value (texts, numbers, outputs of tools) with its path in the
        document, as in `start.messages[0].content`, and returns its replacement. Raises `RunNotFound`.
        """
        row = self._store().found(validation.check_text("run_id", run_id))
        return history_export.export(self._store(), row, redact)

    def import_run(self, document: dict[str, Any]) -> Run:
        """Put an exported run into this database: ended, to be read, replayed and forked.

        Nothing is executed. Importing the same run again changes nothing. Raises `ConfigurationError` for a document
        that is not an exported run, and `RunConflict` if its id belongs to another run.
        """
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
        opened.room.tell(TOKEN + token)
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


def _check_database(database: Any) -> str:
    if isinstance(database, os.PathLike):
        raise errors.ConfigurationError(f"database must be a URL, not a path; use 'sqlite:///{database}'")
    return validation.check_text("database", database)
