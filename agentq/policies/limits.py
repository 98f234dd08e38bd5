"""Limits: how much one session may use, asked before each call."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from agentq.agents.returns import Duration, seconds
from agentq.errors import ConfigError

OnReach = Literal["fail", "park", "ask"]

# An answer of fewer tokens is not worth its request.
_ANSWER_MIN_TOKENS = 16


@dataclass(frozen=True)
class Limits:
    """
    How much one session of a model agent may use, in all. None: no limit of that kind.

    Hard: asked before each call, with the request's estimated tokens and the most that may be answered.
    `on_reach`: the session ends failed (`fail`), waits paused until somebody resumes it, which grants
    the same once more (`park`), or asks (`ask`).
    """

    steps: int | None = None
    model_calls: int | None = 100
    tool_calls: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    tokens: int | None = None
    cost_usd: Decimal | float | str | None = None
    wall: Duration | None = None
    on_reach: OnReach = "fail"

    def __post_init__(self) -> None:
        for name in ("steps", "model_calls", "tool_calls", "input_tokens", "output_tokens", "tokens"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"the limit {name} is a whole number from 1, not {value!r}")
        if self.on_reach not in ("fail", "park", "ask"):
            raise ConfigError(f"on_reach is fail, park or ask, not {self.on_reach!r}")
        if self.wall is not None:
            seconds(self.wall)
        if self.cost_usd is not None and not self.cost_micros:
            raise ConfigError(f"the limit cost_usd is an amount above 0, not {self.cost_usd!r}")

    @property
    def cost_micros(self) -> int | None:
        """The limit of money, in micros of a US dollar."""
        if self.cost_usd is None:
            return None
        try:
            amount = Decimal(str(self.cost_usd))
            return int(amount * 1_000_000) if amount.is_finite() and amount > 0 else 0
        except InvalidOperation:
            return 0


@dataclass(frozen=True, slots=True)
class Used:
    """What a session has used so far."""

    steps: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_micros: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Room:
    """The call may go out, and its answer may have this many tokens."""

    max_tokens: int
    shrunk: bool


@dataclass(frozen=True, slots=True)
class Reached:
    """The call must not go out."""

    limit: str
    used: float
    allowed: float
    why: str = ""  # where that says more than the numbers

    def __str__(self) -> str:
        if self.why:
            return f"the session's {self.limit} does not reach: {self.why}"
        return f"the session's limit of {self.limit} is reached: {self.used:g} of {self.allowed:g} used"


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per million tokens, which are micros per token."""

    input: float
    output: float


def before_model_call(
    limits: Limits, used: Used, *, input_tokens: int, max_tokens: int, price: Price | None, grants: int = 0
) -> Room | Reached:
    """
    Whether a model call may go out, and how long its answer may be.

    `grants` is how often somebody has granted the same again.
    """
    times = grants + 1
    if reached := _counted(limits, used, times, model_calls=1):
        return reached
    left = [max_tokens]
    for name, spent, limit in (
        ("input_tokens", used.input_tokens + input_tokens, limits.input_tokens),
        ("tokens", used.input_tokens + used.output_tokens + input_tokens + _ANSWER_MIN_TOKENS, limits.tokens),
        ("output_tokens", used.output_tokens + _ANSWER_MIN_TOKENS, limits.output_tokens),
    ):
        if limit is None:
            continue
        if spent > limit * times:
            return Reached(name, spent, limit * times)
        if name != "input_tokens":
            left.append(limit * times - spent + _ANSWER_MIN_TOKENS)
    if limits.cost_micros is not None and price is not None:
        allowed = limits.cost_micros * times
        rest = allowed - used.cost_micros - input_tokens * price.input
        if rest < _ANSWER_MIN_TOKENS * price.output or rest < 0:
            return Reached("cost_usd", (allowed - rest) / 1e6, allowed / 1e6)
        if price.output > 0:
            left.append(int(rest / price.output))
    room = min(left)
    return Room(room, shrunk=room < max_tokens)


def before_tools(limits: Limits, used: Used, *, calls: int, grants: int = 0) -> Reached | None:
    """Whether that many tool calls may go out; all of them, or none."""
    return _counted(limits, used, grants + 1, tool_calls=calls)


def _counted(limits: Limits, used: Used, times: int, *, model_calls: int = 0, tool_calls: int = 0) -> Reached | None:
    wall_s = None if limits.wall is None else seconds(limits.wall)
    for name, wanted, limit in (
        ("steps", used.steps + model_calls + tool_calls, limits.steps),
        ("model_calls", used.model_calls + model_calls, limits.model_calls),
        ("tool_calls", used.tool_calls + tool_calls, limits.tool_calls),
        ("wall", used.wall_s, wall_s),
    ):
        if limit is not None and wanted > limit * times:
            return Reached(name, wanted, limit * times)
    return None
