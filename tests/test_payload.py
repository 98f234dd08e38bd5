"""Payloads: a state comes back exactly, and its changes cost what changed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentq.errors import PayloadTooLarge
from agentq.payload import DELTAS_MAX, WHOLE_BELOW_BYTES, bounded, canonical, choose, decode, encode, fingerprint, fold

ROOT = Path(__file__).resolve().parents[1]
LONG = "x" * WHOLE_BELOW_BYTES


class Chain:
    """States as the engine stores them, one after another."""

    def __init__(self, first: Any) -> None:
        self.stored: tuple[bytes, ...] = (encode(first),)
        self.written = 0

    def add(self, state: Any) -> str:
        """Store the next state; how it was stored."""
        kind, data = choose(self.stored, encode(state))
        if kind == "full":
            assert data is not None
            self.stored = (data,)
        elif kind == "delta":
            assert data is not None
            self.stored = (*self.stored, data)
        self.written += len(data or b"")
        return kind

    @property
    def state(self) -> Any:
        return decode(fold(self.stored))


def exactly(value: Any) -> str:
    """A text that tells apart what Python holds equal: 1, 1.0 and True, and two orders of keys."""
    return json.dumps(value)


def anything(draw: random.Random, depth: int = 3) -> Any:
    """Some JSON value."""
    kind = draw.randrange(9 if depth else 7)
    match kind:
        case 0:
            return None
        case 1:
            return draw.random() < 0.5
        case 2:
            return draw.choice([0, 1, -1, 2**63, -(2**70), draw.randrange(10**6)])
        case 3:
            return draw.choice([0.0, -0.0, 1.0, 1e300, 5e-324, 0.1 + 0.2, draw.random()])
        case 4 | 5:
            return "".join(draw.choice('ab\0\u00e9\u6f22\U0001f600"\\') for _ in range(draw.randrange(6)))
        case 6:
            return draw.choice(["", LONG, LONG + "y"])
        case 7:
            return [anything(draw, depth - 1) for _ in range(draw.randrange(4))]
        case _:
            return {draw.choice("abcde"): anything(draw, depth - 1) for _ in range(draw.randrange(4))}


def changed(draw: random.Random, value: Any) -> Any:
    """A value that resembles this one, as an agent's next state resembles the one before."""
    if isinstance(value, list):
        longer = [*value, anything(draw, 1)]
        return draw.choice([longer, value[:-1], [*reversed(value)], value, longer])
    if isinstance(value, str):
        return draw.choice([value + "more", value[:-1], value])
    if isinstance(value, dict):
        items = list(value.items())
        draw.shuffle(items)
        return {name: changed(draw, item) for name, item in items if draw.random() < 0.9}
    if isinstance(value, bool | int | float):
        return draw.choice([bool(value), int(value), float(int(value)), value, None])
    return anything(draw, 1)


@pytest.mark.parametrize("seed", range(60))
def test_every_state_comes_back_exactly(seed: int) -> None:
    """
    Whatever is stored as snapshot and changes folds to the very state, types and order of inner keys included.
    """
    draw = random.Random(seed)
    names = [f"f{n}" for n in range(6)]
    state = {name: anything(draw) for name in names} | {"pad": LONG}
    chain = Chain(state)
    for _ in range(25):
        for name in draw.sample(names, draw.randrange(4)):
            state[name] = changed(draw, state[name]) if draw.random() < 0.8 else anything(draw)
        chain.add(state)
        found = chain.state
        assert exactly({name: found[name] for name in sorted(found)}) == exactly(
            {name: state[name] for name in sorted(state)}
        )


@pytest.mark.parametrize("before", [None, True, 1, 1.0, 0, -0.0, 0.0, "1", [1], [True], {"a": 1}, {}, []])
@pytest.mark.parametrize("after", [None, True, 1, 1.0, 0, -0.0, 0.0, "1", [1, 2], [True, 2], {"a": True}, {}, []])
def test_values_that_python_holds_equal_are_told_apart(before: Any, after: Any) -> None:
    """
    A flag that replaces a number is a change, also within lists and mappings.
    """
    chain = Chain({"pad": LONG * 2, "value": before})
    chain.add({"pad": LONG * 2, "value": after})
    assert exactly(chain.state["value"]) == exactly(after)


def test_the_order_of_a_mapping_is_a_change() -> None:
    """
    A mapping that an agent keeps in order, such as the last used first, comes back in that order.
    """
    chain = Chain({"pad": LONG, "recent": {"a": 1, "b": 2}})
    chain.add({"pad": LONG, "recent": {"b": 2, "a": 1}})
    assert list(chain.state["recent"]) == ["b", "a"]


