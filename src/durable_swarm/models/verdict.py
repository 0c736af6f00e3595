"""The judgement of an answer by its agent's output type, made once, when the reply arrives, and recorded with it."""

from __future__ import annotations

from durable_swarm.errors import InvalidOutput
from durable_swarm.loop import CUT, Reply, Verdict
from durable_swarm.schema.arguments import decoded
from durable_swarm.schema.output import VALUE, BadOutput, output_type_of, read_type
from durable_swarm.types import AgentLike, Message


def judge(agent: AgentLike, message: Message, finish: str, misfits: int) -> Verdict | None:
    """Return the judgement of a reply; None for one that is not an answer, or of an agent that answers in text.

    `misfits` answers before it did not fit. Raises `InvalidOutput` if the agent's `output_retries` are used up, and
    what a validator of the type raises beside ValueError and AssertionError.
    """
    output = output_type_of(agent)
    if output is None or message.get("tool_calls") or finish in CUT:
        return None
    text, refusal = text_of(message), message.get("refusal")
    try:
        if refusal and not text:
            text = str(refusal)
            raise BadOutput([f"the model refused to answer: {text}"])
        return Verdict(wrapped=output.read(text)[1])
    except BadOutput as error:
        if misfits < getattr(agent, "output_retries", 2):
            return Verdict(tell=output.correction(error.problems))
        raise InvalidOutput(
            f"{misfits + 1} answers of agent {agent.name!r} did not fit its output_type; the last one: {error}",
            text=text,
            problems=error.problems,
            tries=misfits + 1,
        ) from None


def text_of(message: Message) -> str:
    """Return the text of a reply, also where it arrived in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content or ""


def output_of(message: Message, verdict: Verdict | None, given: object) -> object:
    """Return the value of an answer that was judged to fit; without a verdict, None.

    It is a value of the type `given`; plain data if that is None, or if the type has changed and the answer does not
    fit it any more.
    """
    if verdict is None or verdict.tell:
        return None
    text = text_of(message)
    try:
        data = decoded(text)
    except (ValueError, RecursionError):  # A codec of the program has masked a part of it.
        return text
    data = data.get(VALUE) if verdict.wrapped and isinstance(data, dict) else data
    try:
        return data if given is None else read_type(given).value(data)
    except Exception:  # Validators may raise anything, and were satisfied when the answer arrived.
        return data


def judged_output(reply: Reply, agent: AgentLike) -> object:
    """Return what an output guardrail judges of a reply: the value, or the text if the agent has no output type."""
    if reply.verdict is None:
        return text_of(reply.message)
    return output_of(reply.message, reply.verdict, getattr(agent, "output_type", None))


def read_output(message: Message, verdict: Verdict | None, given: object) -> object:
    """Return an answer as a value of the type `given`, whatever the agent's own type was. Raises `InvalidOutput`."""
    output, text = read_type(given), text_of(message)
    try:
        return output.read(text)[0] if verdict is None else output.value(output_of(message, verdict, None))
    except BadOutput as error:
        raise InvalidOutput(
            f"the answer does not fit {given!r:.200}: {error}", text=text, problems=error.problems
        ) from None
