"""The faults by name: each falls once when called, and returns the evidence that it hit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from agentq.chaos.faults import broker, network, poison, postgres, tools, workers
from agentq.chaos.strike import Evidence, Strike

DEEDS: Mapping[str, Callable[[Strike], Evidence]] = {
    "worker killed": workers.killed,
    "relay killed": workers.relay_killed,
    "worker frozen": workers.frozen,
    "worker told to stop": workers.told_to_stop,
    "broker killed": broker.killed,
    "broker lost": broker.lost,
    "broker emptied": broker.emptied,
    "messages dropped": broker.dropped,
    "messages doubled": broker.doubled,
    "messages reordered": broker.reordered,
    "broker's disk full": broker.disk_full,
    "broker's memory full": broker.memory_full,
    "postgres killed": postgres.killed,
    "postgres away": postgres.away,
    "backends ended": postgres.backends_ended,
    "slow network": network.slow,
    "connections reset": network.reset,
    "network stalled": network.stalled,
    "network parted": network.parted,
    "parted past the lease": network.parted_past_the_lease,
    "tools fail": tools.fail,
    "tools hang": tools.hang,
    "tools answer garbage": tools.garbage,
    "poison": poison.swallowed,
    "child killed": poison.child_killed,
}
