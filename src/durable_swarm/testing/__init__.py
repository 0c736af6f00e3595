"""Tools to test agent programs without a model: a scripted client, and the checks a strict provider makes.

`ScriptedModel(["Hello"])` answers with the replies of a list, `ScriptedModel(lambda request: ...)` with what a callable
makes of each request; hand it to `DurableSwarm(client)` or `Swarm(client)`. `call` writes a tool call in a reply.
Each request is checked by `check_request`, which raises `ProviderError` for what a strict provider would refuse; raise
that error from a script, with a status of your choice, to see a program meet a provider's failure.
"""

from durable_swarm.testing.scripted import ScriptedModel, call
from durable_swarm.testing.strict import ProviderError, check_request

__all__ = ["ProviderError", "ScriptedModel", "call", "check_request"]
