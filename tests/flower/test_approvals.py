"""The Approvals tab: granted as shown, granted with changes, denied; under the login's name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.testing import LocalFleet, Stuck
from tests.flower.test_tabs import Window
from tests.support import lively


@pytest.fixture
def fleet(registry: Registry, tenant: str, local: Callable[..., LocalFleet]) -> LocalFleet:
    lively.define(registry, (tenant,))
    return local()


@pytest.fixture
def asking(client: Client, fleet: LocalFleet, tenant: str) -> Session:
    """A session that waits for a person."""
    session = client.start("refunds", tenant=tenant, input={"order": "A77", "seed": lively.ASKS})
    with suppress(Stuck):
        fleet.drain(session)
    return session


def decided(client: Client, session: Session) -> Any:
    [one] = client.approvals.ls(tenant=session.tenant, session_id=session.id, state=None)
    return client.approvals.get(str(one.approval_id), tenant=session.tenant)


def test_an_approval_is_granted_with_changed_arguments(
    window: Window, flower: str, asking: Session, client: Client, fleet: LocalFleet
) -> None:
    """
    What is asked, with which arguments, is shown; what the approver makes of it goes ahead, and is on record as theirs.
    """
    path = f"/approvals?tenant={asking.tenant}"
    page = window.page(path)
    for said in ("Refund order A77", "4900", "headphones broke", f"/session/{asking.tenant}/{asking.id}"):
        assert said in page, said
    assert "Refund order A77" in Window(flower, login="viewer:pass-word-2").page(path)
    fields = {"approval": decided(client, asking).id, "tenant": asking.tenant}
    assert window.post("/approvals/grant", **fields, edits="cents", reason="half is enough")[0] == 400
    assert window.post("/approvals/grant", **fields, edits="cents=2450", reason="")[0] == 400
    assert decided(client, asking).state == "open"
    assert window.post("/approvals/grant", **fields, edits="cents=2450", reason="half is enough")[0] == 303
    view = decided(client, asking)
    assert (view.state, view.decided_by, view.decided_via) == ("granted", "jane", "login")
    assert [(change.path, change.before, change.after) for change in view.changes] == [("cents", 4_900, 2_450)]
    assert fleet.drain(asking).result == {"refunded": "A77"}
    assert "Refund order A77" not in window.page(path)


def test_an_approval_is_denied(window: Window, asking: Session, client: Client, fleet: LocalFleet) -> None:
    fields = {"approval": decided(client, asking).id, "tenant": asking.tenant}
    assert window.post("/approvals/deny", **fields, reason="")[0] == 400
    assert window.post("/approvals/deny", **fields, reason="the order is too old")[0] == 303
    view = decided(client, asking)
    assert (view.state, view.decided_by, view.comment) == ("denied", "jane", "the order is too old")
    assert window.post("/approvals/grant", **fields, reason="after all")[0] == 400


def test_an_approval_is_its_tenants(window: Window, asking: Session, client: Client, other_tenant: str) -> None:
    """
    I8: under another tenant's name it is not found.
    """
    fields = {"approval": decided(client, asking).id, "tenant": other_tenant}
    assert window.post("/approvals/grant", **fields, reason="curious")[0] == 400
    assert decided(client, asking).state == "open"
