"""Agents of OpenAI's Agents SDK as agents of this package: each of their model calls and tool calls is a checkpoint.

Needs the extra `openai-agents` (`pip install 'durable-swarm[openai-agents]'`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from durable_swarm.awaitables import settled
from durable_swarm.errors import ConfigurationError
from durable_swarm.tools.context import current_call
from durable_swarm.tools.decorators import tool_from_schema
from durable_swarm.types import Agent, Block, note_settings, settings_of

if TYPE_CHECKING:
    import agents as sdk

    SdkAgent = sdk.Agent[Any]
    Handoff = sdk.Handoff[Any, SdkAgent]
    InputGuardrail = sdk.InputGuardrail[Any]
    OutputGuardrail = sdk.OutputGuardrail[Any]

__all__ = ["adopt"]

SETTINGS = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "max_tokens")
"""The model settings that are passed on."""


def adopt(agent: sdk.Agent[Any], *, context: object = None) -> Agent:
    """Return an agent of OpenAI's Agents SDK as an agent for `Swarm` and `DurableSwarm`.

    Its instructions, model name, function tools with their schema and approvals, handoffs (the agents behind them are
    adopted, too), output type and guardrails are kept. `context` is the object that tools, instructions and guardrails
    get as `RunContextWrapper.context`; by default that is the run's context variables, which survive a crash.

    Raises `ConfigurationError` for what cannot be made durable, naming it: hosted and custom tools, tools with
    guardrails of their own, agents as tools, MCP servers (use `mcp_tools`), hooks, a model that is an object, filters
    of handoffs.
    """
    try:
        import agents
    except ImportError as error:
        raise ConfigurationError(
            f"adopt needs the extra: pip install 'durable-swarm[openai-agents]' ({error})"
        ) from error
    if not isinstance(agent, agents.Agent):
        raise ConfigurationError(f"adopt takes an Agent of the package `agents`, not a {type(agent).__name__}")
    return _Adoption(context).of(agent)


class _Adoption:
    """One call of `adopt`: the agents of a circle of handoffs know each other."""

    def __init__(self, context: object) -> None:
        self._context = context
        self._made: dict[int, Agent] = {}

    def of(self, agent: SdkAgent) -> Agent:
        """Return the agent, made once."""
        if id(agent) not in self._made:
            _refuse(agent)
            settings = agent.model_settings
            more: dict[str, Any] = {} if agent.model is None else {"model": agent.model}
            made = Agent(
                name=agent.name,
                instructions=self._instructions(agent),
                tool_choice=settings.tool_choice,
                parallel_tool_calls=settings.parallel_tool_calls is not False,
                model_settings={
                    name: value for name in SETTINGS if (value := getattr(settings, name, None)) is not None
                },
                output_type=_type_of(agent.output_type),
                **more,
            )
            self._made[id(agent)] = made
            made.functions = [*self._tools(agent), *map(self._handoff, agent.handoffs)]
            made.input_guardrails = [self._input_guardrail(agent, one) for one in agent.input_guardrails]
            made.output_guardrails = [self._output_guardrail(agent, one) for one in agent.output_guardrails]
        return self._made[id(agent)]

    def _wrapped(self, variables: Mapping[str, object]) -> sdk.RunContextWrapper[Any]:
        from agents import RunContextWrapper

        return RunContextWrapper(context=self._given(variables))

    def _given(self, variables: Mapping[str, object]) -> object:
        return variables if self._context is None else self._context

    def _instructions(self, agent: SdkAgent) -> str | Callable[..., object]:
        given = agent.instructions
        if given is None or isinstance(given, str):
            return given or ""

        async def instructions(context_variables: dict[str, object]) -> str:
            return str(await settled(given(self._wrapped(context_variables), agent)))

        return instructions

    # Tools

    def _tools(self, agent: SdkAgent) -> list[Callable[..., object]]:
        from agents import FunctionTool

        kept = [tool for tool in agent.tools if isinstance(tool, FunctionTool) and tool.is_enabled is not False]
        return [self._tool(agent, tool) for tool in kept]

    def _tool(self, agent: SdkAgent, tool: sdk.FunctionTool) -> Callable[..., object]:
        from agents.tool_context import ToolContext

        async def call(context_variables: dict[str, object], **arguments: object) -> str:
            said = json.dumps(arguments)
            here: ToolContext[Any] = ToolContext(
                self._given(context_variables), tool_name=tool.name, tool_call_id=current_call().call_id,
                tool_arguments=said, agent=agent,
            )  # fmt: skip
            return str(await tool.on_invoke_tool(here, said))

        approval: Any = tool.needs_approval
        if callable(approval):
            asked = approval

            async def approval(**arguments: object) -> bool:
                return bool(await settled(asked(self._wrapped({}), arguments, "")))

        made = tool_from_schema(tool.name, tool.description, tool.params_json_schema, call, approval=approval)
        note_settings(made, dataclasses.replace(settings_of(made), timeout=tool.timeout_seconds))
        return made

    def _handoff(self, given: SdkAgent | Handoff) -> Callable[..., object]:
        from agents import Agent as TheirAgent
        from agents import handoff

        target: Handoff = handoff(given) if isinstance(given, TheirAgent) else given
        if target.input_filter is not None or callable(target.is_enabled):
            raise ConfigurationError(
                f"handoff {target.tool_name!r} has a filter or a condition, which cannot be adopted"
            )

        async def transfer(context_variables: dict[str, object], **arguments: object) -> Agent:
            said = json.dumps(arguments) if target.input_json_schema else ""
            return self.of(await target.on_invoke_handoff(self._wrapped(context_variables), said))

        schema = target.input_json_schema or {"type": "object", "properties": {}}
        self._behind(target)
        return tool_from_schema(target.tool_name, target.tool_description, schema, transfer)

    def _behind(self, target: Handoff) -> None:
        """Adopt the agent of a handoff now: after a crash it is found by its name."""
        reference = getattr(target, "_agent_ref", None)
        agent = None if reference is None else reference()
        if agent is not None:
            self.of(agent)

    # Guardrails

    def _input_guardrail(self, agent: SdkAgent, guardrail: InputGuardrail) -> Callable[..., object]:
        async def check(messages: list[Any], context_variables: dict[str, object]) -> Block | None:
            said = guardrail.guardrail_function(self._wrapped(context_variables), agent, messages)
            return _verdict(guardrail, await said if isinstance(said, Awaitable) else said)

        check.__name__ = guardrail.get_name()
        return check

    def _output_guardrail(self, agent: SdkAgent, guardrail: OutputGuardrail) -> Callable[..., object]:
        async def check(output: object, context_variables: dict[str, object]) -> Block | None:
            said = guardrail.guardrail_function(self._wrapped(context_variables), agent, output)
            return _verdict(guardrail, await said if isinstance(said, Awaitable) else said)

        check.__name__ = guardrail.get_name()
        return check


def _verdict(guardrail: InputGuardrail | OutputGuardrail, output: sdk.GuardrailFunctionOutput) -> Block | None:
    return Block(f"{guardrail.get_name()}: {output.output_info}") if output.tripwire_triggered else None


def _refuse(agent: SdkAgent) -> None:
    """Refuse what cannot be adopted. Raises `ConfigurationError`."""
    problems = [_problem_of_agent(agent), *map(_problem_of_tool, agent.tools)]
    if found := next(filter(None, problems), ""):
        raise ConfigurationError(f"agent {agent.name!r} cannot be adopted: it has {found}")


def _problem_of_agent(agent: SdkAgent) -> str:
    if agent.mcp_servers:
        return "MCP servers; give their tools by durable_swarm.mcp.mcp_tools"
    if agent.hooks is not None:
        return "hooks; read the run's events instead"
    if agent.prompt is not None:
        return "a prompt that the provider keeps; give instructions"
    if agent.tool_use_behavior != "run_llm_again":
        return f"tool_use_behavior={agent.tool_use_behavior!r}; only 'run_llm_again' can be adopted"
    if not isinstance(agent.model, str | None):
        return "a model that is an object; name the model, and give the client to DurableSwarm"
    return ""


def _type_of(given: object) -> Any:
    return getattr(given, "output_type", given)


def _problem_of_tool(tool: sdk.Tool) -> str:
    from agents import FunctionTool

    if not hasattr(tool, "on_invoke_tool"):
        return f"the hosted tool {type(tool).__name__}, which the provider executes"
    if not isinstance(tool, FunctionTool):
        return f"the tool {tool.name!r}, a {type(tool).__name__} without a JSON schema; make it a function tool"
    if tool.tool_input_guardrails or tool.tool_output_guardrails:
        return f"tool {tool.name!r} with guardrails of its own; check inside the tool"
    if getattr(tool, "_is_agent_tool", False):
        return f"the agent {tool.name!r} as a tool; adopt that agent, and give the tool by its as_tool()"
    return f"tool {tool.name!r} with a condition (is_enabled)" if callable(tool.is_enabled) else ""
