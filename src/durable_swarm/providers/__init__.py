"""Providers: model clients that are made of others, or that speak another API than chat completions.

A provider is a client (`chat.completions.create`), so each of these can be given as `client=`, and to each other:

    DurableSwarm(Routes({"gpt-*": Fallback(Responses(), mirror), "claude-*": AnyLLM(provider="anthropic")}))
"""

from durable_swarm.providers.any_llm import AnyLLM
from durable_swarm.providers.fallback import Fallback
from durable_swarm.providers.responses import Responses
from durable_swarm.providers.routes import Routes

__all__ = ["AnyLLM", "Fallback", "Responses", "Routes"]
