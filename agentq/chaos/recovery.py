"""Recovery: how long until what a fault hit moved again, by the outside service's record."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from agentq.chaos.record import Request
from agentq.chaos.strike import Hit


@dataclass(frozen=True)
class Recovery:
    """One fault's recoveries. Times are counted from when its cause was gone, or from the blow if it need not go."""

    fault: str
    blows: int
    hit: int
    moved: int
    p50_s: float
    p99_s: float


def recoveries(hits: Sequence[Hit], requests: Sequence[Request]) -> list[Recovery]:
    """
    By fault: of the sessions with a call in flight at the blow, how soon each asked the service again.

    A session whose call in flight was its last has nothing more to ask, and is not counted as moved.
    """
    moves: dict[str, list[float]] = defaultdict(list)
    for request in requests:
        moves[request.session].append(request.at)
    waits: dict[str, list[float]] = defaultdict(list)
    for hit in hits:
        for session in hit.sessions if not hit.missed else ():
            times = moves[session]
            after = bisect_right(times, hit.clock_from)
            if after < len(times):
                waits[hit.fault].append(times[after] - hit.clock_from)
    found = []
    for fault in dict.fromkeys(hit.fault for hit in hits):
        mine = [hit for hit in hits if hit.fault == fault and not hit.missed]
        times = sorted(waits[fault])
        found.append(
            Recovery(
                fault,
                len(mine),
                sum(len(hit.sessions) for hit in mine),
                len(times),
                rank(times, 0.5),
                rank(times, 0.99),
            )
        )
    return found


def rank(times: Sequence[float], share: float) -> float:
    """That percentile of sorted times; 0 when there are none."""
    return round(times[min(int(len(times) * share), len(times) - 1)], 3) if times else 0.0
