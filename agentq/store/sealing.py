"""
Sealing: where each payload of a claim and of a settlement belongs, and so what it is bound to.

The engine, the agents and the policies see plain bytes; these two functions stand between them and the
statements. Copies that Postgres makes by itself keep their place: arguments are bound to the step's path,
which a replay keeps; a result to its session and branch, wherever it is read; a question to its session
and the digest of its arguments.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from agentq.errors import PayloadUnreadable
from agentq.store.vault import Place, Vault, place_of_step, row_of
from agentq.verdicts import (
    Decision,
    Extras,
    Failure,
    Granted,
    MemoryWrite,
    NewApproval,
    NewChild,
    NewStep,
    Settlement,
    TraceEvent,
)

_NO_PARENT = bytes(16)


# ── places ───────────────────────────────────────────────────────────────────


def input_of(session: uuid.UUID) -> Place:
    return ("session.input", session)


def state_in(session: uuid.UUID) -> Place:
    """A checkpoint's state; its envelope names the step, and the checkpoint that it changes."""
    return ("checkpoint.state", session)


def result_of(session: uuid.UUID, branch: int | None = None) -> Place:
    return ("result", session, "" if branch is None else branch)


def args_at(session: uuid.UUID, path: uuid.UUID) -> Place:
    return ("step.args", session, path)


def message_of(session: uuid.UUID, step: uuid.UUID, number: int) -> Place:
    """The nth message that a step added."""
    return ("message.body", session, step, number)


def effect_result(key: str) -> Place:
    return ("effect.result", key)


def asked(session: uuid.UUID, name: str, key: str | None, args_hash: bytes, column: str) -> Place:
    return (f"approval.{column}", session, name, key or "", args_hash)


def traced(session: uuid.UUID, step: uuid.UUID, fence: int, ordinal: int, column: str) -> Place:
    return (f"trace.{column}", session, step, fence, ordinal)


def decided(session: uuid.UUID, step: uuid.UUID, fence: int, ordinal: int, column: str) -> Place:
    return (f"decision.{column}", session, step, fence, ordinal)


def memory_value(namespace: str, key: str, digest: bytes) -> Place:
    """A memory's value; the digest is that of its content, so that one version is not another."""
    return ("memory.value", namespace, key, digest)


def event_of(session: uuid.UUID, step: uuid.UUID | None, kind: str) -> Place:
    return ("session_event.body", session, step or "", kind)


# ── a claim ──────────────────────────────────────────────────────────────────


def opened(vault: Vault, claim: Granted) -> Granted:
    """
    The claim in plain; `unreadable` says why where something of it does not open.

    Raises:
        KeyUnavailable: the key provider does not answer.
    """
    sealed = (claim.args, claim.input, *(claim.states or ()))
    if not any(data is not None and data[:1] == b"\x01" for data in sealed):
        return (
            claim if claim.repair is None else replace(claim, repair=vault.open_failure(claim.ref.tenant, claim.repair))
        )
    tenant, session = claim.ref.tenant, claim.ref.session_id
    try:
        return replace(
            claim,
            args=vault.open(tenant, args_at(session, claim.path), claim.args),
            input=vault.open(tenant, input_of(session), claim.input),
            states=None if claim.states is None else open_states(
                vault, tenant, session, claim.states, at=claim.state_from
            ),
            repair=vault.open_failure(tenant, claim.repair),
        )  # fmt: skip
    except PayloadUnreadable as error:
        return replace(claim, args=None, input=None, states=None, repair=None, unreadable=str(error))


def open_states(
    vault: Vault, tenant: str, session: uuid.UUID, states: Sequence[bytes], *, at: uuid.UUID | None = None
) -> tuple[bytes, ...]:
    """
    A snapshot and its changes in plain, oldest first; `at` is the checkpoint that the last one must be.

    A single one that is no checkpoint is the session's input.

    Raises:
        PayloadUnreadable: one does not open, or is not the one that the next is a change of.
    """
    plain: list[bytes] = []
    expected = at.bytes if at is not None else None
    for state in reversed(states):
        row = row_of(state)
        if row == b"" and len(states) == 1 and at is None:
            plain.append(vault.open(tenant, input_of(session), state))
            continue
        if row is not None:
            if expected is not None and row[:16] != expected:
                raise PayloadUnreadable(tenant, "checkpoint.state", "it belongs to another step")
            expected = row[16:] if row[16:] != _NO_PARENT else None
        else:
            expected = None
        plain.append(vault.open(tenant, state_in(session), state))
    return tuple(reversed(plain))


# ── a settlement ─────────────────────────────────────────────────────────────


def sealed(vault: Vault, claim: Granted, settlement: Settlement) -> Settlement:
    """
    The settlement as Postgres is to keep it; its own failure is left to whoever writes its facts.

    Raises:
        KeyUnavailable: the key provider does not answer.
    """
    if not vault.on:
        return settlement
    tenant, session = claim.ref.tenant, claim.ref.session_id
    parent = settlement.parent.bytes if settlement.parent is not None else _NO_PARENT
    return replace(
        settlement,
        state=vault.seal(tenant, state_in(session), settlement.state, row=claim.ref.step_id.bytes + parent),
        result=vault.seal(tenant, result_of(session, claim.branch), settlement.result),
        steps=tuple(_step(vault, claim, step) for step in settlement.steps),
        children=tuple(_child(vault, tenant, child) for child in settlement.children),
        asks=tuple(ask_sealed(vault, claim, ask) for ask in settlement.asks),
        extras=_extras(vault, claim, settlement.extras),
    )


