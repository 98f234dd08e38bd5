"""Limits of a session: what a call may still use, and the room that its answer has."""

from __future__ import annotations

from typing import Any

import pytest

from agentq.errors import ConfigError
from agentq.policies.limits import Limits, Price, Reached, Room, Used, before_model_call, before_tools


def ask(limits: Limits, used: Used, **more: Any) -> Room | Reached:
    return before_model_call(limits, used, **{"input_tokens": 100, "max_tokens": 1000, "price": None} | more)


@pytest.mark.parametrize(
    ("limits", "used", "reached"),
    [
        (Limits(model_calls=3), Used(model_calls=2), None),
        (Limits(model_calls=3), Used(model_calls=3), "model_calls"),
        (Limits(steps=5), Used(steps=5), "steps"),
        (Limits(wall="10s"), Used(wall_s=10.0), None),
        (Limits(wall="10s"), Used(wall_s=10.1), "wall"),
        (Limits(input_tokens=1000), Used(input_tokens=900), None),
        (Limits(input_tokens=1000), Used(input_tokens=901), "input_tokens"),
        (Limits(output_tokens=500), Used(output_tokens=484), None),
        (Limits(output_tokens=500), Used(output_tokens=485), "output_tokens"),
        (Limits(tokens=1000), Used(input_tokens=500, output_tokens=384), None),
        (Limits(tokens=1000), Used(input_tokens=500, output_tokens=385), "tokens"),
    ],
)
def test_a_call_that_would_go_beyond_is_refused(limits: Limits, used: Used, reached: str | None) -> None:
    """
    Hard: the call's own tokens count before it goes out, to the last one.
    """
    found = ask(limits, used)
    assert (found.limit if isinstance(found, Reached) else None) == reached


def test_the_answer_gets_the_room_that_is_left() -> None:
    assert ask(Limits(), Used()) == Room(1000, shrunk=False)
    assert ask(Limits(output_tokens=500), Used(output_tokens=300)) == Room(200, shrunk=True)
    assert ask(Limits(tokens=1000), Used(input_tokens=500, output_tokens=100)) == Room(300, shrunk=True)
    # 100 tokens in cost 100 micros, each token out 4: of 500 micros 400 are left, for 100 tokens.
    price = Price(input=1, output=4)
    assert ask(Limits(cost_usd="0.001"), Used(cost_micros=500), price=price) == Room(100, shrunk=True)
    assert isinstance(ask(Limits(cost_usd="0.001"), Used(cost_micros=850), price=price), Reached)
    assert isinstance(ask(Limits(cost_usd="0.001"), Used(cost_micros=950), price=price), Reached)


def test_what_was_granted_again_counts() -> None:
    limits = Limits(model_calls=3, tokens=1000, cost_usd="0.001")
    used = Used(model_calls=3, input_tokens=1000, cost_micros=1000)
    assert isinstance(ask(limits, used, price=Price(1, 4)), Reached)
    assert ask(limits, used, price=Price(1, 4), grants=1) == Room(225, shrunk=True)


def test_tool_calls_go_out_all_or_none() -> None:
    limits = Limits(tool_calls=5, steps=9)
    assert before_tools(limits, Used(tool_calls=3), calls=2) is None
    assert before_tools(limits, Used(tool_calls=3), calls=3) == Reached("tool_calls", 6, 5)
    assert before_tools(limits, Used(steps=8), calls=2) == Reached("steps", 10, 9)
    assert before_tools(limits, Used(tool_calls=3), calls=3, grants=1) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"tokens": 1.5}, {"tool_calls": True}, {"cost_usd": 0}, {"cost_usd": "much"},
        {"cost_usd": "nan"}, {"on_reach": "panic"}, {"wall": "soon"},
    ],
)  # fmt: skip
def test_what_is_no_limit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, ValueError)):
        Limits(**wrong)
