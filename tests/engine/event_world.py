"""A world in which a run is told: lives that stream, write, fail and die as they are bid, over a database of lists.

`World.do` takes one deed after the other and checks after each what every reader has got; a deed that does not fit what
is under way does nothing, so that any sequence of deeds is a history.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from durable_swarm.engine.execution.event_writer import Source
from durable_swarm.engine.execution.publisher import EventPublisher
from durable_swarm.engine.history.follower import RecordedEvents
from durable_swarm.engine.history.projection import numbers_in
from durable_swarm.engine.records import base, names, runs
from durable_swarm.engine.records.encoding import RecordCodec
from durable_swarm.engine.records.rows import RecordedError, RunRow, StepRow
from durable_swarm.engine.storage.events import NewRow
from durable_swarm.events import Event
from durable_swarm.loop import Call, Outcome, Reply

RUN = "run"


@dataclass(frozen=True)
class Plan:
    """What a turn of the run does: how many calls it makes, whether together, and the one that hands over, if any."""

    calls: int = 0
    together: bool = False
    hands: int | None = None


class Tables:
    """What of the run is in the database; to `RecordedEvents` it is the store."""

    def __init__(self, plans: list[Plan]) -> None:
        self.plans = plans
        self.start = {"v": 1, "agent": "A0", "at": 0.0, "stream": True, "messages": [], "context": {}}
        self.owner: str | None = None
        self.status, self.completed_at = "PENDING", 0
        self.rows: dict[int, base.Record] = {}
        self.recorded: dict[int, StepRow] = {}
        self.events = SimpleNamespace(read=self._read, keep=lambda row: self.write([row]))

    def write(self, rows: list[NewRow]) -> bool:
        """Store rows; whether they were refused."""
        if any(row.owner is not None and row.owner != self.owner for row in rows):
            return True
        self.rows.update({row.seq: row.record for row in rows})
        return False

    def _read(self, run_id: str, record_codec: RecordCodec, after: int = 0) -> list[tuple[int, base.Record]]:
        return [(seq, row) for seq, row in sorted(self.rows.items()) if seq > after]

    def number(self, turn: int) -> int:
        """Give the number of the step of a turn's model call."""
        return 1 + sum(1 + plan.calls for plan in self.plans[:turn])

    def found(self, run_id: str) -> RunRow:
        error = RecordedError("Oops", "oops", {"type": "Oops", "message": "oops"})
        at, ended = 0, self.completed_at
        return RunRow(RUN, names.RUN, self.status, None, None, None, None, at, at, ended, None, error=error)

    def start_record(self, row: RunRow) -> base.Record:
        return self.start

    def steps(self, run_id: str, *, after: int = 0) -> list[StepRow]:
        return [self.recorded[number] for number in sorted(self.recorded)][after:]

    def calls(self, keys: set[str]) -> list[RunRow]:
        return []

    def step_record(self, step: StepRow, row: RunRow) -> base.Record:
        record: base.Record = step.output
        return record

    def reply(self, step: StepRow, row: RunRow) -> Reply:
        return runs.read_reply(step.output)

    def failure_record(self, row: RunRow) -> base.Record:
        record: base.Record = row.error.data
        return record

    def record_codec(self, row: RunRow) -> RecordCodec:
        return RecordCodec(None)

    def record(self, number: int, name: str, output: base.Record) -> None:
        """Record a step."""
        self.recorded[number] = StepRow(RUN, number, name, output, None, None, None, None)


class Desk:
    """The writer of one life: it writes when it is told to, and the write ends as it is told to."""

    def __init__(self, tables: Tables) -> None:
        self.waiting = False
        self.next = "stored"
        self._tables = tables
        self._under_way: tuple[EventPublisher, list[NewRow]] | None = None

    def schedule(self, source: Source, *, soon: bool = False, much: bool = False) -> None:
        self.waiting = True

    def flush(self, sources: list[Any]) -> None:
        self.end(self.next)
        self.begin(sources[0])
        self.end(self.next)

    def begin(self, publisher: EventPublisher) -> None:
        if self._under_way is None:
            self.waiting, self._under_way = False, (publisher, publisher.rows())

    def end(self, how: str) -> None:
        """End the write under way: `stored`, `lost`, or `unsure`: stored, but reported as lost."""
        if self._under_way is None:
            return
        (publisher, rows), self._under_way = self._under_way, None
        refused = self._tables.write(rows) if how != "lost" else False
        if how == "stored":
            publisher.written(refused)
        else:
            publisher.written(None)
            self.waiting = self.waiting or bool(rows)


