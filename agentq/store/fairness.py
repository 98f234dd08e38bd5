"""Fairness as rows: what tenants ask of the fleet's slots, and what each may hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from psycopg.types.json import Jsonb

from agentq.store.pool import ALL_TENANTS, Store, run
from agentq.store.queries import load

SQL = load("fairness")

# So many steps held slots for so many seconds.
Held = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Demand:
    """
    What a tenant has and wants now, in steps.

    `time_used` is the time for which its steps held slots while these were shared, over its weight; `ended_s`
    what has been added since by `ended` steps, `running_s` by those that run. Not `sharing`: it took no
    part in the last division.
    """

    name: str
    weight: float
    running: int
    running_s: float
    admitted: int
    wants: int
    time_used: float | None
    sharing: bool
    ended: int = 0
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant may hold until the next time."""

    name: str
    allowance: int
    time_used: float
    shedding: bool


Divide = Callable[[int, Sequence[Demand]], Sequence[Share]]


class Fairness:
    """Divides the fleet's slots, in one transaction."""

    def __init__(self, store: Store, divide: Divide) -> None:
        self.store = store
        self._divide = divide

    def tell(self, held: Mapping[str, Held]) -> None:
        """What held slots here and ended, by tenant, since this was last told."""
        if held:
            steps, seconds = zip(*held.values(), strict=True)
            parameters = {"holders": list(held), "steps": list(steps), "seconds": list(seconds)}
            with self.store.transaction(ALL_TENANTS) as connection:
                connection.execute("set local synchronous_commit = off")
                run(connection, SQL["tell"], parameters)

    def share(self) -> int:
        """How many tenants have an allowance now; 0 also when another relay is at it."""
        with self.store.transaction(ALL_TENANTS) as connection:
            if not run(connection, SQL["begin"], {})[0][0]:
                return 0
            connection.execute("set local synchronous_commit = off")
            slots: dict[str, int] = dict(run(connection, SQL["slots"], {}))
            used = {holder: (steps, seconds) for holder, steps, seconds in run(connection, SQL["used"], {})}
            demands: dict[str, list[Demand]] = defaultdict(list)
            for name, weight, running, running_s, admitted, wants, time_used, sharing, group in run(
                connection, SQL["demands"], {"most": 4 * sum(slots.values()) + 1}
            ):
                demands[group].append(
                    Demand(
                        name, weight, running, running_s, admitted, wants, time_used, bool(sharing),
                        *used.get(name, (0, 0.0)),
                    )
                )  # fmt: skip
            # Workers serve the tenants of their group alone, so each group is divided by itself.
            shares = [share for group, some in demands.items() for share in self._divide(slots.get(group, 0), some)]
            if shares:
                ran = [*used, shares[0].name]
                run(connection, SQL["write"], {"shares": Jsonb([asdict(share) for share in shares]), "ran": ran})
            run(connection, SQL["clear"], {"but": [share.name for share in shares]})
            return len(shares)
