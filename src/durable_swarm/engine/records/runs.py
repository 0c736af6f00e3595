"""The wire format: every name and every record that a run writes to the database.

A record is a JSON object with a version `v`. Later versions of this package must read what is written here, so names
and keys are only added, never changed; `docs/code-changes.md` explains them to users.

    workflow  durable_swarm.run       one run, id = run_id; its input is the start record
    workflow  durable_swarm.tool      one undecorated tool call, id = <run_id>/<turn>.<index>
    workflow  durable_swarm.program   a script under `durable-swarm run`, never executed: which start it is in
    step      model:<agent>           one model call: reply, plans, verdict, version, tokens
    step      guardrail:<name>        one guardrail: its verdict
    step      tool:<name>             one call of a `@step` tool: its outcome
    step      <name>                  one call of a `@step` function inside a tool: its value
    step      durable_swarm.begun     recorded just before a tool with effect="once" is called
    table     durable_swarm_requests  requests of runs, and the decisions (`engine.storage.requests`)
    table     durable_swarm_ledger    what runs have spent beyond their records (`engine.storage.ledger`)
    table     durable_swarm_children  child runs, by the run that started them (`engine.storage.family`)
    table     durable_swarm_sessions  sessions; `durable_swarm_session_runs` has their runs (`engine.storage.sessions`)
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from types import NoneType
from typing import get_args

from durable_swarm import codec
from durable_swarm.engine.records import names
from durable_swarm.engine.records.base import Record, _checked, _each, _named, _slim, _values, reading
from durable_swarm.engine.records.names import VERSION
from durable_swarm.engine.records.owners import BELONGS_TO
from durable_swarm.limits import Limits, limits_record, read_limits
from durable_swarm.loop import Call, Ending, Outcome, Reply, Start, Turn, TurnOverride, Verdict, known
from durable_swarm.types import Block, EndedBy, Message, Usage


def start_record(
    start: Start,
    *,
    swarm: str,
    at: float,
    debug: bool,
    stream: bool,
    whole: bool = False,
    parent: str | None = None,
    root: str | None = None,
    patience: float | None = None,
    limits: Limits | None = None,
    accounts: Sequence[tuple[str, str]] = (),
    belongs_to: str | None = None,
) -> Record:
    """Return the input of a run. Raises `NotSerializable` with the path of the value that has no JSON form.

    `whole` says that a streamed reply is stored only when it is complete. A child run has the ids of its `parent` and
    of the top run of its family (`root`); other runs have neither. `patience` is how many seconds the run waits for a
    provider that is away, if that was given. `accounts` are those of the ledger from which the run spends beside its
    own. `belongs_to` is the name of its person (`engine.records.owners`).
    """
    record = _slim(
        agent=start.agent,
        swarm=swarm,
        at=at,
        model_override=start.model_override,
        max_turns=start.max_turns,
        debug=debug or None,
        stream=stream or None,
        whole=(stream and whole) or None,
        parent=parent,
        root=root,
        patience=None if patience is None else min(patience, LONGEST_PATIENCE),
        limits=limits_record(limits),
        accounts=[list(account) for account in accounts],
        **{BELONGS_TO: belongs_to},
    )
    record["messages"] = codec.encode(start.messages, "messages")
    record["context"] = context_record(start.context)
    if not start.execute_tools:
        record["execute_tools"] = False
    return record


def context_record(context: dict[str, object]) -> Record:
    """Return context variables as they are stored. Raises `NotSerializable` with the path of the value."""
    return {key: codec.encode(value, f"context_variables[{key!r}]") for key, value in _named(context).items()}


def read_start(record: Record, before: Sequence[Message] = ()) -> Start:
    """Return the loop's start from a run's input; in a session, `before` are the messages that precede its own."""
    with reading("the input of a run"):
        return Start(
            agent=_checked(record["agent"], str),
            messages=[*before, *_each(codec.decode(record["messages"]), dict)],
            context=_values(record["context"]),
            model_override=_checked(record.get("model_override"), str, NoneType),
            max_turns=_checked(record.get("max_turns"), int, float, NoneType),
            execute_tools=_checked(record.get("execute_tools", True), bool),
            kept=[read_turn(turn) for turn in record.get("kept", [])],
            detours={int(turn): _read_detour(detour) for turn, detour in record.get("detours", {}).items()},
        )


def read_limits_of(record: Record) -> tuple[Limits | None, list[tuple[str, str]]]:
    """Return the limits in a run's input, and the accounts from which it spends beside its own, as (kind, id)."""
    with reading("the limits of a run"):
        accounts = [(str(kind), str(key)) for kind, key in _each(record.get("accounts", []), list)]
        return read_limits(record.get("limits")), accounts


def root_of(run_id: str, record: Record) -> str:
    """Return the id of the top run of a run's family, from the run's input: its own if no run started it.

    Records of version 0.1.0 do not say it; the id of a child run does.
    """
    with reading("the input of a run"):
        return str(_checked(record.get("root"), str, NoneType) or names.root_in(run_id))