@pytest.mark.parametrize(("item", "steps"), [("m" * 100, 300), ("m" * 2000, 100), ("m", 3000)])
def test_bytes_follow_what_changed_not_how_long_it_went_on(item: str, steps: int) -> None:
    """
    A list that grows by one item each step costs in all a small multiple of its final size, and a snapshot now
    and then.
    """
    chain = Chain({"items": [], "pad": LONG})
    items: list[str] = []
    for n in range(steps):
        items.append(f"{n}{item}")
        chain.add({"items": items, "pad": LONG})
    assert chain.state["items"] == items
    final = len(encode({"items": items, "pad": LONG}))
    assert chain.written < (4 + steps / DELTAS_MAX) * final + 40 * steps


def test_a_large_state_that_changes_a_little_is_read_from_few_rows() -> None:
    """
    The changes never outweigh the snapshot, and yet a claim does not read thousands of them.
    """
    chain, size = Chain({"n": 0, "pad": "x" * 200_000}), 0
    kinds = []
    for n in range(1, 3 * DELTAS_MAX):
        kinds.append(chain.add({"n": n, "pad": "x" * 200_000}))
        size = max(size, len(chain.stored))
    assert chain.state["n"] == 3 * DELTAS_MAX - 1
    assert size == DELTAS_MAX + 1
    assert kinds.count("full") == 2


def test_a_small_state_is_stored_whole() -> None:
    """
    Below two kilobytes the bookkeeping of changes costs more than it saves.
    """
    assert Chain({"n": 0}).add({"n": 1}) == "full"


def test_an_unchanged_state_is_not_stored_again() -> None:
    """
    A step that changes nothing writes no state.
    """
    chain = Chain({"n": 1, "pad": LONG})
    assert chain.add({"n": 1, "pad": LONG}) == "same"
    assert chain.add({"n": 2, "pad": LONG}) == "delta"
    assert chain.add({"n": 2, "pad": LONG}) == "same"


def test_a_field_that_goes_is_dropped() -> None:
    """
    Fields may vanish, as with models that exclude what is unset.
    """
    chain = Chain({"a": 1, "b": 2, "pad": LONG})
    chain.add({"a": 1, "pad": LONG})
    assert set(chain.state) == {"a", "pad"}


def test_a_state_that_is_no_mapping_is_stored_whole() -> None:
    """
    Models whose root is a list have no fields to compare.
    """
    chain = Chain([LONG])
    assert chain.add([LONG, "more"]) == "full"
    assert chain.state == [LONG, "more"]


def test_the_fingerprint_of_an_input_does_not_depend_on_order() -> None:
    """
    The same request, its fields in another order, is the same request.
    """
    assert canonical({"a": 1, "b": [{"c": 2, "d": 3}]}) == canonical({"b": [{"d": 3, "c": 2}], "a": 1})
    assert canonical([1, 2]) != canonical([2, 1])
    assert fingerprint(b"a", b"b") != fingerprint(b"b", b"a")


class Money(BaseModel):
    """A type whose JSON form is a text."""

    amount: Decimal


def test_what_has_no_json_form_is_named_without_its_value() -> None:
    """
    The message of the error says the type; what it held may be a secret.
    """

    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    with pytest.raises(TypeError, match="Secret cannot be stored as JSON") as raised:
        encode(Secret())
    assert "hunter2" not in str(raised.value)
    assert decode(encode(Money(amount=Decimal("1.10")))) == {"amount": "1.10"}


def test_too_large_is_refused_with_both_numbers() -> None:
    """
    Whoever reads it learns the size, the limit, and what to do instead.
    """
    assert bounded("the state", b"12", 2) == b"12"
    with pytest.raises(PayloadTooLarge, match=r"the state has 3 bytes, the limit is 2 .*pass a reference"):
        bounded("the state", b"123", 2)


def test_a_set_has_one_fingerprint_in_every_process() -> None:
    """
    Sets come in another order in each process; the same request from two producers is the same all the same.
    """
    code = (
        "from agentq.payload import canonical; from pydantic import BaseModel\n"
        "class Tags(BaseModel):\n    tags: set[str]; more: dict[str, frozenset[str]] = {}\n"
        "words = {'a', 'b', 'c', 'd', 'e'}\n"
        "print(canonical([[words, Tags(tags=words, more={'x': frozenset(words)})], {'also': {1, 'one', None}}]))"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(answers) == 1