def _step(vault: Vault, claim: Granted, step: NewStep) -> NewStep:
    if step.args is None:
        return step
    # As agentq.add_successors() says it.
    as_ = "join" if step.fan else "next" if step.join_step == claim.join_step else str(step.branch)
    path = place_of_step(claim.path, step.name, as_)
    return replace(step, args=vault.seal(claim.ref.tenant, args_at(claim.ref.session_id, path), step.args))


def _child(vault: Vault, tenant: str, child: NewChild) -> NewChild:
    return replace(child, input=vault.seal(tenant, input_of(child.session_id), child.input))


def ask_sealed(vault: Vault, claim: Granted, ask: NewApproval) -> NewApproval:
    """A question with what it quotes sealed."""
    tenant, session = claim.ref.tenant, claim.ref.session_id

    def place(column: str) -> Place:
        return asked(session, ask.name, ask.effect_key, ask.args_hash, column)

    return replace(
        ask,
        args=vault.seal(tenant, place("args"), ask.args),
        question=vault.seal_text(tenant, place("question"), ask.question),
        details=vault.seal(tenant, place("details"), ask.details),
    )


def _extras(vault: Vault, claim: Granted, extras: Extras) -> Extras:
    tenant, session, step = claim.ref.tenant, claim.ref.session_id, claim.ref.step_id
    bodies = seal_messages(vault, tenant, session, [(step, body) for body, _ in extras.messages])
    messages = tuple((body, by) for body, (_, by) in zip(bodies, extras.messages, strict=True))
    return replace(
        extras,
        messages=messages,
        memories=tuple(memory_sealed(vault, tenant, write) for write in extras.memories),
        trace=tuple(_event(vault, claim, number, event) for number, event in enumerate(extras.trace, 1)),
        decisions=tuple(_decision(vault, claim, number, made) for number, made in enumerate(extras.decisions, 1)),
    )


def _event(vault: Vault, claim: Granted, number: int, event: TraceEvent) -> TraceEvent:
    tenant, ref, fence = claim.ref.tenant, claim.ref, claim.fence

    def place(column: str) -> Place:
        return traced(ref.session_id, ref.step_id, fence, number, column)

    return replace(
        event,
        failure=failure_sealed(vault, tenant, event.failure),
        detail=vault.seal_facts(tenant, place("detail"), event.detail),
        input=vault.seal(tenant, place("input"), event.input),
        output=vault.seal(tenant, place("output"), event.output),
    )


def _decision(vault: Vault, claim: Granted, number: int, made: Decision) -> Decision:
    tenant, ref, fence = claim.ref.tenant, claim.ref, claim.fence

    def place(column: str) -> Place:
        return decided(ref.session_id, ref.step_id, fence, number, column)

    return replace(
        made,
        options=vault.seal(tenant, place("options"), made.options),
        bare_options=vault.seal(tenant, place("options"), made.bare_options),
        picked=vault.seal_text(tenant, place("picked"), made.picked),
        why=vault.seal_text(tenant, place("why"), made.why),
    )


def failure_sealed(vault: Vault, tenant: str, failure: Failure | None) -> Failure | None:
    """A failure whose words are sealed, for a column of its own; never for what asks its cause."""
    if failure is None or not vault.on:
        return failure
    return replace(
        failure,
        message=vault.seal_text(tenant, ("failure", "message"), failure.message),
        feedback=vault.seal_text(tenant, ("failure", "feedback"), failure.feedback),
    )


# ── a memory ─────────────────────────────────────────────────────────────────


def memory_sealed(vault: Vault, tenant: str, write: MemoryWrite) -> MemoryWrite:
    """
    A memory with its value sealed. The words that it is found by become keyed digests, whole words in small letters;
    a vector, which tells nearly what its text does, is not kept.
    """
    if not vault.on:
        return write
    place = memory_value(write.namespace, write.key, write.digest)
    return replace(
        write,
        value=vault.seal(tenant, place, write.value),
        text=blind_text(vault, tenant, write.text) if write.text is not None else None,
        language="simple",
        embedding=None,
        embedded_by=None,
    )


def blind_text(vault: Vault, tenant: str, text: str) -> str:
    """The words of a text, or of a question, as the index holds them."""
    return " ".join(vault.blind(tenant, dict.fromkeys(re.findall(r"\w+", text.casefold()))))


# ── a history ────────────────────────────────────────────────────────────────


def seal_messages(
    vault: Vault, tenant: str, session: uuid.UUID, bodies: Sequence[tuple[uuid.UUID, bytes]]
) -> list[bytes]:
    """Messages, each with the step that adds it, as they are to be stored, in order."""
    counted: Counter[uuid.UUID] = Counter()
    stored = []
    for step, body in bodies:
        counted[step] += 1
        stored.append(vault.seal(tenant, message_of(session, step, counted[step]), body))
    return stored


def open_messages(
    vault: Vault, tenant: str, session: uuid.UUID, rows: Sequence[tuple[int, bytes, str, uuid.UUID]]
) -> list[tuple[int, bytes, str]]:
    """
    Messages in plain: position, body, writer. Each must be the one that its step added there.

    Raises:
        PayloadUnreadable: one does not open in its place, or one before it is missing.
    """
    counted: Counter[uuid.UUID] = Counter()
    plain = []
    for seq, body, by, step in rows:
        counted[step] += 1
        plain.append((seq, vault.open(tenant, message_of(session, step, counted[step]), body), by))
    return plain
