"""A session that stands out, without the runs that it would take to learn that."""

from __future__ import annotations

from agentq.client import Client, Session
from agentq.store.anomalies import Anomalies, Tally


def stands_out(
    client: Client,
    session: Session,
    measure: str = "steps",
    why: str = "steps 60, of a test",
    *,
    value: float = 60,
    normal: tuple[float, float] = (5, 7),
) -> None:
    """Write an anomaly of the session down, as the watch does."""
    agent = session.view().agent
    tally = Tally(session.tenant, session._uuid, agent, 1, 60, 0, 0, 0, 0, None, None)
    Anomalies(client.sessions.store).raise_(
        tally, session=session._uuid, measure=measure, rule="p99", value=value, low=normal[0], high=normal[1], runs=200,
        why=why, running=True, channels=(),
    )  # fmt: skip
