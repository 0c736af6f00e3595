"""Tools to test agent programs without a model: a scripted client, and the checks a strict provider makes."""

from durable_swarm.testing.scripted import ScriptedModel, call
from durable_swarm.testing.strict import ProviderError, check_request

__all__ = ["ProviderError", "ScriptedModel", "call", "check_request"]
