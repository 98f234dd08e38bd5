"""Neighbours: a process that ends is noticed at once by those beside it, and nobody else is taken for dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq.engine import InFlight
from agentq.heart import Heart
from agentq.neighbours import Neighbours, place
from agentq.relay.relay import Chore, Relay
from agentq.settings import Settings
from agentq.store.approvals import Approvals
from agentq.store.placement import Placement
from agentq.store.workers import Registration, Workers
from tests.relay.test_relay import Broker
from tests.support.hands import PIN, SLOTS, Hands
from tests.support.until import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and descriptors in /proc")

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = "another boot/4026531836"

# A worker as far as Postgres and the kernel can tell. Its lock falls with it, not with the test.
WORKER = """
import os, sys, time
from agentq.neighbours import place
from agentq.store.pool import Store
from agentq.store.workers import Registration
registration = Registration(
    Store(sys.argv[1], size=1), group="default", role="steps", host="test", pid=os.getpid(), release="0",
    serves=[sys.argv[2]], slots=int(sys.argv[3]), place=place(),
)
registration.beat(3600.0)
print(registration.worker_id, flush=True)
time.sleep(600)
"""


class Children:
    """Processes of this test, and rows that say where they run."""

    def __init__(self, hands: Hands, settings: Settings) -> None:
        self._hands = hands
        self._url = settings.database_url
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        self._processes.append(process)
        return process

    def idle(self) -> subprocess.Popen[str]:
        """A process that knows nothing of Postgres."""
        return self.start("import time; time.sleep(600)")

    def worker(self) -> tuple[subprocess.Popen[str], uuid.UUID]:
        """A process with a row and a lock of its own."""
        process = self.start(WORKER, self._url, PIN, str(SLOTS))
        assert process.stdout is not None
        return process, uuid.UUID(process.stdout.readline().strip())

    def row(self, pid: int, where: str | None) -> Registration:
        """A row for that pid whose lock and heartbeats are in the test's hands."""
        made = Registration(
            self._hands.store, group="default", role="steps", host="test", pid=pid, release="0", serves=[PIN],
            slots=SLOTS, place=where,
        )  # fmt: skip
        made.beat(3600)
        self._hands._registrations.append(made)
        return made

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def workers(hands: Hands, servers: Any) -> Workers:
    """On a server that has been up for longer than the leases here."""
    up = "select clock_timestamp() - pg_postmaster_start_time() > interval '1.1 s'"
    with psycopg.connect(servers.admin_url) as connection:
        until(lambda: connection.execute(up).fetchone() == (True,))
    return Workers(hands.store)


@pytest.fixture
def children(hands: Hands, settings: Settings, admin: psycopg.Connection[Any]) -> Iterator[Children]:
    children = Children(hands, settings)
    yield children
    children.end()
    admin.execute(
        "update agentq.worker set state = 'dead', stopped_at = agentq.now()"
        " where place is not null and host = 'test' and state in ('live', 'draining')"
    )


@pytest.fixture
def neighbours(workers: Workers) -> Iterator[Neighbours]:
    neighbours = Neighbours(workers, lease_s=1.0)
    yield neighbours
    neighbours.close()


def state(hands: Hands, worker: uuid.UUID) -> str:
    [found] = hands.rows("select state from agentq.worker where worker_id = %s", worker)
    return str(found["state"])


def found(neighbours: Neighbours, worker: uuid.UUID) -> Callable[[], bool]:
    """Whether it is found dead now, resting as the relay does."""
    return lambda: neighbours.rest(0.05) and worker in neighbours.look()


def until_free(hands: Hands, worker: uuid.UUID) -> None:
    """Wait until Postgres has seen that the process is gone."""
    held = (
        "select from pg_locks join agentq.worker on objid = (lock_key & 4294967295)::oid"
        " where locktype = 'advisory' and worker_id = %s"
    )
    until(lambda: not hands.rows(held, worker), 5, "the lock is free")


