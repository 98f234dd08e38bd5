"""What a person may do next about a session: said wherever one is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentq.client import Client
    from agentq.store.sessions import SessionRow, StepRow


_EFFECT = ("key", "step_id", "name", "state", "calls", "claimed_at", "settled_at", "failure")


def effect_facts(row: Sequence[Any]) -> dict[str, Any]:
    """An effect's row by name."""
    return dict(zip(_EFFECT, row, strict=True))


def hold_of(connected: Client, row: SessionRow) -> dict[str, Any] | None:
    """Why a paused session is paused."""
    if row.state != "paused":
        return None
    return connected.recovery.store.held(row.tenant, row.session_id).hold


def on_hold(row: SessionRow, hold: dict[str, Any] | None) -> list[str]:
    """What a person may do about a session that parked itself."""
    resume = f"agentq session resume {row.session_id} --reason '…'"
    match (hold or {}).get("kind"):
        case "breaker":
            return [f"it went in circles; others of its tenant go on: {resume}, or session cancel"]
        case "limit":
            return [f"{resume} grants the same once more"]
        case _:
            return []


def advise(row: SessionRow, steps: list[StepRow], effects: list[dict[str, Any]]) -> list[str]:
    """What a person may do about a session that did not end well, or does not go on."""
    advice = []
    if unknown := [effect for effect in effects if effect["state"] == "unknown"]:
        names = ", ".join(effect["name"] for effect in unknown)
        advice.append(
            f"whether {names} happened is not known: look at the other side under the effect's key, then say what you "
            f"found: agentq effect resolve '{unknown[0]['key']}' --done RESULT | --not-done"
        )
    if row.state == "failed":
        kind = str((row.failure or {}).get("kind", ""))
        advice.append(f"{_FAILED.get(kind, _MEND)}: agentq session replay {row.session_id} --reason WHY")
    if row.state == "running" and any(step.state == "ready" and step.attempt for step in steps):
        advice.append("a failed step waits for its next attempt; nothing needs to be done")
    if row.state == "running" and any(step.quarantine and step.state == "queued" for step in steps):
        advice.append("a step waits in quarantine: is a worker of that group running? agentq fleet ls")
    return advice


_MEND = "read the failed step above and mend its cause, then let it go on"

_FAILED = {
    "permanent": "no retry would have helped: mend the code, or its state (--edit), then let it go on",
    "gave_up": "its step decided to fail: mend what it names, then let it go on",
    "worker_lost": "it killed its workers, at last alone in quarantine: look at memory and native code of that step, "
    "then let it go on",
    "unknown": "once that is settled, let it go on",
    "deadline": "its deadline was over: find out what held it up, then let it go on with a new --deadline",
    "limit": "it reached a limit of its agent: raise it there, or let it wait for people with on_reach='park'",
    "semantic": "the model's answers stayed unusable: `agentq session trace` shows them",
    "timeout": "a step did not end within its timeout: raise it, or bound the call inside, then let it go on",
    "transient": "its attempts are used up: once the other side is back, let it go on",
}
