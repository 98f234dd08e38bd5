"""The schedule: which fault falls when, how long, on which worker. The seed and the profile alone decide it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Lane = Literal["processes and servers", "network and tools"]


@dataclass(frozen=True)
class Fault:
    """A kind of fault: its family, how long it lasts, and how long the next in its lane waits after it."""

    family: str
    lane: Lane
    lasts_s: float = 0.0
    rest_s: float = 3.0
    outside: bool = False  # possible without a hand on the fleet's machines


_FIRST: Lane = "processes and servers"
_SECOND: Lane = "network and tools"

# How long the fleet is left alone after a blow whose recovery is to be measured.
SINGLE_REST_S = 5.0

# `past the lease` stands for a length that the pace decides.
PAST_THE_LEASE = -1.0

FAULTS: Mapping[str, Fault] = {
    "worker killed": Fault("processes", _FIRST),
    "relay killed": Fault("processes", _FIRST),
    "worker frozen": Fault("processes", _FIRST, PAST_THE_LEASE),
    "worker told to stop": Fault("processes", _FIRST),
    "broker killed": Fault("broker", _FIRST, 4.0),
    "broker lost": Fault("broker", _FIRST, 4.0),
    "broker emptied": Fault("broker", _FIRST, outside=True),
    "messages dropped": Fault("broker", _FIRST, 4.0, outside=True),
    "messages doubled": Fault("broker", _FIRST, 4.0, outside=True),
    "messages reordered": Fault("broker", _FIRST, 4.0, outside=True),
    "broker's disk full": Fault("broker", _FIRST, 5.0),
    "broker's memory full": Fault("broker", _FIRST, 5.0),
    "postgres killed": Fault("postgres", _FIRST, rest_s=4.0),
    "postgres away": Fault("postgres", _FIRST, 20.0, rest_s=4.0),
    "backends ended": Fault("postgres", _FIRST, outside=True),
    "slow network": Fault("network", _SECOND, 5.0),
    "connections reset": Fault("network", _SECOND, 3.0),
    "network stalled": Fault("network", _SECOND, 6.0),
    "network parted": Fault("network", _SECOND, 5.0),
    "parted past the lease": Fault("network", _SECOND, PAST_THE_LEASE),
    "tools fail": Fault("tools", _SECOND, 5.0, outside=True),
    "tools hang": Fault("tools", _SECOND, 5.0, outside=True),
    "tools answer garbage": Fault("tools", _SECOND, 5.0, outside=True),
    "poison": Fault("poison", _SECOND, rest_s=4.0),
    "child killed": Fault("poison", _SECOND, rest_s=4.0),
}

SERVERS = ("postgres", "broker", "service")


@dataclass(frozen=True)
class Blow:
    """One fault at one time."""

    number: int
    at_s: float
    fault: str
    lasts_s: float
    worker: int
    server: str
    seed: int

    @property
    def name(self) -> str:
        """What people read."""
        wide = FAULTS[self.fault].family == "network"
        return f"{self.fault} ({self.server})" if wide else self.fault


@dataclass(frozen=True)
class Pace:
    """How quickly the fleet under test notices things: its settings, and a length past its lease."""

    settings: Mapping[str, str]
    lease_s: float

    @property
    def past_the_lease_s(self) -> float:
        return self.lease_s * 1.15 + 0.5


DEFAULT_PACE = Pace({"AGENTQ_BACKOFF_MAX_S": "5"}, lease_s=15.0)
QUICK_PACE = Pace(
    {
        "AGENTQ_HEARTBEAT_S": "0.6",
        "AGENTQ_LEASE_S": "3",
        "AGENTQ_DEAD_LOOK_S": "0.4",
        "AGENTQ_RELAY_INTERVAL_S": "0.25",
        "AGENTQ_QUEUED_STALE_S": "0.7",
        "AGENTQ_BACKOFF_BASE_S": "0.1",
        "AGENTQ_BACKOFF_MAX_S": "2",
        "AGENTQ_DRAIN_S": "8",
    },
    lease_s=3.0,
)


@dataclass(frozen=True)
class Profile:
    """How much of everything."""

    name: str
    sessions: int
    workers: int
    threads: int
    faults: Mapping[str, int]
    pace: Pace
    patience_s: float
    servers: tuple[str, ...] = SERVERS
    longest_s: float | None = None
    singly: bool = False
    outside: bool = False


_ONCE = dict.fromkeys(FAULTS, 1)

LONG = Profile(
    name="long",
    sessions=400,
    singly=True,
    workers=3,
    threads=8,
    faults=_ONCE
    | {
        "worker killed": 3,
        "relay killed": 2,
        "worker told to stop": 2,
        "broker emptied": 2,
        "postgres killed": 2,
        "backends ended": 2,
        "slow network": 3,
        "connections reset": 3,
        "network stalled": 3,
        "network parted": 3,
    },
    pace=DEFAULT_PACE,
    patience_s=60.0,
)
SHORT = Profile(
    name="short",
    sessions=60,
    workers=2,
    threads=8,
    faults=dict.fromkeys(
        (
            "worker killed", "relay killed", "worker frozen", "worker told to stop",
            "broker lost", "broker emptied", "messages dropped", "broker's disk full",
            "postgres killed", "backends ended", "postgres away",
            "slow network", "connections reset", "network stalled", "network parted",
            "tools fail", "tools hang", "tools answer garbage",
            "poison",
        ),
        1,
    ),
    pace=QUICK_PACE,
    patience_s=30.0,
    longest_s=2.5,
)  # fmt: skip
OUTSIDE = Profile(
    name="outside",
    sessions=120,
    workers=0,
    threads=0,
    faults={name: 2 for name, fault in FAULTS.items() if fault.outside},
    pace=DEFAULT_PACE,
    patience_s=60.0,
    outside=True,
)
PROFILES = {profile.name: profile for profile in (SHORT, LONG)}


@dataclass(frozen=True)
class Schedule:
    """A whole run: the blows, and how long sessions are submitted."""

    profile: Profile
    seed: int
    blows: tuple[Blow, ...]
    submit_s: float
    poisons: tuple[tuple[float, bool], ...] = field(default=())


def make(profile: Profile, seed: int) -> Schedule:
    """
    The schedule of that seed.

    With `singly`, each fault first falls alone, with time to recover; then the rest fall in two lanes side by side.
    """
    draw = random.Random(f"schedule {profile.name} {seed}")
    drawing = _Drawing(profile, draw)
    left = dict(profile.faults)
    at_s = draw.uniform(2.0, 3.0)
    if profile.singly:
        names = _shuffled(draw, list(left))
        # While Postgres has been up for less than a lease, recovery from other faults is slower: it goes last.
        names.sort(key=lambda name: FAULTS[name].family == "postgres")
        at_s = drawing.add(names, at_s, SINGLE_REST_S)
        left = {name: times - 1 for name, times in left.items()}
    for lane in (_FIRST, _SECOND):
        names = [name for name, times in left.items() if FAULTS[name].lane == lane for _ in range(times)]
        drawing.add(_shuffled(draw, names), at_s + draw.uniform(0.0, 1.0), None)
    blows = drawing.blows()
    last_s = max(blow.at_s + blow.lasts_s for blow in blows)
    poisons = tuple(
        (blow.at_s, blow.fault == "child killed") for blow in blows if FAULTS[blow.fault].family == "poison"
    )
    return Schedule(profile, seed, blows, round(last_s, 2), poisons)


class _Drawing:
    """Blows while they are drawn."""

    def __init__(self, profile: Profile, draw: random.Random) -> None:
        self._profile = profile
        self._draw = draw
        self._drawn: list[tuple[float, str, float, int, str, int]] = []
        self._servers = {name: draw.sample(profile.servers, len(profile.servers)) for name in sorted(profile.faults)}

    def add(self, names: list[str], at_s: float, rest_s: float | None) -> float:
        """One after the other from that time on; when the next may fall."""
        for name in names:
            lasts_s = _lasts(self._profile, FAULTS[name])
            turns = self._servers[name]
            server = turns[0]
            turns.append(turns.pop(0))  # each server in turn, so that none is spared
            worker = self._draw.randrange(max(self._profile.workers, 1))
            self._drawn.append((at_s, name, lasts_s, worker, server, self._draw.getrandbits(31)))
            rest = rest_s or FAULTS[name].rest_s * (0.5 if self._profile.longest_s else 1.0)
            at_s += lasts_s + rest * self._draw.uniform(0.8, 1.2)
        return at_s

    def blows(self) -> tuple[Blow, ...]:
        """All of them by time."""
        return tuple(
            Blow(n, round(at_s, 2), name, round(lasts_s, 2), worker, _server(name, server), seed)
            for n, (at_s, name, lasts_s, worker, server, seed) in enumerate(sorted(self._drawn))
        )


def _shuffled(draw: random.Random, names: list[str]) -> list[str]:
    draw.shuffle(names)
    if names and FAULTS[names[0]].family == "poison":
        names.append(names.pop(0))  # it needs neighbours
    return names


def _lasts(profile: Profile, fault: Fault) -> float:
    if fault.lasts_s == PAST_THE_LEASE:
        return profile.pace.past_the_lease_s
    return min(fault.lasts_s, profile.longest_s) if profile.longest_s else fault.lasts_s


def _server(name: str, drawn: str) -> str:
    if name == "parted past the lease":
        return "postgres"  # the others hold no lease
    return drawn if FAULTS[name].family == "network" else ""
