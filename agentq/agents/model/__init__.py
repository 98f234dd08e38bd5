"""Model agents: a model with tools on agentq's steps; needs the extra `model`."""

from __future__ import annotations

from agentq.errors import ConfigError

try:
    import pydantic_ai
except ModuleNotFoundError as error:
    if error.name != "pydantic_ai":
        raise
    raise ConfigError("model agents need Pydantic AI: install agentq[model]") from error

from agentq.agents.model.agent import ModelAgent
from agentq.agents.model.compaction import Compaction
from agentq.agents.model.history import drop_old_tool_results, sliding_window

__all__ = ["Compaction", "ModelAgent", "drop_old_tool_results", "pydantic_ai", "sliding_window"]