_OWN = ("swarm", "at", "forked", "kept", "detours", "parent", "root", "accounts")
"""The keys of a run's input that a fork of it does not take over."""


LONGEST_PATIENCE = 1e9
"""Seconds; a longer wait never ends. JSON has no infinite numbers."""


def read_patience(record: Record, default: float) -> float:
    """Return how many seconds a run waits for a provider that is away; `default` if its start did not say so."""
    with reading("the input of a run"):
        return float(_checked(record.get("patience", default), int, float))


def fork_record(start: Record, kept: list[Record], detours: dict[str, Record], **fields: object) -> Record:
    """Return the input of a fork, made from the source run's input and its kept turns."""
    same = {key: value for key, value in start.items() if key not in _OWN}
    return {**same, **_slim(kept=kept, detours=detours, **fields)}


def without_numbers(record: Record) -> Record:
    """Return the record of a reply or an outcome without its event numbers and limit, which belong to its run."""
    return {key: value for key, value in record.items() if key not in ("shown", "seq", "progress", "limit", "worked")}


def turn_record(agent: str, reply: Record, outcomes: list[Record | None]) -> Record:
    """Return the record of a turn that a fork keeps; None stands for a call that was answered without being made."""
    made = [None if outcome is None else without_numbers(outcome) for outcome in outcomes]
    return {"agent": agent, "reply": without_numbers(reply), "outcomes": made}


def read_turn(record: Record) -> Turn:
    """Return a kept turn from its record."""
    with reading("a kept turn"):
        reply = _reply(record["reply"])
        return Turn(reply, outcomes_of(reply.calls, record["outcomes"]))


def outcomes_of(calls: list[Call], made: list[Record | None]) -> list[Outcome]:
    """Return the outcome of each call of a finished turn, from the records of the calls that were made."""
    outcomes: list[Outcome] = []
    for call, record in zip(calls, made, strict=True):
        outcomes.append(known(call, outcomes) or read_outcome(record or {}))
    return outcomes


def detour_record(agent: str | None, messages: list[Record]) -> Record:
    """Return the record of a fork's change before a turn; `messages` are encoded already."""
    return _slim(agent=agent, messages=messages)


def _read_detour(record: Record) -> TurnOverride:
    messages = _each(codec.decode(record.get("messages", [])), dict)
    return TurnOverride(_checked(record.get("agent"), str, NoneType), messages)


BY_TOOL = "tool"
"""The `form` of a reply whose answer was asked for by a final tool."""


def reply_record(
    reply: Reply,
    *,
    model: str,
    version: str,
    at: int,
    shown: Record | None,
    by_tool: bool = False,
    cost: Decimal | None = None,
    worked: float | None = None,
) -> Record:
    """Return the record of one model call. It contains the reply, never the history that was sent.

    `at` is the time in milliseconds since 1970; `shown` says in which pieces the end of the text arrived
    (`engine.history.projection`); `by_tool`, that the answer was asked for by a final tool. `cost` is in US dollars;
    `worked` are the seconds that the run has worked so far.
    """
    return _slim(
        message=codec.encode(
            {key: value for key, value in reply.message.items() if value is not None}, "the model's message"
        ),
        plan=[_plan_record(call) for call in reply.calls],
        together=reply.together or None,
        heard=codec.encode(reply.heard),
        finish=codec.encode(reply.finish),
        written=codec.encode(reply.written),
        verdict=_verdict_record(reply.verdict),
        input_guardrails=reply.input_guardrails,
        output_guardrails=reply.output_guardrails,
        form=BY_TOOL if by_tool else None,
        model=model,
        version=version,
        **usage_record(reply.usage),
        at=at,
        shown=shown,
        limit=reply.limit,
        cost=None if cost is None else str(cost),
        worked=None if worked is None else round(worked * 1000),
    )


def _verdict_record(verdict: Verdict | None) -> Record | None:
    """Return the judgement of an answer: `{"tell": text}`, or how the value is in its message."""
    if verdict is None:
        return None
    return {"tell": codec.encode(verdict.tell)} if verdict.tell else {"wrapped": verdict.wrapped}


def _read_verdict(record: Record | None) -> Verdict | None:
    if record is None:
        return None
    tell = _checked(codec.decode(record.get("tell", "")), str)
    return Verdict(tell, _checked(record.get("wrapped", False), bool))


def guard_record(block: Block | None) -> Record:
    """Return the record of a guardrail's verdict: it passed, or why it stops the run and with which answer."""
    if block is None:
        return _slim(passed=True)
    return _slim(passed=False, blocked=codec.encode(block.reason), answer=codec.encode(block.reply))


def read_guard(record: Record) -> Block | None:
    """Return a guardrail's verdict from its record."""
    with reading("a guardrail"):
        if _checked(record["passed"], bool):
            return None
        reply = _checked(codec.decode(record.get("answer")), str, NoneType)
        return Block(_checked(codec.decode(record.get("blocked", "")), str), reply)


_COUNTS = tuple(Usage.model_fields)
_TOTALS = 4
"""The number of counts stored in `usage`; counts added later are in `usage_details`, by name."""


