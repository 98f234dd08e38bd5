"""The client: how producer services start sessions, watch them, and stop them."""

from agentq.client.aio import AsyncClient, AsyncSession
from agentq.client.approvals import Approvals, ApprovalView, AsyncApprovals, Change, Who
from agentq.client.dead_letters import AsyncDeadLetters, DeadLetters
from agentq.client.sync import Client, Session
from agentq.client.tenants import Tenants, operator_name
from agentq.client.views import ENDED, Event, SessionView
from agentq.store.dead_letters import Selection
from agentq.store.redrives import Policy, Terms

__all__ = [
    "ENDED",
    "ApprovalView",
    "Approvals",
    "AsyncApprovals",
    "AsyncClient",
    "AsyncDeadLetters",
    "AsyncSession",
    "Change",
    "Client",
    "DeadLetters",
    "Event",
    "Policy",
    "Selection",
    "Session",
    "SessionView",
    "Tenants",
    "Terms",
    "Who",
    "operator_name",
]
