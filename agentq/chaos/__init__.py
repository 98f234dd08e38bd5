"""
Chaos: a seeded nemesis against a fleet, and an independent judge of what it leaves.

`agentq chaos` starts a fleet of its own, submits sessions, breaks things by a schedule that the seed alone
decides, and compares the record of an outside service with what the sessions should have done. It does not
pass a run in which a fault hit nothing.
"""

from __future__ import annotations
