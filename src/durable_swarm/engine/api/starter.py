"""How runs are started: `run` and its variants, `start` and `enqueue`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm import errors, validation
from durable_swarm.agents import RemoteAgent
from durable_swarm.background import background_loop, on_background, threads
from durable_swarm.concurrency import in_thread, running_loop
from durable_swarm.engine.api.live_stream import dictionaries, dictionaries_async
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.api.start import OpenedSwarm, RunStart
from durable_swarm.engine.backend import ownership, steps
from durable_swarm.engine.backend.admission import AlreadyRecorded, NotAdmitted, admitted_by
from durable_swarm.engine.backend.public import SetWorkflowAttributes, SetWorkflowID
from durable_swarm.engine.database import diagnosis
from durable_swarm.engine.execution.execution import Execution, beginning, watch
from durable_swarm.engine.history.recorded_errors import child_failure
from durable_swarm.engine.processes import workflows
from durable_swarm.engine.processes.process import Process
from durable_swarm.engine.records import names
from durable_swarm.engine.signals import Closed, RunHeld, look_aside, refused
from durable_swarm.engine.storage.run_state import state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.limits import Limits
from durable_swarm.runs import ENDED
from durable_swarm.streaming import PATIENCE, Channel, Item
from durable_swarm.swarm.arguments import RunArguments
from durable_swarm.swarm.runner import Runner
from durable_swarm.tools.context import calling
from durable_swarm.types import AgentLike, Message, Response

log = logging.getLogger("durable_swarm")


class RunStarter(Runner, OpenedSwarm, ABC):
    """The part of `DurableSwarm` that starts runs."""

    _begun: set[asyncio.Task[Run]]
    _earlier: list[str]

    @abstractmethod
    def _open_on_loop(self) -> Process:
        """Open on the running loop."""

    @abstractmethod
    def _store(self) -> Store:
        """Return the open database."""

    @abstractmethod
    def _handle(self, run_id: str, live: Execution | None = None) -> Run:
        """Return the handle of a run."""

    def _respond(self, asked: RunArguments, run_id: str | None) -> Response:
        return self._respond_to(RunStart(self, asked, run_id))

    def _respond_to(self, prepared: RunStart) -> Response:
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
        prepared.check_prices()
        with self._starting(prepared) as live:
            try:
                workflows.run_in_thread(prepared.stored)
            except RunHeld as held:
                if not held.passes or not live.entered:
                    raise refused(held.reason) from None
            except SQLAlchemyError as error:
                raise diagnosis.unusable(self._open().url, error) from error
            except ownership.OwnershipLost:
                live.lose()
            except NotAdmitted as refusal:
                raise refusal.reason from None
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
        return await self._respond_to_async(RunStart(self, asked, run_id))

    async def _respond_to_async(self, prepared: RunStart) -> Response:
        run = await self._start_on_loop(prepared)
        with prepared.withdrawing(self._handle):
            return await run.result_async()

    async def run_child(
        self, agent: AgentLike, message: str, context_variables: dict[str, Any], limits: Limits | None = None
    ) -> Response:
        """Run the agent as a child run of the tool call in progress and return its response.

        Its replies are streamed if those of the run in progress are. Raises `RunFailed`, `RunCancelled` and
        `LimitReached`.
        """
        here, asked = calling(), [{"role": "user", "content": message}]
        streams = here is not None and isinstance(here.owner, Execution) and here.owner.streams
        arguments = RunArguments(agent, asked, context_variables, stream=streams, limits=limits)
        run = await self._start_on_loop(RunStart(self, arguments, None))
        try:
            return await run.result_async()
        except errors.RunCancelled:
            raise
        except Exception as error:
            failure = await look_aside(child_failure, self._store(), run.id)
            if failure is None:
                raise
            raise failure from error

    def _stream(self, asked: RunArguments, run_id: str | None) -> Iterator[Item]:
        loop = running_loop()
        if loop is not None:
            self._refuse_to_block(loop)
        yield from self._stream_of(RunStart(self, asked, run_id))

    def _stream_of(self, prepared: RunStart) -> Iterator[Item]:
        channel = Channel()
        run = self._start(prepared, channel)
        with prepared.withdrawing(self._handle):
            yield from self._stream_run(run, channel)

    def _stream_run(self, run: Run, channel: Channel) -> Iterator[Item]:
        with self._open().local.executor_in_this_thread(run.id, PATIENCE) as home:
            yield from dictionaries(run, channel, home)

    async def _stream_async(self, asked: RunArguments, run_id: str | None) -> AsyncIterator[Item]:
        async for item in self._stream_of_async(RunStart(self, asked, run_id)):
            yield item

    async def _stream_of_async(self, prepared: RunStart) -> AsyncIterator[Item]:
        channel = Channel()
        run = await self._start_on_loop(prepared, channel)
        with prepared.withdrawing(self._handle):
            async for item in dictionaries_async(run, channel):
                yield item

    def start(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
        queue: bool = False,
        priority: int = 0,
        delay: float | None = None,
        at: datetime | None = None,
    ) -> Run:
        """Start a run in the background and return once it is recorded. Raises as `run` does before that point.

        Its replies are streamed: `Run.events` yields them piece by piece. With `queue` it waits for a worker
        (`durable-swarm worker`); waiting runs with the lowest `priority` start first, 0 or above. With `delay` it
        begins after that many seconds, with `at` at an aware time, in any process that defines its agent then.
        """
        asked = RunArguments(
            agent,
            messages,
            context_variables,
            model_override,
            True,
            debug,
            max_turns,
            execute_tools,
            provider_patience,
            limits,
        )
        later = validation.check_delay(delay, at)
        if validation.check_queue(queue, priority) or later:
            return self._enqueue(RunStart(self, asked, run_id, queued=queue), priority, later)
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
        provider_patience: float | None = None,
        limits: Limits | None = None,
        priority: int = 0,
    ) -> Run:
        """Queue a run for a worker, by the name of an agent that need not be defined here; as `start` with `queue`.

        This needs no model client and no key. The run belongs to swarms of this one's `name`, and so must the worker.
        """
        named = RemoteAgent(validation.check_name("agent: the name of one", agent))
        return self.start(
            named, messages, context_variables, model_override, debug, max_turns, execute_tools,
            run_id=run_id, provider_patience=provider_patience, limits=limits, queue=True, priority=priority,
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
        provider_patience: float | None = None,
        limits: Limits | None = None,
        priority: int = 0,
    ) -> Run:
        """Enqueue as `enqueue` does, on the running event loop."""
        named = RemoteAgent(validation.check_name("agent: the name of one", agent))
        return await self.start_async(
            named, messages, context_variables, model_override, debug, max_turns, execute_tools,
            run_id=run_id, provider_patience=provider_patience, limits=limits, queue=True, priority=priority,
        )  # fmt: skip

    def _enqueue(self, prepared: RunStart, priority: int, delay: float = 0.0) -> Run:
        opened = self._open()
        known = prepared.named or prepared.caller is not None
        run = self._attach(prepared) if known else None
        if run is None:
            queue = names.work_queue(self.name) if prepared.queued else names.UNCLAIMED
            about, version = prepared.about, opened.version
            new = opened.store.enqueue(prepared.run_id, prepared.stored, about, queue, version, priority, delay)
            if not new:  # Another process recorded it first.
                prepared.check_same(opened.store.start_record(opened.store.found(prepared.run_id)))
            run = self._handle_of(prepared)
            run.is_new = new
        return run

    def _start(self, prepared: RunStart, channel: Channel | None = None) -> Run:
        return on_background(self._start_on_loop(prepared, channel)).result()

    async def start_async(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
        queue: bool = False,
        priority: int = 0,
        delay: float | None = None,
        at: datetime | None = None,
    ) -> Run:
        """Start as `start` does, on the running event loop."""
        asked = RunArguments(
            agent,
            messages,
            context_variables,
            model_override,
            True,
            debug,
            max_turns,
            execute_tools,
            provider_patience,
            limits,
        )
        later = validation.check_delay(delay, at)
        if validation.check_queue(queue, priority) or later:
            self._open_on_loop()
            return await in_thread(self._enqueue, RunStart(self, asked, run_id, queued=queue), priority, later)
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
        if known and (run := await in_thread(self._attach, prepared)) is not None:
            return run
        if prepared.limits_cost:
            await in_thread(prepared.check_prices)
        with self._starting(prepared) as live:
            live.watched = True
            if channel is not None:
                live.publisher.join(channel)
            try:
                handle = await steps.start(workflows.run_on_loop, prepared.stored)
            except NotAdmitted as refusal:
                raise refusal.reason from None
            except AlreadyRecorded:  # Another process recorded it first.
                handle = None
            except SQLAlchemyError as error:
                raise diagnosis.unusable(self._open().url, error) from error
        executes = steps.executes(handle)
        if handle is not None and executes:
            live.entered = True
            live.watcher = asyncio.get_running_loop().create_task(watch(handle, live))
            run = self._handle_of(prepared, live)
        else:
            run = await in_thread(self._started, prepared, live)
        # One that waits for its turn in a session is recorded here, and executed later; an existing one has no handle.
        run.is_new = executes or (handle is not None and prepared.admit is not None)
        return run

    def _attach(self, prepared: RunStart) -> Run | None:
        """Return the run if the caller named an existing one. Raises `RunConflict`."""
        store = self._store()
        if prepared.caller is not None:
            self._open().crash_guard.lend(prepared.run_id, prepared.caller)
        if prepared.child is not None:
            prepared.child.budget.open()
        if not prepared.named:
            return None
        row = store.row(prepared.run_id)
        if not prepared.queued and (row is None or state_of(row) not in ENDED):
            self.clients.ready()  # An ended run is read without a model client.
        if prepared.child is not None and not prepared.child.enter(store.family, new=row is None):
            prepared.child = None
        if row is None:
            return None
        prepared.check_same(store.start_record(row))
        if not prepared.queued:
            self._lend(prepared)
        return self._handle_of(prepared)

    def _lend(self, prepared: RunStart) -> None:
        """Make the run use the caller's agent, also if another execution begins it here."""
        if prepared.cast:
            self._open().lend(prepared.run_id, prepared.asked.agent)

    @contextlib.contextmanager
    def _starting(self, prepared: RunStart) -> Iterator[Execution]:
        debug, cast = prepared.asked.debug, prepared.cast
        live = Execution(prepared.run_id, prepared.start, self, prepared.root, debug=debug, cast=cast)
        opened = self._open()  # Now: a waiting run's end must not reopen a swarm closed meanwhile.
        if opened.is_closed:
            raise refused(Closed("this process was drained, and begins no run any more; close its swarms"))
        prepared.warn_of_doubles(opened.store, self._earlier)
        try:
            admission = admitted_by(prepared.run_id, prepared.admit)
            with beginning(live), SetWorkflowID(prepared.run_id), SetWorkflowAttributes(prepared.about), admission:
                yield live
        except BaseException:
            opened.local.leave(live, "interrupted")
            raise

    def _handle_of(self, prepared: RunStart, live: Execution | None = None) -> Run:
        """Return the handle of a run that was started, for the parent's events if a tool call started it."""
        run = self._handle(prepared.run_id, live)
        if prepared.child is not None:
            prepared.child.started()
            run.on_end = prepared.child.finished
        return run

    def _started(self, prepared: RunStart, live: Execution) -> Run:
        """Return the handle of the started run, or of the run of this id that another process started first."""
        if live.entered:
            return self._handle_of(prepared, live)
        store = self._store()
        row = store.row(prepared.run_id)
        if row is not None and not live.entered:
            prepared.check_same(store.start_record(row))
        if prepared.session is not None:
            self._lend(prepared)
            self._open().sessions.advance(prepared.session.session)
        return self._handle_of(prepared, live if live.entered else None)
