"""The bound without Celery: the same claim and settle statements, and a Redis list, in plain processes."""

from __future__ import annotations

import sys
import threading
import uuid

import redis

from agentq.settings import load
from agentq.step import StepRef, new_id
from agentq.store.ledger import Ledger
from agentq.store.pool import Store
from agentq.store.workers import Registration
from agentq.verdicts import Granted, NewStep, Settlement

QUEUE = "bench.raw"
SERVES = ["bench-chain@1"]


def work(ledger: Ledger, broker: redis.Redis, worker: uuid.UUID) -> None:
    """Pop an id, claim, settle with a successor, push its id, for ever."""
    while True:
        popped = broker.brpop([QUEUE], timeout=0)
        tenant, session, step, left = popped[1].decode().split()
        ref = StepRef(tenant, uuid.UUID(session), uuid.UUID(step))
        claim = ledger.claim(ref, token=int(uuid.uuid4().int >> 66), worker=worker, serves=SERVES, quarantine=False)
        assert isinstance(claim, Granted), claim
        state = claim.states[-1] if claim.states else claim.input
        assert state is not None
        if int(left) > 1:
            step_id = new_id()
            follower = NewStep(step_id, "hop", 4, 600.0)
            settlement = Settlement("next", kind="full", state=state, state_from=ref.step_id, steps=(follower,))
            ledger.settle(claim, settlement)
            broker.lpush(QUEUE, f"{tenant} {session} {step_id} {int(left) - 1}")
        else:
            ledger.settle(claim, Settlement("end", kind="full", state=state, result=b"null"))


def main(threads: int) -> None:
    """Run that many workers in this process until killed."""
    settings = load()
    store = Store(settings.database_url, size=threads + 2)
    ledger = Ledger(store)
    registration = Registration(store, group="raw", role="steps", host="bench", pid=0, release="0", serves=SERVES)
    registration.beat(3600)
    broker = redis.Redis.from_url(settings.broker_url, socket_timeout=None)
    workers = [threading.Thread(target=work, args=(ledger, broker, registration.worker_id)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main(int(sys.argv[1]))
