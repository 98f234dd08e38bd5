"""The state of a model agent's session: small, and of the same size however long the session runs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from agentq.policies.session_breaker import Window


class Prompt(BaseModel):
    """The input of a model agent that declares no other: what the user wants."""

    prompt: str = Field(min_length=1)


class Call(BaseModel):
    """A tool call that the model asked for; its arguments have been checked."""

    id: str
    tool: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Spent(BaseModel):
    """What the session has used, failed attempts of its model calls included as calls."""

    steps: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0


class Conversation(BaseModel):
    """Where the session stands. Its messages are rows of their own, appended and never copied."""

    input: Any = None
    began: float = 0.0
    model: int = 0
    repairs: int = 0
    repairing: bool = False  # nothing of the latest answer could be used: the next request mends it
    squeezes: int = 0
    compacted: int = 0
    grants: int = 0
    resumed: int = 0
    calls: list[str] = Field(default_factory=list)
    spent: Spent = Field(default_factory=Spent)
    window: Window = Field(default_factory=Window)
