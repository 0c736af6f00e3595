"""Providers: model clients built from others, or for an API other than chat completions.

A provider is a client (`chat.completions.create`), so each can be passed as `client=`, and to each other:

    DurableSwarm(Routes({"gpt-*": Fallback(Responses(), mirror), "claude-*": AnyLLM(provider="anthropic")}))
"""

from durable_swarm.providers.any_llm import AnyLLM
from durable_swarm.providers.fallback import Fallback
from durable_swarm.providers.responses import Responses
from durable_swarm.providers.routes import Routes

__all__ = ["AnyLLM", "Fallback", "Responses", "Routes"]
