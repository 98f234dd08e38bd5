"""Moving: payloads that Postgres has copied into a fork, opened in their old place and sealed in the new one."""

from __future__ import annotations

import uuid
from typing import Any

from agentq.store import sealing
from agentq.store.pool import Connection, run
from agentq.store.vault import SQL, Vault


def into_fork(
    vault: Vault, connection: Connection, *, tenant: str, session: uuid.UUID, step: uuid.UUID, fork: uuid.UUID
) -> None:
    """
    Seal for a fork what it was given of its session, in the transaction that made it.

    Raises:
        PayloadUnreadable: something of it does not open, so there is no fork.
    """
    if not vault.on:
        return
    ids = {"tenant": tenant, "session": session, "step": step, "fork": fork}
    for was_at, copy, at, args in run(connection, SQL["forked_step"], ids):
        plain = vault.open(tenant, sealing.args_at(session, was_at), args)
        _write(connection, "set_args", ids, copy=copy, args=vault.seal(tenant, sealing.args_at(fork, at), plain))
    for join, branch, child, result in run(connection, SQL["forked_branches"], ids):
        was = sealing.result_of(child) if child is not None else sealing.result_of(session, branch)
        stored = vault.seal(tenant, sealing.result_of(fork, branch), vault.open(tenant, was, result))
        _write(connection, "set_result", ids, join=join, branch=branch, result=stored)
    _messages(vault, connection, ids)
    _questions(vault, connection, ids)


def _messages(vault: Vault, connection: Connection, ids: dict[str, Any]) -> None:
    tenant, session, fork = ids["tenant"], ids["session"], ids["fork"]
    rows = [(row[0], row[1], row[2], row[3]) for row in run(connection, SQL["forked_messages"], ids)]
    plain = sealing.open_messages(vault, tenant, session, rows)
    stored = sealing.seal_messages(
        vault, tenant, fork, [(row[3], body) for row, (_, body, _) in zip(rows, plain, strict=True)]
    )
    with connection.cursor(binary=True) as cursor:
        cursor.executemany(
            SQL["set_message"].encode(),
            [ids | {"seq": row[0], "body": body} for row, body in zip(rows, stored, strict=True)],
        )


def _questions(vault: Vault, connection: Connection, ids: dict[str, Any]) -> None:
    tenant, session, fork = ids["tenant"], ids["session"], ids["fork"]
    for approval, name, key, args_hash, args, question, details in run(connection, SQL["forked_approvals"], ids):
        was = {
            column: sealing.asked(session, name, key, args_hash, column) for column in ("args", "question", "details")
        }
        now = {column: sealing.asked(fork, name, key, args_hash, column) for column in was}
        _write(
            connection,
            "set_question",
            ids,
            approval=approval,
            args=vault.seal(tenant, now["args"], vault.open(tenant, was["args"], args)),
            question=vault.seal_text(tenant, now["question"], vault.open_text(tenant, was["question"], question)),
            details=vault.seal(tenant, now["details"], vault.open(tenant, was["details"], details)),
        )


def _write(connection: Connection, name: str, ids: dict[str, Any], **values: Any) -> None:
    run(connection, SQL[name], ids | values)
