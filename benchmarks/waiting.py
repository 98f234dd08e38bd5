"""Waiting: many sessions whose steps each wait a second on HTTP, on two worker processes."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from agentq.agents.registry import load_agents
from agentq.client import Client
from agentq.errors import WaitTimeout
from benchmarks.fleet import agentq_workers, environment, memory_mb, settings_of, wait_for_workers


@dataclass(frozen=True)
class Waiting:
    """Seconds for all, and what the workers took while they waited."""

    seconds: float
    ideal_s: float
    memory_mb: float

    @property
    def of_ideal(self) -> float:
        """How many times the ideal it took."""
        return self.seconds / self.ideal_s


def measure(base: dict[str, str], log: Path, *, sessions: int = 500, steps: int = 5, delay_s: float = 1.0) -> Waiting:
    """All sessions started at once; the ideal is the delay times the steps."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_server", str(delay_s)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}/"
    # Each process may hold all of them: a session's next step goes to whichever process is quicker.
    threads = sessions * 3 // 5
    env = environment(base)
    try:
        with (
            Client(settings_of(env), load_agents(("benchmarks.agents",))) as client,
            agentq_workers(env, processes=2, threads=threads, log=log) as pids,
        ):
            client.tenants.add("bench-wait", concurrency=sessions)
            wait_for_workers(client, 2)
            time.sleep(1.5)  # the consumers follow the tenant table within a second
            # Threads and connections are opened once in a worker's life; that is not what is measured.
            _run(client, url, sessions // 2, 1)
            began = time.time()
            peak = _run(client, url, sessions, steps, pids)
            return Waiting(time.time() - began, steps * delay_s, peak)
    finally:
        server.kill()
        server.wait()


def _run(client: Client, url: str, sessions: int, steps: int, pids: list[int] | None = None) -> float:
    items = [({"left": steps, "pad": url}, None)] * sessions
    started = client.start_many("bench-wait", tenant="bench-wait", items=items)
    peak = 0.0
    while True:
        try:
            states = client.wait_all(started, timeout=1.0)
        except WaitTimeout:
            peak = max(peak, memory_mb(pids)) if pids else 0.0
            continue
        assert set(states.values()) == {"done"}, states
        return peak
