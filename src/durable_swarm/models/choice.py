"""The model of an agent, and the advice if the provider does not have it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from durable_swarm.types import Agent, AgentLike

BUILT_IN_MODEL = "gpt-4o"
"""The model of an agent that names none, if no setting names one."""

MODEL_VARIABLE = "DURABLE_SWARM_MODEL"


@dataclass(frozen=True)
class ModelChoice:
    """The model of an agent, and the advice if the provider does not have it."""

    name: str
    remedy: str


def choose_model(agent: AgentLike, override: str | None, default: str | None) -> ModelChoice:
    """Return the model to ask: the run's own, the agent's, the swarm's default, the environment's, or `gpt-4o`."""
    if override is not None:
        return ModelChoice(override, "it was given as model_override=; give the name of a model that the provider has")
    if names_model(agent):
        named = f"agent {agent.name!r} names it; make it with Agent(model=...) of a model that the provider has"
        return ModelChoice(agent.model, named)
    none = f"agent {agent.name!r} names no model"
    if default is not None:
        return ModelChoice(default, f"{none}, and it is the swarm's default_model=; set that to one the provider has")
    if model := os.environ.get(MODEL_VARIABLE):
        return ModelChoice(model, f"{none}, and ${MODEL_VARIABLE} says so; set that to one the provider has")
    remedy = f"{none}: set ${MODEL_VARIABLE}, DurableSwarm(default_model=...) or Agent(model=...) to one it has"
    return ModelChoice(agent.model, remedy)


def names_model(agent: AgentLike) -> bool:
    """Return True if an agent names its model: at construction, later, or in its class."""
    if not isinstance(agent, Agent):
        return True
    return "model" in agent.model_fields_set or type(agent).model_fields["model"].default != BUILT_IN_MODEL
