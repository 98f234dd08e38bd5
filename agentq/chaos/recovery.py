"""Recovery: how long until what a fault hit moved again, by the outside service's record."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentq.chaos.record import Request
from agentq.chaos.schedule import FAULTS
from agentq.chaos.strike import Hit

# For so long after a blow is healed, what another blow did is not counted as its own alone.
AFTERMATH_S = 2.0
WIDE = frozenset({"messages dropped", "messages doubled", "messages reordered", "broker emptied"})


@dataclass(frozen=True)
class Recovery:
    """
    One fault's recoveries. Times are counted from when its cause was gone, or from the blow if it need not go.

    `alone` are those during which no other blow fell or was fresh: the fault's own time. The others show what
    several faults at once cost.
    """

    fault: str
    blows: int
    hit: int
    moved: int
    p50_s: float
    p99_s: float
    alone: int
    alone_p50_s: float
    alone_p99_s: float


def recoveries(hits: Sequence[Hit], requests: Sequence[Request], *, lease_s: float) -> list[Recovery]:
    """
    By fault: of the sessions with a call in flight at the blow, how soon each asked the service again.

    A session whose call in flight was its last has nothing more to ask, and is not counted as moved.
    """
    moves: dict[str, list[float]] = defaultdict(list)
    for request in requests:
        moves[request.session].append(request.at)
    fell = [hit for hit in hits if not hit.missed]
    waits: dict[str, list[float]] = defaultdict(list)
    alone: dict[str, list[float]] = defaultdict(list)
    for hit in fell:
        for session in _hit(hit, moves):
            times = moves[session]
            after = bisect_right(times, hit.clock_from)
            if after == len(times):
                continue
            waits[hit.fault].append(times[after] - hit.clock_from)
            if not any(_meddles(other, hit, times[after], lease_s) for other in fell if other is not hit):
                alone[hit.fault].append(times[after] - hit.clock_from)
    found = []
    for fault in dict.fromkeys(hit.fault for hit in hits):
        mine = [hit for hit in fell if hit.fault == fault]
        times, clean = sorted(waits[fault]), sorted(alone[fault])
        found.append(
            Recovery(
                fault=fault,
                blows=len(mine),
                hit=sum(len(_hit(hit, moves)) for hit in mine),
                moved=len(times),
                p50_s=rank(times, 0.5),
                p99_s=rank(times, 0.99),
                alone=len(clean),
                alone_p50_s=rank(clean, 0.5),
                alone_p99_s=rank(clean, 0.99),
            )
        )
    return found


def _hit(hit: Hit, moves: Mapping[str, list[float]]) -> set[str]:
    """The sessions that it hit. Who lost a message cannot be told from outside, so all count that moved meanwhile."""
    if hit.fault not in WIDE:
        return set(hit.sessions)
    return {session for session, times in moves.items() if any(hit.began <= at <= hit.healed for at in times)} | set(
        hit.sessions
    )


def _meddles(other: Hit, hit: Hit, moved_at: float, lease_s: float) -> bool:
    """Whether the other blow may have had a part in how long this recovery took."""
    # While Postgres has been up for less than a lease, only the lease tells of a death.
    fresh_s = lease_s + AFTERMATH_S if FAULTS[other.fault].family == "postgres" else AFTERMATH_S
    return other.began < moved_at and other.healed + fresh_s > hit.began


def rank(times: Sequence[float], share: float) -> float:
    """That percentile of sorted times; 0 when there are none."""
    return round(times[min(int(len(times) * share), len(times) - 1)], 3) if times else 0.0
