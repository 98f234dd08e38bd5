"""Nothing is stuck: a claim that its worker has lost track of, or cannot settle, ends all the same."""

from __future__ import annotations

import pytest

from tests.crash.arena import Arena, wait_until

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("what", ["bad_message", "bad_write", "bad_commit"])
def test_a_settlement_that_postgres_refuses(arena: Arena, what: str) -> None:
    """A failure that cannot be stored as it is still ends the step, visibly."""
    arena.crew(1)
    [session] = arena.deeds(what)
    assert arena.wait([session], 20) == {"failed": 1}
    failure = session.view().failure
    assert failure is not None
    assert failure["type"]


@pytest.mark.parametrize("kind", ["shared", "shared_checked"])
def test_sessions_that_share_an_effect_key_with_a_dead_one(arena: Arena, kind: str) -> None:
    """Twelve sessions want one effect whose caller died: one performs it, all get its result, none is stuck."""
    arena.crew(2)
    arena.order("effect_called", 1)
    sessions = arena.walks(kind, 12, steps=1, what="one", pause_s=0.3)
    wait_until(arena.deaths, 20, "a death with the effect pending")
    assert arena.wait(sessions, 30) == {"done": 12}
    assert {tuple(session.view().result) for session in sessions} == {("done one",)}
    history = arena.assert_nothing_recorded_ran_again()
    [(key, calls)] = history.calls.items()
    assert calls <= (2 if kind == "shared" else 1), f"{key} was called {calls} times"
