"""Every name that is sent: OpenTelemetry's conventions for generative AI, which still move, and our own."""

from __future__ import annotations

SCOPE = "durable_swarm"
"""The instrumentation scope."""

# Operations, each also the first word of its span's name.
RUN = "invoke_workflow"
AGENT = "invoke_agent"
CHAT = "chat"
TOOL = "execute_tool"
WAIT = "durable_swarm.wait"
STEP = "durable_swarm.step"

# The conventions' attributes.
OPERATION = "gen_ai.operation.name"
CONVERSATION = "gen_ai.conversation.id"
AGENT_NAME = "gen_ai.agent.name"
REQUEST_MODEL = "gen_ai.request.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TOOL_NAME = "gen_ai.tool.name"
TOOL_CALL = "gen_ai.tool.call.id"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE = "gen_ai.token.type"
ERROR = "error.type"

# Their content, only with `content=True`.
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
ARGUMENTS = "gen_ai.tool.call.arguments"
RESULT = "gen_ai.tool.call.result"

# Our own attributes.
RUN_ID = "durable_swarm.run.id"
TURN = "durable_swarm.turn"
EFFECT = "durable_swarm.effect"
LIVES = "durable_swarm.lives"
ENDED_BY = "durable_swarm.ended_by"
REQUEST_ID = "durable_swarm.request.id"
REQUEST_KIND = "durable_swarm.request.kind"

# Metrics, of what was executed.
DURATION = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"
