"""Encryption: what it costs a step that its payloads are sealed and opened, in turn with the same steps in plain."""

from __future__ import annotations

import secrets
import statistics
import time
import uuid
from contextlib import closing
from dataclasses import dataclass

from agentq.payload import fingerprint
from agentq.settings import Settings
from agentq.step import StepRef, new_id
from agentq.store import sealing
from agentq.store.ledger import Ledger
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.store.providers import LocalKeys
from agentq.store.sessions import NewSession, Sessions
from agentq.store.vault import SQL
from agentq.store.workers import Registration
from agentq.verdicts import Granted, NewStep, Settlement

PIN = "bench@1"
# As random as text gets: Postgres would compress what repeats itself, and cannot compress what is encrypted.
STATE = b'{"pad": "%s"}' % secrets.token_hex(950).encode()


@dataclass(frozen=True)
class Cost:
    """Microseconds for each step, claim and settlement in one thread; and those that are ciphers' alone."""

    plain_us: float
    sealed_us: float
    ciphers_us: float

    @property
    def ratio(self) -> float:
        return self.sealed_us / self.plain_us


def measure(settings: Settings, *, rounds: int, steps: int) -> Cost:
    """Chains of steps with 2 kB of state and arguments, plain and sealed taking turns."""
    plain = Store(settings.database_url, size=2, name="agentq bench plain")
    keyed = Store(settings.database_url, size=2, name="agentq bench keyed", keys=LocalKeys([secrets.token_bytes(32)]))
    with closing(plain), closing(keyed):
        chains = [_Chain(store, f"bench-{name}") for store, name in ((plain, "plain"), (keyed, "keyed"))]
        for chain in chains:
            chain.run(50)
        took: list[list[float]] = [[], []]
        for number in range(rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                took[which].append(chains[which].run(steps))
        found = Cost(*(statistics.median(each) for each in took), _ciphers(keyed, 2000))
        for chain in chains:
            chain.registration.stop()
        # Or the next fleet on these servers would ask for the key that nobody has.
        for tenant in (chains[1].tenant, "bench-ciphers"):
            keyed.query_as(tenant, SQL["destroy"], {"tenant": tenant})
    return found


class _Chain:
    """A session that goes on step by step, as a worker would carry it, without agents and broker."""

    def __init__(self, store: Store, tenant: str) -> None:
        self.store, self.ledger, self.tenant = store, Ledger(store), f"{tenant}-{secrets.token_hex(3)}"
        Operators(store).add_tenant(self.tenant, concurrency=10, weight=1, operator="bench", reason="bench")
        self.registration = Registration(
            store, group="default", role="steps", host="bench", pid=1, release="0", serves=[PIN]
        )
        self.registration.beat(3600.0)

    def run(self, steps: int) -> float:
        """So many steps of a new session; microseconds for each."""
        ref = self._start()
        began = time.perf_counter()
        for number in range(steps):
            claim = self._claim(ref)
            following = NewStep(new_id(), "next", 3, 30.0, args=b'{"number": %d}' % number)
            self.ledger.settle(claim, _settlement(claim, number, following))
            ref = StepRef(self.tenant, ref.session_id, following.step_id)
        claim = self._claim(ref)
        self.ledger.settle(claim, Settlement("end", kind="full", state=STATE, result=b"null"))
        return (time.perf_counter() - began) / steps * 1e6

    def _start(self) -> StepRef:
        new = NewSession(self.tenant, new_id(), "bench", 1, None, STATE, fingerprint(STATE), new_id(), "next", 3, 30.0)
        Sessions(self.store).start([new], create_with=None)
        self.ledger.admit(self.tenant, 10)
        return StepRef(self.tenant, new.session_id, new.step_id)

    def _claim(self, ref: StepRef) -> Granted:
        found = self.ledger.claim(
            ref, token=secrets.randbits(63), worker=self.registration.worker_id, serves=[PIN], quarantine=False
        )
        assert isinstance(found, Granted), found
        return found


def _settlement(claim: Granted, number: int, following: NewStep) -> Settlement:
    state = b'{"number": %d, ' % number + STATE[1:]
    return Settlement("next", kind="full", state=state, state_from=claim.ref.step_id, steps=(following,))


def _ciphers(store: Store, times: int) -> float:
    """Sealing and opening what a step holds, without any statement."""
    tenant, step = "bench-ciphers", uuid.uuid4()
    store.vault.seal(tenant, ("warm",), b"up")
    place, args = sealing.state_in(step), sealing.args_at(step, step)
    began = time.perf_counter()
    for _ in range(times):
        store.vault.open(tenant, place, store.vault.seal(tenant, place, STATE, row=bytes(32)))
        store.vault.open(tenant, args, store.vault.seal(tenant, args, b'{"number": 1}'))
    return (time.perf_counter() - began) / times * 1e6
