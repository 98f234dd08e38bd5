"""The client: how producer services start sessions, watch them, and stop them."""

from agentq.client.aio import AsyncClient, AsyncSession
from agentq.client.approvals import Approvals, ApprovalView, AsyncApprovals, Change, Who
from agentq.client.sync import Client, Session
from agentq.client.tenants import Tenants, operator_name
from agentq.client.views import ENDED, Event, SessionView

__all__ = [
    "ENDED",
    "ApprovalView",
    "Approvals",
    "AsyncApprovals",
    "AsyncClient",
    "AsyncSession",
    "Change",
    "Client",
    "Event",
    "Session",
    "SessionView",
    "Tenants",
    "Who",
    "operator_name",
]
