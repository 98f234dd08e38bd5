"""The incidents' agents, as the commands and workers of runbooks find them."""

from __future__ import annotations

from tests.runbooks.refunds import Refunds

refunds = Refunds(None)
