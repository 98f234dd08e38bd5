"""Faults from outside, under load: a wiped or absent broker, a restarted or killed Postgres, messages tampered with."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import redis

from agentq.client import Session
from agentq.worker import headroom
from tests.crash.arena import LONG, Arena, thorough

pytestmark = pytest.mark.crash

SEED = int(os.environ.get("AGENTQ_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
OUTAGE_S = 20.0 if LONG else 6.0


def _unfinished(arena: Arena) -> int:
    with arena.admin() as connection:
        [row] = connection.execute("select count(*) from agentq.session where state = 'running'").fetchall()
        return int(row[0])


def _load(arena: Arena, sessions: int = 40, steps: int = 10, pause_s: float = 0.05) -> list[Session]:
    arena.crew(2)
    return arena.walks("repeatable", sessions, steps=steps, pause_s=pause_s)


def _judge(arena: Arena, sessions: list[Session], began: float, about: str, timeout_s: float = 60.0) -> None:
    assert arena.wait(sessions, timeout_s) == {"done": len(sessions)}
    took_s = time.monotonic() - began
    arena.assert_done(sessions)
    history = arena.assert_nothing_recorded_ran_again()
    print(
        f"\n{about} (seed {SEED}): {len(sessions)} sessions, {len(history.runs)} steps, "
        f"{history.repeated_runs} runs and {history.repeated_calls} calls repeated, all ended {took_s:.1f} s after"
    )


def _redis(arena: Arena) -> redis.Redis:
    return redis.Redis.from_url(arena.stack.valkey.url)


def test_flushall_at_random(arena: Arena) -> None:
    """The broker is emptied eight times at random moments; nothing runs twice."""
    draw = random.Random(SEED)
    sessions = _load(arena)
    hits = 0
    for _ in range(8):
        time.sleep(draw.uniform(0.05, 0.6))
        hits += _unfinished(arena) > 0
        arena.stack.valkey.wipe()
    assert hits >= 3, "the load was over before the faults"
    _judge(arena, sessions, time.monotonic(), f"FLUSHALL x 8, {hits} of them under load")
    assert arena.history().repeated_runs == 0


@pytest.mark.parametrize("wiped", [pytest.param(False, marks=thorough), True], ids=["with its data", "wiped"])
def test_broker_down(arena: Arena, wiped: bool) -> None:
    """The broker is killed and comes back later: every session ends soon after, without a restart of any worker."""
    sessions = _load(arena)
    workers = [w.pid for w in arena.workers if w.alive]
    time.sleep(0.5)
    valkey = arena.stack.valkey
    assert _unfinished(arena) > 0
    valkey.kill()
    time.sleep(OUTAGE_S)
    if wiped:
        for path in sorted(valkey.folder.rglob("appendonly*"), reverse=True):
            if path.is_file():
                path.unlink()
    valkey.start(same_port=True)
    began = time.monotonic()
    assert _unfinished(arena) > 0
    _judge(arena, sessions, began, f"broker down {OUTAGE_S:g} s, wiped={wiped}")
    assert [w.pid for w in arena.workers if w.alive] == workers
    assert arena.history().repeated_runs == 0


def test_a_tenant_added_while_nobody_listens_is_served(arena: Arena) -> None:
    """
    Added and changed while the broker is away, or while there is no worker: whoever reconnects or starts later serves
    it as its record says by then.
    """
    valkey, made = arena.stack.valkey, f"late-{random.randrange(10**6)}"

    def begin(tenant: str) -> Session:
        return arena.client.start("walk", tenant=tenant, input={"kind": "repeatable", "steps": 3, "pause_s": 0.0})

    arena.crew(1)
    valkey.kill()
    arena.client.tenants.add(made, reason="while the broker is away")
    arena.client.tenants.add(f"{made}-paused", reason="while the broker is away")
    arena.client.tenants.set(f"{made}-paused", state="paused", reason="not yet")
    session, held = begin(made), begin(f"{made}-paused")
    time.sleep(1.0)  # rounds of the relay pass without a connection
    valkey.start(same_port=True)
    assert session.wait(timeout=30).state == "done"
    assert held.steps()[0].state == "ready"
    arena.dismiss()
    arena.client.tenants.add(f"{made}-2", reason="while there is no worker")
    arena.client.tenants.set(f"{made}-paused", state="active", reason="now")
    later = begin(f"{made}-2")
    arena.crew(1)
    assert {one.wait(timeout=30).state for one in (later, held)} == {"done"}


def _fast(arena: Arena) -> None:
    arena.stack.postgres.restart()


def _killed(arena: Arena) -> None:
    arena.stack.postgres.kill()
    arena.stack.postgres.start(same_port=True)


def _away(arena: Arena) -> None:
    arena.stack.postgres.stop()
    time.sleep(OUTAGE_S)
    arena.stack.postgres.start(same_port=True)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(_fast, marks=thorough), _killed, pytest.param(_away, marks=thorough)],
    ids=lambda fault: fault.__name__,
)
def test_postgres(arena: Arena, fault: Callable[[Arena], None]) -> None:
    """Postgres is restarted, killed or away under load: every session ends, no worker is taken for dead."""
    sessions = _load(arena, sessions=20, pause_s=0.1)
    delicate = arena.walks("undeclared", 20, steps=10, pause_s=0.1)
    workers = [w.pid for w in arena.workers if w.alive]
    time.sleep(0.7)
    assert _unfinished(arena) > 0
    fault(arena)
    began = time.monotonic()
    states = arena.wait(delicate)
    _judge(arena, sessions, began, f"Postgres {fault.__name__.strip('_')}, of 20 undeclared {states['failed']} unknown")
    assert [w.pid for w in arena.workers if w.alive] == workers
    assert {step.crashes for session in sessions for step in session.steps()} == {0}
    history = arena.history()
    # Calls in flight while Postgres was gone may be repeated, under their key; no more than there were threads.
    assert history.repeated_calls <= 2 * (8 + headroom(8))
    # Unknown is only a call whose claim may have been written without an answer: none that returned.
    assert states["failed"] <= 2
    assert {view.failure["kind"] for s in delicate if (view := s.view()).failure} <= {"unknown"}
    assert not [key for key, n in history.calls.items() if n > 1 and key.split(":")[1] in {s.id for s in delicate}]


def test_answers_get_lost(lonely: Arena) -> None:
    """One statement in twenty fails before or after it took effect: nothing is stuck, nothing recorded runs again."""
    lonely.crew(2, CRASH_LOSE="0.05", CRASH_SEED=str(SEED))
    sessions = lonely.walks("repeatable", 30, steps=6) + lonely.walks("checked", 15, steps=6)
    began = time.monotonic()
    _judge(lonely, sessions, began, "5 % of answers lost", timeout_s=60)
    lost = sum(worker.log.read_bytes().count(b"a test lost the ") for worker in lonely.workers)
    assert lost > 20, "too few answers were lost"
    print(f"{lost} losses were noticed")
    lonely.dismiss()


@contextmanager
def _meddling(arena: Arena, meddle: Callable[[redis.Redis, bytes], int]) -> Iterator[Callable[[], int]]:
    """Change the queues' lists all the time; the number of changes."""
    stop = threading.Event()
    count = [0]

    def run() -> None:
        client = _redis(arena)
        while not stop.is_set():
            for key in client.keys("*agentq.t.*"):
                if client.type(key) == b"list":
                    count[0] += meddle(client, key)
            time.sleep(0.005)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield lambda: count[0]
    finally:
        stop.set()
        thread.join()


