"""
Fairness: how many of the fleet's slots each tenant may hold while there are too few for all.

Admission alone lets every tenant have its cap, and workers then serve the queues in turn, whatever the
weights. While more is wanted than the fleet can hold, each tenant gets an allowance below its cap:
its share by weight, corrected by the time for which its steps really ran, those of now included. Whoever
holds more hands no slot on. While there is enough for all, nobody has an allowance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentq.store.fairness import Demand, Share

# At most so many steps are admitted for each slot, however long they are on their way: as many as a process has
# threads for each (see agentq/worker.py), or whoever comes next would wait for one.
_ADMITTED_MAX = 1.25
# What waits while every slot is taken is not on its way; but one that is comes as the next falls free.
_ON_ITS_WAY_MAX = 0.1
# What one is behind is made good within so many seconds.
_CATCH_UP_S = 2.0
# What one is ahead or behind by more than its share of so many seconds is forgiven: so long may it take to make that
# good, and nobody with due work waits longer for what it once had.
_REMEMBERED_S = 10.0
# About how long an allowance stands.
_ROUND_S = 0.25


def divide(slots: int, demands: Sequence[Demand]) -> Sequence[Share]:
    """The allowances; none when nobody says how many slots there are, or there are enough."""
    if not slots or sum(demand.wants for demand in demands) <= slots:
        return ()
    capacity = admissible(slots, demands)
    used = _time_used(demands)
    so_far = {demand.name: used[demand.name] + demand.running_s / demand.weight for demand in demands}
    weights = sum(demand.weight for demand in demands)
    mean = sum(so_far[demand.name] * demand.weight for demand in demands) / weights
    plain = _by_weight(capacity, demands)
    behind = {}
    for demand in demands:
        most = _REMEMBERED_S * plain[demand.name]
        owed = (mean - so_far[demand.name]) * demand.weight
        behind[demand.name] = max(-most, min(owed, most))
        used[demand.name] += (owed - behind[demand.name]) / demand.weight
    ideal = _corrected(plain, behind, demands, capacity)
    allowances = _whole(ideal, behind, demands, int(capacity))
    for demand in demands:
        # Who wants less than its share is not held to that: what it starts next does not wait for a division.
        if allowances[demand.name] >= demand.wants:
            share = math.floor(capacity * demand.weight / weights)
            allowances[demand.name] = max(allowances[demand.name], share)
    return [
        Share(demand.name, allowance, used[demand.name], demand.admitted > allowance)
        for demand, allowance in ((demand, allowances[demand.name]) for demand in demands)
    ]


def admissible(slots: int, demands: Sequence[Demand]) -> float:
    """
    How many steps may be with the broker or run: as many as fill the slots, and no more.

    Where steps queued with the broker, workers would take them in turn, by count, and tenants of short steps would
    come off badly. But a step is on its way for some milliseconds, between the settlement that handed its slot on
    and its claim: were only as many admitted as can run, a tenth of the slots would stand idle under short steps.
    While slots are free, what is admitted and does not run yet is on its way. No more is added than ended since the
    last division, so that whatever does wait is gone by the next.
    """
    running = sum(demand.running for demand in demands)
    on_its_way = sum(demand.admitted for demand in demands) - running
    more = on_its_way * slots / max(running, 1)
    if running >= slots:
        more = min(more, slots * _ON_ITS_WAY_MAX)
    return slots + min(more, float(sum(demand.ended for demand in demands)), slots * (_ADMITTED_MAX - 1))


def _time_used(demands: Sequence[Demand]) -> dict[str, float]:
    """Who comes back from idleness begins with the others, not ahead of them."""
    present = [demand.time_used for demand in demands if demand.sharing and demand.time_used is not None]
    least = min(present, default=0.0)
    return {
        demand.name: (demand.time_used if demand.sharing and demand.time_used is not None else least)
        + demand.ended_s / demand.weight
        for demand in demands
    }


def _by_weight(capacity: float, demands: Sequence[Demand]) -> dict[str, float]:
    """Shares by weight; those that want less than theirs leave the rest to the others."""
    left, weights = capacity, sum(demand.weight for demand in demands)
    found = {}
    for demand in sorted(demands, key=lambda demand: demand.wants / demand.weight):
        found[demand.name] = min(float(demand.wants), left * demand.weight / weights)
        left -= found[demand.name]
        weights = max(weights - demand.weight, 1e-9)
    return found


def _corrected(
    ideal: dict[str, float], behind: dict[str, float], demands: Sequence[Demand], capacity: float
) -> dict[str, float]:
    """Who is behind gets more, at most double and one; who is ahead gets less; together no more than there is."""
    found = {}
    for demand in demands:
        plain = ideal[demand.name]
        more = max(-plain, min(behind[demand.name] / _CATCH_UP_S, plain + 1.0))
        found[demand.name] = max(min(plain + more, float(demand.wants)), 0.0)
    whole = sum(found.values())
    return {name: share * capacity / whole for name, share in found.items()} if whole > capacity else found


def _whole(
    ideal: dict[str, float], behind: dict[str, float], demands: Sequence[Demand], capacity: int
) -> dict[str, int]:
    """Whole slots; what is left over goes to those that are furthest behind, so that nothing lies idle."""
    found = {demand.name: min(math.floor(ideal[demand.name]), demand.wants) for demand in demands}
    left = capacity - sum(found.values())
    waiting = sorted(
        demands,
        key=lambda demand: behind[demand.name] + _ROUND_S * (ideal[demand.name] - math.floor(ideal[demand.name])),
        reverse=True,
    )
    while left > 0 and any(found[demand.name] < demand.wants for demand in waiting):
        for demand in waiting:
            if left > 0 and found[demand.name] < demand.wants:
                found[demand.name] += 1
                left -= 1
    return found
