"""Errors: they travel between processes whole, and say what to do."""

from __future__ import annotations

import inspect
import pickle

import pytest

from agentq import errors
from agentq.errors import AgentqError

SAMPLES: dict[str, AgentqError] = {
    "InvalidName": errors.InvalidName("tenant", "No Name"),
    "UnknownAgent": errors.UnknownAgent("robot", 2, ("robot@1",)),
    "UnknownTenant": errors.UnknownTenant("acme"),
    "InvalidState": errors.InvalidState("robot", "n: too small"),
    "PayloadTooLarge": errors.PayloadTooLarge("the input", 10, 5),
    "MemoryTooLarge": errors.MemoryTooLarge("memory shop/tea", 10, 5),
    "NoSuchMemory": errors.NoSuchMemory("acme", "shop", "tea"),
    "MemoryConflict": errors.MemoryConflict("shop", "tea", 1, 2),
    "KeyConflict": errors.KeyConflict("session key", "k"),
    "Transient": errors.Transient("slow", retry_after_s=3.0),
    "NotNow": errors.NotNow("busy", delay_s=1.0),
    "SessionBusy": errors.SessionBusy("acme", "conversation-7", "123"),
    "NotAllowed": errors.NotAllowed("acme", "tool", "pay"),
    "BudgetExceeded": errors.BudgetExceeded("spent", "tenant", "", "day", "end"),
    "UnknownPrice": errors.UnknownPrice("garage:home-made"),
    "NoSuchEffect": errors.NoSuchEffect("d:refund:A1", "acme"),
    "HeldBack": errors.HeldBack("dependency stripe is open", 2.0, "stripe"),
    "UnknownEffect": errors.UnknownEffect("who knows", "s:1"),
    "ReplayConflict": errors.ReplayConflict("d:refund:A1", "refund", "session", 3),
    "Park": errors.Park("limit", "enough steps", {"steps": 30}),
    "AwaitsApproval": errors.AwaitsApproval("refund", "approval"),
    "ApprovalRefused": errors.ApprovalRefused("refund", "approval"),
    "ApprovalDenied": errors.ApprovalDenied("refund", "approval"),
    "ApprovalExpired": errors.ApprovalExpired("refund", "approval"),
    "ApprovalClosed": errors.ApprovalClosed("approval", "granted", "ann", "noon"),
    "NotAnApprover": errors.NotAnApprover("approval", "why"),
    "NotReopened": errors.NotReopened("session", "moved"),
    "SandboxFailed": errors.SandboxFailed("tool", "ValueError", "no", "itself"),
    "PayloadUnreadable": errors.PayloadUnreadable("acme", "session.input", "its key was destroyed"),
    "FenceLost": errors.FenceLost("session", "step", 3),
    "SessionFailed": errors.SessionFailed("session", "failed", "no luck"),
    "UnknownSession": errors.UnknownSession("acme", "123"),
}
CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AgentqError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling_with_their_ids(kind: type[AgentqError]) -> None:
    """
    Celery and process pools pickle errors; none loses its attributes or its words on the way.
    """
    error = SAMPLES.get(kind.__name__) or kind("something")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error) != ""
    assert back.__dict__ == error.__dict__


def test_the_tree_at_the_top_is_the_tree() -> None:
    """
    The docstring draws every error, beneath the one it belongs to.
    """
    drawn = errors.__doc__ or ""
    for kind in CLASSES:
        assert f" {kind.__name__} " in drawn or (drawn.strip().startswith("Errors") and kind is AgentqError), kind


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.UnknownAgent("robot", None, ()), "AGENTQ_AGENTS"),
        (errors.UnknownAgent("robot", 3, ("robot@1", "robot@2")), "robot@1, robot@2"),
        (errors.UnknownTenant("acme"), "agentq tenant add acme"),
        (errors.InvalidName("tenant", "Acme Inc"), "a-z, 0-9"),
        (errors.PayloadTooLarge("the input", 2_000_000, 1_048_576), "AGENTQ_PAYLOAD_MAX_BYTES"),
        (errors.KeyConflict("session key", "k"), "use a new key"),
    ],
)
def test_a_refusal_says_what_to_do(error: AgentqError, words: str) -> None:
    """
    Each message names the way out.
    """
    assert words in str(error)