def watched() -> int:
    """How many ends this process watches, by what the kernel says of its descriptors."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return sum("pidfd" in link for link in links)


def test_a_process_that_is_killed_is_found_dead_at_once(
    hands: Hands, children: Children, neighbours: Neighbours
) -> None:
    """
    Within a moment of SIGKILL, also while it is a zombie that nobody has waited for, and with no second look.
    """
    process, worker = children.worker()
    neighbours.refresh()
    assert not neighbours.rest(0.2)

    process.send_signal(signal.SIGKILL)
    until(found(neighbours, worker), 5, "it is found dead")

    assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    assert state(hands, worker) == "dead"
    assert not neighbours.rest(0.05)


def test_a_process_that_lives_is_left_alone_when_its_connection_is_cut(
    hands: Hands, children: Children, neighbours: Neighbours
) -> None:
    """
    Its lock is free, and the kernel says nothing: one look kills nobody.
    """
    _, worker = children.worker()
    neighbours.refresh()
    cut = (
        "select pg_terminate_backend(l.pid) as cut from pg_locks l join agentq.worker"
        " on objid = (lock_key & 4294967295)::oid where locktype = 'advisory' and worker_id = %s"
    )
    assert hands.rows(cut, worker) == [{"cut": True}]
    until_free(hands, worker)

    neighbours.refresh()
    assert not neighbours.rest(0.2)
    assert neighbours.look() == {}
    assert state(hands, worker) == "live"


def test_a_lock_that_falls_late_is_waited_for(hands: Hands, children: Children, neighbours: Neighbours) -> None:
    """
    Postgres sees a closed socket a little after the process is gone: it is looked again, after growing pauses.
    """
    process = children.idle()
    registration = children.row(process.pid, place())
    neighbours.refresh()
    process.kill()
    until(lambda: neighbours.rest(0.05), 5, "its end is heard")

    began, looks = time.monotonic(), 0
    while time.monotonic() < began + 0.5:
        if neighbours.rest(0.05):
            looks += 1
            assert neighbours.look() == {}
    assert 2 <= looks <= 8, "neither forgotten nor asked without a pause"
    assert state(hands, registration.worker_id) == "live"

    registration.disconnect()
    until(found(neighbours, registration.worker_id), 5, "it is found dead")


def test_a_lock_that_does_not_fall_is_left_to_the_slower_way(
    hands: Hands, children: Children, workers: Workers
) -> None:
    """
    Somebody else may hold the socket. After some seconds nobody asks any more, nor hears of that end again.
    """
    process = children.idle()
    registration = children.row(process.pid, place())
    impatient = Neighbours(workers, lease_s=1.0, patience_s=0.0)
    try:
        impatient.refresh()
        process.kill()
        process.wait()
        until(lambda: impatient.rest(0.05), 5, "its end is heard")
        time.sleep(0.01)
        for _ in range(3):
            assert impatient.look() == {}
            impatient.refresh()
            assert not impatient.rest(0.05)
    finally:
        impatient.close()
    registration.disconnect()

    def dead() -> bool:
        workers.look_for_dead(lease_s=1.0, look_s=0.0)
        return state(hands, registration.worker_id) == "dead"

    until(dead, 5, "the slower way finds it")


def test_a_pid_of_another_place_means_somebody_else(hands: Hands, children: Children, neighbours: Neighbours) -> None:
    """
    A container may have the same host name, and a process of the same pid: the end of ours is none of its.
    """
    process = children.idle()
    theirs, unknown = children.row(process.pid, ELSEWHERE), children.row(process.pid, None)
    before = watched()
    neighbours.refresh()
    assert watched() == before
    process.kill()
    process.wait()
    for registration in (theirs, unknown):
        registration.disconnect()  # cut this very moment, and alive
    neighbours.refresh()
    assert not neighbours.rest(0.2)
    assert neighbours.look() == {}
    assert state(hands, theirs.worker_id) == state(hands, unknown.worker_id) == "live"


def test_a_pid_that_was_given_to_another_process_leads_to_no_false_death(
    hands: Hands, children: Children, neighbours: Neighbours
) -> None:
    """
    Who is watched under the pid of a process that ended before is a stranger. While it lives nobody is found dead
    for it; when it ends, the process of the row has ended all the longer, and only that row is touched.
    """
    stranger, other = children.idle(), children.idle()
    gone, alive = children.row(stranger.pid, place()), children.row(other.pid, place())
    gone.disconnect()
    neighbours.refresh()
    assert not neighbours.rest(0.2)
    assert neighbours.look() == {}
    assert state(hands, gone.worker_id) == "live", "the slower way's"

    stranger.kill()
    until(found(neighbours, gone.worker_id), 5, "the word is true of the row's process too")
    assert state(hands, alive.worker_id) == "live"


def test_a_pid_that_nobody_has_is_a_word_too(hands: Hands, children: Children, neighbours: Neighbours) -> None:
    """
    A process that ended before anybody watched it is found dead at the first refresh.
    """
    process, worker = children.worker()
    process.kill()
    process.wait()
    neighbours.refresh()
    until(found(neighbours, worker), 5, "it is found dead")
    assert state(hands, worker) == "dead"


def test_a_process_says_where_it_runs(hands: Hands) -> None:
    """
    Two processes of one machine say the same; it is what makes them neighbours.
    """
    heart = Heart(
        hands.store, in_flight=InFlight(), group="default", role="steps", release="0", serves=[], heartbeat_s=60.0,
        lease_s=3600.0,
    )  # fmt: skip
    heart.start(None)
    try:
        said = hands.rows("select place from agentq.worker where worker_id = %s", heart.worker_id)
    finally:
        heart.stop()
    asked = [sys.executable, "-c", "from agentq.neighbours import place; print(place())"]
    other = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert other
    assert said == [{"place": other}]


def test_nobody_watches_itself(children: Children, neighbours: Neighbours) -> None:
    """
    Rows of one's own process need no watch.
    """
    children.row(os.getpid(), place())
    before = watched()
    neighbours.refresh()
    assert watched() == before


def test_who_is_gone_is_watched_no_more(children: Children, neighbours: Neighbours) -> None:
    """
    No descriptor outlives the row, or the watching.
    """
    before = watched()
    one, two = (children.row(children.idle().pid, place()) for _ in range(2))
    neighbours.refresh()
    neighbours.refresh()
    assert watched() == before + 2
    one.stop()
    neighbours.refresh()
    assert watched() == before + 1
    neighbours.close()
    assert watched() == before
    two.stop()


def test_a_forked_child_keeps_nothing(children: Children, neighbours: Neighbours) -> None:
    """
    Prefork children are forked beside a relay: what it watches is closed in them, and watched on in the parent.
    """
    process = children.idle()
    children.row(process.pid, place())
    neighbours.refresh()
    before = watched()
    assert before
    bell = neighbours._bell.fileno()
    child = os.fork()
    if child == 0:
        try:
            os.fstat(bell)
        except OSError:
            os._exit(watched())
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert watched() == before
    process.kill()
    until(lambda: neighbours.rest(0.05), 5, "its end is heard")


# ── in the relay ─────────────────────────────────────────────────────────────


@pytest.fixture
def broker(tenant: str) -> Broker:
    return Broker(tenant)


@pytest.fixture
def relay(hands: Hands, workers: Workers, broker: Broker) -> Iterator[Relay]:
    """One whose next round, and whose next look for missing messages, are too far away to help."""
    relay = Relay(
        ledger=hands.ledger,
        workers=workers,
        approvals=Approvals(hands.store),
        publisher=broker,  # type: ignore[arg-type]
        follow_tenants=lambda names: None,
        interval_s=3600.0,
        batch=500,
        lease_s=1.0,
        look_s=3600.0,
        stale_s=3600.0,
        placement=Placement(hands.store, own_max=100_000),
    )
    yield relay
    relay.stop()


def start(relay: Relay) -> None:
    relay.start()
    until(lambda: relay.rounds == 1, 30, "it rests after its first round")


def test_the_end_of_a_neighbour_ends_the_relays_rest(
    hands: Hands, children: Children, relay: Relay, broker: Broker
) -> None:
    """
    Between two rounds the dead process's steps are taken back and sent, while it still is a zombie; and what it had
    taken from the broker and not claimed is sent again, however young.
    """
    process, worker = children.worker()
    running, fetched = hands.start(), hands.start()
    hands.admit()
    hands.claim(running, worker=worker)
    broker.queues.clear()
    start(relay)
    assert broker.mine == []

    process.send_signal(signal.SIGKILL)
    until(lambda: len(broker.mine) == 2, 10, "both are sent again")

    assert [wake.step_id for wake in broker.mine] == [running.step_id, fetched.step_id]
    assert relay.rounds == 1
    assert hands.entry(running)["crashes"] == 1
    assert hands.claim(running).attempt == hands.claim(fetched).attempt == 1


def test_the_end_of_a_neighbour_goes_before_the_next_chore(hands: Hands, children: Children, relay: Relay) -> None:
    """
    A round whose chores take long does not make the dead wait for its end.
    """
    process, worker = children.worker()
    relay._neighbours.refresh()

    def long() -> None:
        process.kill()
        process.wait()
        until_free(hands, worker)

    seen: list[str] = []
    relay._urgent = (Chore("long", long, 0.0), Chore("after it", lambda: seen.append(state(hands, worker)), 0.0))
    relay.round()
    assert seen == ["dead"]


def test_only_as_many_as_the_queue_is_short_of_are_sent_after_an_end(
    hands: Hands, children: Children, relay: Relay, broker: Broker
) -> None:
    """
    Three wait in the queue and one was in the dead process's hands: one is sent.
    """
    process, worker = children.worker()
    for _ in range(4):
        hands.start()
    broker.send(hands.admit()[1:])
    start(relay)
    process.kill()
    until(lambda: len(broker.mine) > 3, 10, "what is missing is sent again")
    until(lambda: state(hands, worker) == "dead", 5)
    assert len(broker.mine) == 4


def test_what_was_sent_after_the_end_is_not_missed(hands: Hands, relay: Relay, broker: Broker) -> None:
    """
    The dead process cannot have taken it.
    """
    ended = time.monotonic() - 60.0
    hands.start()
    hands.admit()
    relay._neighbours.look = lambda: {uuid.uuid4(): ended}  # type: ignore[method-assign]
    relay.take_back_ended()
    assert broker.mine == []
    relay.find_missing(0.0)
    assert len(broker.mine) == 1


def test_a_relay_stops_at_once_and_watches_nobody(children: Children, relay: Relay) -> None:
    """
    Its rest ends with its work, and its descriptors are closed.
    """
    before = watched()
    children.row(children.idle().pid, place())
    start(relay)
    assert watched() > before
    began = time.monotonic()
    relay.stop()
    assert time.monotonic() - began < 4.0
    assert watched() == before


def test_an_end_while_postgres_is_away_is_looked_at_again(
    hands: Hands, children: Children, relay: Relay, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What goes wrong at one look is no reason to leave the dead to the slower way, or to stop the relay.
    """
    from agentq.errors import StoreUnavailable

    process, worker = children.worker()
    ref = hands.start()
    hands.admit()
    hands.claim(ref, worker=worker)
    looked: list[int] = []
    look = Workers.look_at_ended

    def unlucky(self: Workers, told_s: dict[uuid.UUID, float], *, lease_s: float) -> list[uuid.UUID]:
        looked.append(1)
        if len(looked) < 3:
            raise StoreUnavailable("away") if len(looked) == 1 else RuntimeError("and this never works")
        return look(self, told_s, lease_s=lease_s)

    monkeypatch.setattr(Workers, "look_at_ended", unlucky)
    start(relay)
    process.kill()
    until(lambda: [wake.step_id for wake in broker.mine] == [ref.step_id], 10, "it is sent again")
    assert len(looked) >= 3