@dataclass
class Life:
    """One life of the run: its publisher, and where it stands."""

    publisher: EventPublisher
    desk: Desk
    turn: int = 0
    asking: bool = False
    content: str = ""
    open: list[int] = field(default_factory=list)
    finished: list[tuple[int, int]] = field(default_factory=list)
    """The calls that have ended in this life."""
    failed: bool = False
    trouble: str = ""
    """What becomes of the last write before the run fails."""
    seen: int = 0
    """The last number read live here."""


class World:
    """A run, its lives and its readers. `live` is the executing life, `ghost` the one before, if it does not know."""

    def __init__(self, plans: list[Plan]) -> None:
        self.tables = Tables(plans)
        self.plans = plans
        self.numbers = itertools.count(1)
        self.texts: list[str] = []
        self.agents = ["A0"]
        self.ghost: Life | None = None
        self.known: dict[int, Event] = {}
        """What a reader of the database has got under each number."""
        self.shown: dict[int, Event] = {}
        """What a reader in an executing process has got."""
        self.loyal: list[Event] = []
        """What a reader got who read in each life, and went on in the next."""
        self.steady = RecordedEvents(self.tables, RUN)  # type: ignore[arg-type]
        self.steadily: list[Event] = []
        self.live = self._born(again=False)

    # Lives

    def _born(self, *, again: bool) -> Life:
        self.tables.owner, self.tables.status = f"owner-{next(self.numbers)}", "PENDING"
        publisher, desk = EventPublisher(), Desk(self.tables)
        publisher.open(self.tables.start, desk, RUN, self.tables.owner, RecordCodec(None), again=again)  # type: ignore[arg-type]
        if again:
            outcomes = [step.output for step in self.tables.recorded.values() if "message" not in step.output]
            numbers = [number for outcome in outcomes for number in numbers_in(outcome)]
            publisher.add(self.tables.events.read(RUN, RecordCodec(None)), numbers)
        life = Life(publisher, desk, seen=self.loyal[-1].seq if self.loyal else 0)
        self._ask(life)
        return life

    def _ask(self, life: Life) -> None:
        """Go on to a turn's model call, or through all that is recorded of it."""
        while life.turn < len(self.plans):
            number, agent = self.tables.number(life.turn), self.agents[life.turn]
            life.publisher.asked(life.turn, agent)
            life.asking = number not in self.tables.recorded
            if life.asking:
                life.content = ""
                life.publisher.asking(agent, life.turn)
                return
            life.publisher.replied(self.tables.recorded[number].output)
            life.open = list(range(self.plans[life.turn].calls))
            made = [index for index in life.open if number + 1 + index in self.tables.recorded]
            if self.plans[life.turn].together and len(made) < len(life.open):
                return  # They come from their records while others are made: see `do_finish`.
            for index in made:
                life.open.remove(index)
                life.publisher.returned(index, self.tables.recorded[number + 1 + index].output)
            if life.open:
                return
            life.turn += 1

    def _next_life(self, *, ghost: bool) -> None:
        self.ghost = self.live if ghost else None
        self.live = self._born(again=True)

    # Deeds

    def do(self, deed: str, which: int = 0) -> None:
        """Do one thing, and let every reader read that reads at once."""
        getattr(self, f"do_{deed}")(which)
        self.read_live()

    @property
    def done(self) -> bool:
        return self.live.turn == len(self.plans)

    def do_piece(self, which: int) -> None:
        for life in self._streaming(which):
            text = f"{next(self.numbers)} "
            life.content += text
            life.publisher.delta({"content": text})

    def do_reset(self, which: int) -> None:
        for life in self._streaming(which):
            life.content = ""
            life.publisher.reset()

    def _streaming(self, which: int) -> list[Life]:
        life = self.ghost if which % 4 == 3 else self.live
        return [life] if life is not None and life.asking else []

    def do_begin(self, which: int) -> None:
        life = self.ghost if which % 4 == 3 and self.ghost else self.live
        if life.desk.waiting:
            life.desk.begin(life.publisher)

    def do_end(self, which: int) -> None:
        for life in filter(None, (self.live, self.ghost)):
            life.desk.end(("stored", "stored", "lost", "unsure")[which % 4])

    def do_write(self, which: int) -> None:
        self.do_begin(which)
        self.do_end(which % 2)

    def do_crash(self, which: int) -> None:
        """Die; or (odd numbers) lose the run to another process, and not know it."""
        if not self.done:
            self._next_life(ghost=which % 2 == 1)

    def do_reply(self, which: int) -> None:
        """Record the reply; or (every fifth number) die just before."""
        life = self.live
        if self.done or not life.asking:
            return
        plan, turn = self.plans[life.turn], life.turn
        content = life.content
        said = life.publisher.said(content)
        if which % 5 == 4:
            self._next_life(ghost=False)
            return
        calls = [Call(index, f"c{turn}.{index}", "tool", "{}", "step") for index in range(plan.calls)]
        made = [
            {"id": call.id, "type": "function", "function": {"name": call.tool, "arguments": call.arguments}}
            for call in calls
        ]
        message = {"role": "assistant", "content": content or None, "tool_calls": made or None}
        reply = Reply(message, calls, None, plan.together)
        at = next(self.numbers)
        record = runs.reply_record(reply, model="m", version="v", at=at, shown=said)
        self.tables.record(self.tables.number(turn), f"model:{self.agents[turn]}", record)
        self.texts.append(content)
        self.agents.append(f"A{turn + 1}" if plan.hands is not None and plan.hands < plan.calls else self.agents[turn])
        life.publisher.replied(record)
        life.asking, life.open = False, list(range(plan.calls))
        self._go_on()

    def _go_on(self) -> None:
        if not self.live.open and not self.live.failed:
            self.live.turn += 1
            self._ask(self.live)

    def _call(self, which: int) -> int | None:
        life = self.live
        if self.done or life.asking or not life.open:
            return None
        return life.open[which % len(life.open)] if self.plans[life.turn].together else life.open[0]

    def do_emit(self, which: int) -> None:
        index, life = self._call(which), self.live
        if index is not None and self.tables.number(life.turn) + 1 + index not in self.tables.recorded:
            about = {"turn": life.turn, "tool": "tool", "call_id": f"c{life.turn}.{index}"}
            life.publisher.progress(f"{life.turn}.{index}", {**about, "attempt": 1, "progress": next(self.numbers)})

    def do_late(self, which: int) -> None:
        """Emit in a call that has ended, as a thread or task that a tool left behind may."""
        life = self.ghost if which % 4 == 3 and self.ghost else self.live
        if life.finished:
            turn, index = life.finished[which % len(life.finished)]
            about = {"turn": turn, "tool": "tool", "call_id": f"c{turn}.{index}"}
            life.publisher.progress(f"{turn}.{index}", {**about, "attempt": 1, "progress": "late"})

    def do_finish(self, which: int) -> None:
        """Record what came of a call; or (every fifth number) die just before."""
        index, life = self._call(which), self.live
        if index is None:
            return
        plan = self.plans[life.turn]
        if (step := self.tables.recorded.get(self.tables.number(life.turn) + 1 + index)) is not None:
            life.publisher.returned(index, step.output)
            self._returned(index)
            return
        agent = f"A{life.turn + 1}" if index == plan.hands else None
        key = f"{life.turn}.{index}"
        life.finished.append((life.turn, index))
        record = life.publisher.stamped(key, runs.outcome_record(Outcome(f"result {key}", agent)))
        if which % 5 == 4:
            self._next_life(ghost=False)
            return
        self.tables.record(self.tables.number(life.turn) + 1 + index, "tool:tool", record)
        life.publisher.returned(index, record)
        self._returned(index)

    def _returned(self, index: int) -> None:
        life = self.live
        life.open.remove(index)
        if life.failed and not life.open:
            self._failed()
        self._go_on()

    def do_fail(self, which: int) -> None:
        """Fail a call, while the database can be written or cannot; once its siblings have ended, so does the run."""
        life = self.live
        if self.done or life.failed:
            return
        index = self._call(which)
        if index is not None and self.tables.number(life.turn) + 1 + index in self.tables.recorded:
            return
        life.failed, life.trouble = True, ("stored", "lost", "unsure")[which % 3]
        if index is not None and self.plans[life.turn].together:
            life.open.remove(index)
        else:
            life.open = []
        if not life.open:
            self._failed()

    def _failed(self) -> None:
        """The run ends with a failure; readers read, its process goes on for a while, and it is resumed."""
        self.live.desk.next = self.live.trouble
        self.live.publisher.settle()
        self.live.desk.next = "stored"
        self.tables.status, self.tables.completed_at = "ERROR", next(self.numbers)
        self._ended_and_resumed()

    def do_cancel(self, which: int) -> None:
        """Cancel the run while a call is under way, which goes on for a while; and resume it."""
        if not self.done:
            self.tables.status, self.tables.completed_at, self.tables.owner = "CANCELLED", next(self.numbers), None
            if which % 2 and self.live.asking:
                self.do_piece(0)
            self._ended_and_resumed()

    def _ended_and_resumed(self) -> None:
        self.read_live()
        self.check_end(self.fresh())
        self.do_read(0)
        if self.live.desk.waiting:  # What was not written before is tried again.
            self.live.desk.flush([self.live.publisher])
        self.check_end(self.fresh())
        self.loyal += [event for event in self.fresh() if event.seq > (self.loyal[-1].seq if self.loyal else 0)]
        for _ in range(2):  # Of two who resume it at once, the second finds what the first has stored.
            ends = [event for event in self.fresh() if event.type in {"run.failed", "run.cancelled"}]
            RecordedEvents(self.tables, RUN).keep_end()  # type: ignore[arg-type]
            assert [event for event in self.fresh() if event.type in {"run.failed", "run.cancelled"}] == ends
        self.steady, self.steadily = RecordedEvents(self.tables, RUN), []  # type: ignore[arg-type]
        self._next_life(ghost=True)

    # Readers

    def read_live(self) -> None:
        """Let the readers in the executing processes read."""
        for life in filter(None, (self.live, self.ghost)):
            for event in life.publisher.since(life.seen) or ():
                assert event.seq == life.seen + 1, f"a gap before {event}"
                life.seen = event.seq
                self._met(event, live=True)
                if life is self.live:
                    self.loyal.append(event)

    def do_read(self, which: int) -> None:
        """Let the reader of the database read."""
        self.steadily += self.steady.read()
        assert [event.seq for event in self.steadily] == list(range(1, len(self.steadily) + 1))
        for event in self.steadily:
            self._met(event, live=False)

    def fresh(self) -> list[Event]:
        """Give what a reader gets who begins now."""
        events = RecordedEvents(self.tables, RUN).read()  # type: ignore[arg-type]
        assert [event.seq for event in events] == list(range(1, len(events) + 1)), "not without a gap"
        for event in events:
            self._met(event, live=False)
        return events

    def _met(self, event: Event, *, live: bool) -> None:
        before = self.known.get(event.seq)
        shown = self.shown.get(event.seq)
        if live:
            void = before is not None and before.type == "text.reset" and event.type.startswith("text.")
            assert before in (None, event) or void, f"the database told {before}, a process told {event}"
            assert shown in (None, event) or shown.type.startswith("text."), f"one life told {shown}, another {event}"
            self.shown[event.seq] = event
        else:
            assert before in (None, event), f"one reader got {before}, another {event}"
            # A reset that was lost too is told with another time.
            void = shown is not None and shown.type in ("text.delta", "text.reset") and event.type == "text.reset"
            assert shown in (None, event) or void, f"a process told {shown}, the database {event}"
            self.known[event.seq] = event

    def check_end(self, events: list[Event]) -> None:
        """Check that the events end with the run's end."""
        ends = {"ERROR": "run.failed", "CANCELLED": "run.cancelled", "SUCCESS": "run.finished"}
        assert events[-1].type == ends[self.tables.status], [event.type for event in events]

    def finish(self) -> None:
        """Bring the run to its end, and check what every reader has got of it."""
        self.live.desk.end("stored")
        while not self.done:
            self.do("piece", 0)
            self.do("reply", 0)
            while not self.done and not self.live.asking:
                self.do("finish", 0)
        self.tables.status, self.tables.completed_at = "SUCCESS", next(self.numbers)
        events = self.fresh()
        self.check_end(events)
        self.do_read(0)
        assert self.steadily == events
        self.loyal += events[self.loyal[-1].seq :]
        assert [event.seq for event in self.loyal] == list(range(1, len(events) + 1))
        for told in (events, self.loyal):
            self._check_told(told)

    def _check_told(self, events: list[Event]) -> None:
        assert texts_of(events) == {turn: text for turn, text in enumerate(self.texts) if text}
        for kind in ("tool.started", "tool.finished"):
            told = [event.data["call_id"] for event in events if event.type == kind]
            calls = [f"c{turn}.{index}" for turn, plan in enumerate(self.plans) for index in range(plan.calls)]
            assert sorted(told) == calls, kind
        started = [event.data["turn"] for event in events if event.type == "turn.started"]
        assert started == list(range(len(self.plans)))


def texts_of(events: list[Event]) -> dict[int, str]:
    """Give the text of each turn that has one, put together from its pieces as a reader does it."""
    texts: dict[int, str] = {}
    for event in events:
        if event.type == "text.reset":
            texts[event.data["turn"]] = ""
        elif event.type == "text.delta":
            texts[event.data["turn"]] = texts.get(event.data["turn"], "") + event.data["text"]
    return {turn: text for turn, text in texts.items() if text}
