"""
The plan: the sessions of a run and what each must come to, worked out from the seed without agentq.

The judge compares with it, so nothing here may ask the agents what they did.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["idempotent", "checked", "plain"]

Door = Literal["client", "broker"]

# One way in, drawn from these: mostly the client, now and then twice at once.
_USUAL: tuple[Door, ...] = ("client",)
_DOORS: tuple[tuple[Door, ...], ...] = (*[_USUAL] * 7, ("client", "client"), ("broker",), ("client", "broker"))

TENANTS = ("chaos-amber", "chaos-birch", "chaos-cedar")
POISON_TENANT = "chaos-poison"

# What the sessions' effects are declared as. Only a session with a plain one may end with an outcome unknown.
_MIXES: tuple[tuple[Kind, ...], ...] = (
    ("idempotent",),
    ("idempotent",),
    ("idempotent", "checked"),
    ("checked",),
    ("idempotent", "plain"),
    ("plain", "checked", "idempotent"),
)


@dataclass(frozen=True)
class Operation:
    """One change that a session makes at the service: exactly once, with this value, after those places."""

    place: str
    kind: Kind
    value: str
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """One session to submit, and its only right end."""

    key: str
    tenant: str
    agent: str
    at_s: float
    input: dict[str, Any]
    operations: tuple[Operation, ...] = ()
    result: Any = None
    poison: bool = False
    # How it is submitted, side by side: by the client in Postgres, or as a task by somebody who has only the broker.
    doors: tuple[Door, ...] = ("client",)

    @property
    def may_be_unknown(self) -> bool:
        """Whether it has an effect whose fate nobody can find out after a crash."""
        return any(operation.kind == "plain" for operation in self.operations)


def answer(session: str, place: str, value: str) -> str:
    """What the service says to a change; the service computes it for itself."""
    return hashlib.sha256(f"{session}|{place}|{value}".encode()).hexdigest()[:16]


def together(answers: Sequence[str]) -> str:
    """What a join makes of its branches."""
    return hashlib.sha256("+".join(answers).encode()).hexdigest()[:16]


@dataclass
class _Chain:
    """A run of steps, each with one change; each value is the answer before it."""

    session: str
    kinds: list[Kind]
    pauses: list[float]
    naps: list[float]
    start: str
    prefix: str = ""
    operations: list[Operation] = field(default_factory=list)
    trail: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        value, before = self.start, ""
        for n, kind in enumerate(self.kinds):
            place = f"{self.prefix}{n}"
            self.operations.append(Operation(place, kind, value, (before,) if before else ()))
            value, before = answer(self.session, place, value), place
            self.trail.append(value)

    @property
    def input(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "kinds": self.kinds,
            "pauses": self.pauses,
            "naps": self.naps,
            "prefix": self.prefix,
            "value": self.start,
        }


def sessions(seed: int, *, count: int, over_s: float, run: str) -> list[Wanted]:
    """
    So many sessions, submitted over that time.

    `run` stands before every key, so that two runs on one database are apart.
    """
    draw = random.Random(f"sessions {seed}")
    found = []
    for n in range(count):
        key = f"{run}{n:04}"
        make = _fan if n % 6 == 5 else _chain
        found.append(make(draw, key, draw.choice(TENANTS), at_s=over_s * n / count))
    return found


def poison(times: Sequence[tuple[float, bool]], *, run: str) -> list[Wanted]:
    """Sessions that kill their worker; with True, one that waits in quarantine to be killed from outside."""
    return [
        Wanted(
            key=f"{run}poison{n}",
            tenant=POISON_TENANT,
            agent="chaos-poison",
            at_s=at_s,
            input={"session": f"{run}poison{n}", "hog": hog},
            poison=True,
        )
        for n, (at_s, hog) in enumerate(times)
    ]


def _chain(draw: random.Random, key: str, tenant: str, *, at_s: float) -> Wanted:
    chain = _drawn(draw, key, steps=draw.randint(5, 7))
    agent = "chaos-async" if draw.random() < 0.3 else "chaos-chain"
    return Wanted(
        key, tenant, agent, at_s, chain.input, tuple(chain.operations), chain.trail, doors=draw.choice(_DOORS)
    )


def _fan(draw: random.Random, key: str, tenant: str, *, at_s: float) -> Wanted:
    start = f"fan {draw.getrandbits(32):08x}"
    parts = [_drawn(draw, key, steps=2, prefix=f"part{n}.") for n in range(draw.randint(2, 4))]
    children = [_drawn(draw, key, steps=2, prefix=f"child{n}.") for n in range(draw.randint(1, 2))]
    branches = [*parts, *children]
    value = together([branch.trail[-1] for branch in branches])
    join = Operation("join", "idempotent", value, tuple(branch.operations[-1].place for branch in branches))
    return Wanted(
        key=key,
        tenant=tenant,
        agent="chaos-fan",
        at_s=at_s,
        input={
            "session": key,
            "value": start,
            "parts": [part.input for part in parts],
            "children": [child.input for child in children],
        },
        operations=(*(operation for branch in branches for operation in branch.operations), join),
        result=answer(key, "join", value),
        doors=draw.choice(_DOORS),
    )


def _drawn(draw: random.Random, session: str, *, steps: int, prefix: str = "") -> _Chain:
    mix = draw.choice(_MIXES)
    return _Chain(
        session=session,
        kinds=[mix[n % len(mix)] for n in range(steps)],
        pauses=[round(draw.uniform(0.2, 0.8), 3) for _ in range(steps)],
        naps=[round(draw.uniform(0.2, 0.6), 3) if draw.random() < 0.15 else 0.0 for _ in range(steps)],
        start=f"start {draw.getrandbits(32):08x}",
        prefix=prefix,
    )