def usage_record(usage: Usage | None) -> Record:
    """Return the tokens of a model call as fields of its record."""
    counts = [] if usage is None else list(usage.model_dump().items())
    details = {name: count for name, count in counts[_TOTALS:] if count}
    return {"usage": [count for _, count in counts[:_TOTALS]], "usage_details": details}


def read_usage(record: Record) -> Usage | None:
    """Return the tokens of a model call from its record."""
    counts = _each(record.get("usage") or [], int)
    if not counts:
        return None
    details = _checked(record.get("usage_details", {}), dict)
    known = {name: _checked(count, int) for name, count in details.items() if name in _COUNTS[_TOTALS:]}
    return Usage(**dict(zip(_COUNTS[:_TOTALS], counts, strict=True)), **known)


def _plan_record(call: Call) -> str | Record:
    """Return the plan of a call: one word where that is enough."""
    if call.plan == "tell":
        return {"tell": codec.encode(call.text)}
    if call.plan == "same":
        return {"make": "same", "twin": call.twin}
    said = {"effect": call.effect, "approval": call.approval, "why": codec.encode(call.why)}
    usual = {"effect": "idempotent", "approval": False, "why": ""}
    more = {key: value for key, value in said.items() if value != usual[key]}
    return {"make": call.plan, **more} if more else call.plan


def read_reply(record: Record) -> Reply:
    """Return the reply and its plans from the record of a model call."""
    with reading("a model call"):
        return _reply(record)


def _reply(record: Record) -> Reply:
    message = {"role": "assistant", "content": None, "tool_calls": None, **_values(record["message"])}
    made = _each(message["tool_calls"] or [], dict)
    calls = [
        _read_call(index, call, plan)
        for index, (call, plan) in enumerate(zip(made, record.get("plan", []), strict=True))
    ]
    usage = read_usage(record)
    heard = _each(codec.decode(record.get("heard", [])), dict)
    finish = _checked(codec.decode(record.get("finish", "")), str)
    written = _checked(codec.decode(record.get("written", "")), str)
    together, verdict = _checked(record.get("together", False), bool), _read_verdict(record.get("verdict"))
    limit = _checked(record.get("limit", ""), str)
    guards = [_each(record.get(f"{kind}_guardrails", []), str) for kind in ("input", "output")]
    return Reply(message, calls, usage, together, heard, finish, written, verdict, limit, *guards)


def _read_call(index: int, call: Record, plan: object) -> Call:
    made: Record = plan if isinstance(plan, dict) else {"make": plan}
    kind, text = ("tell", codec.decode(made["tell"])) if "tell" in made else (made["make"], "")
    effect, why = made.get("effect", "idempotent"), codec.decode(made.get("why", ""))
    function = call["function"]
    _each([call["id"], function["name"], function["arguments"], kind, text, effect, why], str)
    approval = _checked(made.get("approval", False), bool)
    twin = _checked(made.get("twin"), int, NoneType)
    if twin is not None and not 0 <= twin < index:
        raise ValueError(f"call {index} is the twin of {twin}")
    return Call(index, call["id"], function["name"], function["arguments"], kind, text, effect, approval, why, twin)


def end_record(ending: Ending) -> Record:
    """Return the output of a run's workflow at its end. The run's messages are in the records of its steps."""
    return {"v": VERSION, "agent": ending.agent, "ended_by": ending.ended_by}


def read_end(record: object) -> EndedBy | None:
    """Return what ended a run, from its output; None where that is not recorded, as in runs of earlier versions."""
    noted = record.get("ended_by") if isinstance(record, dict) else None
    return next((known for known in get_args(EndedBy) if known == noted), None)


def outcome_record(outcome: Outcome, worked: float | None = None) -> Record:
    """Return the record of one tool call, without the event fields. Raises `NotSerializable`.

    `worked` are the seconds that the run has worked so far.
    """
    return _slim(
        text=codec.encode(codec.mended_text(outcome.text)),
        agent=outcome.agent,
        updates=codec.encode(_named(outcome.updates), "the context_variables of the tool's Result"),
        changed={
            key: codec.encode(value, f"context_variables[{key!r}]") for key, value in _named(outcome.changed).items()
        },
        removed=outcome.removed,
        limit=outcome.limit,
        worked=None if worked is None else round(worked * 1000),
    )


def seconds_worked(record: Record) -> float:
    """Return the seconds that the run had worked when a reply or an outcome was recorded, 0 if that is not known."""
    worked: int = _checked(record.get("worked", 0), int)
    return worked / 1000


def read_outcome(record: Record) -> Outcome:
    """Return the outcome of a tool call from its record."""
    with reading("a tool call"):
        return Outcome(
            text=_checked(codec.decode(record.get("text", "")), str),
            agent=_checked(record.get("agent"), str, NoneType),
            updates=_values(record.get("updates", {})),
            changed=_values(record.get("changed", {})),
            removed=_each(record.get("removed", []), str),
            limit=_checked(record.get("limit", ""), str),
        )