_DRAW = random.Random(SEED)


def _deleted(client: redis.Redis, key: bytes) -> int:
    return int(client.lpop(key) is not None) if _DRAW.random() < 0.2 else 0


def _duplicated(client: redis.Redis, key: bytes) -> int:
    items = client.lrange(key, 0, 20)
    if not items or client.llen(key) > 40:
        return 0
    client.rpush(key, *items, *items)
    return 2 * len(items)


def _reordered(client: redis.Redis, key: bytes) -> int:
    with client.pipeline() as pipe:
        pipe.lrange(key, 0, -1)
        pipe.delete(key)
        items = pipe.execute()[0]
    _DRAW.shuffle(items)
    if items:
        client.rpush(key, *items)
    return len(items)


@pytest.mark.parametrize("meddle", [_deleted, _duplicated, _reordered], ids=lambda f: f.__name__)
def test_messages_are(arena: Arena, meddle: Callable[[redis.Redis, bytes], int]) -> None:
    """Messages vanish, come three times or in another order: time is lost, nothing else."""
    with _meddling(arena, meddle) as changed:
        sessions = _load(arena, sessions=60, steps=6, pause_s=0.02)
        began = time.monotonic()
        assert arena.wait(sessions, 90) == {"done": 60}
    assert changed() > 0, "no message was touched"
    _judge(arena, sessions, began, f"{changed()} messages {meddle.__name__.strip('_')}")
    assert arena.history().repeated_runs == 0
