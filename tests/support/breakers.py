"""Rules of breakers for tests: small numbers, so that few calls decide."""

from __future__ import annotations

from agentq.policies.dependencies import Rules

QUICK = Rules(
    window_s=30.0,
    volume_min=4,
    failure_rate=0.5,
    pause_s=5.0,
    pause_max_s=20.0,
    probes=2,
    probe_s=60.0,
    good=2,
)
RULES = QUICK.as_json()
