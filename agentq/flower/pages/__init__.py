"""The pages inside Flower: a module for each tab, which holds its handlers and says where they answer."""

from __future__ import annotations

from agentq.flower.pages import anomalies, approvals, cost, health, letter, letters, metrics, session, sessions, tenants
from agentq.flower.pages.tab import Route

# In the order of the navigation bar.
ROUTES: tuple[Route, ...] = (
    *sessions.ROUTES,
    *session.ROUTES,
    *letters.ROUTES,
    *letter.ROUTES,
    *approvals.ROUTES,
    *tenants.ROUTES,
    *cost.ROUTES,
    *anomalies.ROUTES,
    *health.ROUTES,
    *metrics.ROUTES,
)

__all__ = ["ROUTES", "Route"]
