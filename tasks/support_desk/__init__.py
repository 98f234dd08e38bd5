"""The support desk: reads tickets, looks up orders, refunds, changes addresses, answers."""

from __future__ import annotations

from tasks.support_desk.agent import desk

__all__ = ["desk"]
