"""Worker processes as Postgres knows them: present by lease, hastened by an advisory lock."""

from __future__ import annotations

import secrets
import select
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg

from agentq.errors import StoreUnavailable
from agentq.step import StepRef
from agentq.store.pool import ALL_TENANTS, Connection, Store, run
from agentq.store.queries import load

SQL = load("workers")

Role = Literal["steps", "relay"]


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker process, as of its last heartbeat."""

    worker_id: uuid.UUID
    host: str
    pid: int
    group: str
    role: str
    release: str
    serves: list[str]
    state: str
    silent_s: float
    started_at: datetime
    delivered_at: datetime | None
    watchdog_restarts: int


@dataclass(frozen=True, slots=True)
class RestartedRow:
    """A process whose watchdog restarted its consumer, how often since it began, and how long ago at last."""

    host: str
    pid: int
    restarts: int
    ago_s: float


@dataclass(frozen=True, slots=True)
class UnservedRow:
    """Due steps that no live worker of their group could take: `pin` is agent@version."""

    pin: str
    group: str
    steps: int
    oldest_s: float


class Workers:
    """Registration, heartbeats, and the search for the dead."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def look_for_dead(self, *, lease_s: float, look_s: float) -> list[uuid.UUID]:
        """Processes found dead at this second look; their steps may be taken back."""
        rows = self.store.query(SQL["look_for_dead"], {"lease_s": lease_s, "look_s": look_s})
        return [row[0] for row in rows]

    def of_place(self, place: str) -> dict[uuid.UUID, int]:
        """The present workers of a place, as `agentq.neighbours` tells places apart, each with its pid."""
        return {row[0]: row[1] for row in self.store.query(SQL["of_place"], {"place": place})}

    def look_at_ended(self, told_s: dict[uuid.UUID, float], *, lease_s: float) -> list[uuid.UUID]:
        """
        Which of these are dead at this one look: processes whose end the kernel told, and how long ago.

        The others may only hold their lock still: Postgres needs a moment to see that a socket is closed.
        """
        facts = {"workers": list(told_s), "told_s": list(told_s.values()), "lease_s": lease_s}
        return [row[0] for row in self.store.query(SQL["look_at_ended"], facts)]

    def forget(self) -> None:
        """Remove rows of processes that ended a day ago."""
        self.store.query_as(ALL_TENANTS, SQL["forget"], {})

    def present(self) -> list[WorkerRow]:
        """The processes that live now."""
        rows = self.store.query(SQL["present"], {})
        return [WorkerRow(*row) for row in rows]

    def restarted(self) -> list[RestartedRow]:
        """The processes that restarted their own consumer in the last day, the latest first."""
        return [RestartedRow(*row) for row in self.store.query(SQL["restarted"], {})]

    def unserved(self) -> list[UnservedRow]:
        """What no live worker serves, the most first; steps of paused tenants and sessions wait on purpose."""
        return [UnservedRow(*row) for row in self.store.query_as(ALL_TENANTS, SQL["unserved"], {})]

    def tenants_served(self) -> int:
        """How many tenants the fleet works for."""
        return int(self.store.query(SQL["tenants_served"], {})[0][0])

    def to_stop(self, claims: list[tuple[StepRef, int]]) -> dict[uuid.UUID, Literal["fenced", "cancelled"]]:
        """Which of these claims were taken away, or have lost their session: by step, the reason to stop."""
        parameters = {
            "tenants": [ref.tenant for ref, _ in claims],
            "sessions": [ref.session_id for ref, _ in claims],
            "steps": [ref.step_id for ref, _ in claims],
            "tokens": [token for _, token in claims],
        }
        return {row[0]: row[1] for row in self.store.query_as(ALL_TENANTS, SQL["to_stop"], parameters)}

    def claimed(self, worker: uuid.UUID, age_s: float = 0.0) -> list[tuple[StepRef, int]]:
        """The steps that a process holds by the ledger for at least that long, each with its claim's token."""
        rows = self.store.query_as(ALL_TENANTS, SQL["claimed"], {"worker": worker, "age_s": age_s})
        return [(StepRef(tenant, session, step), token) for tenant, session, step, token in rows]

    def of_pids(self, host: str, pids: list[int]) -> list[uuid.UUID]:
        """The present workers among these processes of a host."""
        return [row[0] for row in self.store.query(SQL["of_pids"], {"host": host, "pids": pids})]


class Registration:
    """
    One process's row and liveness lock, on a connection of its own.

    The lock falls when the process dies, because its socket closes. A broken connection alone loses
    the lock too; `beat` then takes it again, and the relay, which looks twice, sees a newer heartbeat.
    While Postgres still counts the lock to a former connection, this one beats without it.
    """

    def __init__(
        self,
        store: Store,
        *,
        group: str,
        role: Role,
        host: str,
        pid: int,
        release: str,
        serves: list[str],
        slots: int = 0,
        place: str | None = None,
    ) -> None:
        self.worker_id = uuid.uuid4()
        self._store = store
        self._facts: dict[str, Any] = {
            "worker": self.worker_id,
            "lock_key": secrets.randbits(63),
            "host": host,
            "pid": pid,
            "place": place,
            "group": group,
            "role": role,
            "release": release,
            "serves": serves,
            "slots": slots,
        }
        self._connection: Connection | None = None
        self._registered = False
        self._locked = False

    def beat(
        self, lease_s: float, *, idle_s: float | None = None, restarts: int = 0, restarted_s: float | None = None
    ) -> str | None:
        """
        Renew the lease; the row's state, or None when this process was taken for dead.

        Raises:
            StoreUnavailable: Postgres is away; the lease runs on.
        """
        facts = self._facts | {
            "lease_s": lease_s, "idle_s": idle_s, "restarts": restarts, "restarted_s": restarted_s
        }  # fmt: skip
        if self._connection is not None and not self._connection.closed and _is_cut(self._connection):
            self.disconnect()  # or the first word over it would fail, and the lock be missing for another tick
        try:
            connection = self._connected()
            if not self._locked:
                self._locked = bool(run(connection, SQL["hold_lock"], self._facts)[0][0])
            if not self._registered:
                run(connection, SQL["register"], facts)
                self._registered = True
            rows = run(connection, SQL["beat"], facts)
        except psycopg.Error as error:
            self.disconnect()
            raise StoreUnavailable(str(error).strip()) from error
        return rows[0][0] if rows else None

    def holds_lock(self) -> bool:
        """Whether the lock is ours as far as this side can tell; asks the socket alone, so it costs nothing."""
        connection = self._connection
        return connection is not None and not connection.closed and self._locked and not _is_cut(connection)

    def drain(self) -> None:
        """Say that no further step is claimed here."""
        self._last_word("drain")

    def stop(self) -> None:
        """Say goodbye: the process ends on purpose and holds no step."""
        self._last_word("stop")
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection, and with it the lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _last_word(self, name: str) -> None:
        try:
            run(self._connected(), SQL[name], self._facts)
        except psycopg.Error as error:
            self.disconnect()
            raise StoreUnavailable(str(error).strip()) from error

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = psycopg.connect(self._store.url, **self._store.connect_arguments)
            self._connection, self._locked = connection, False
        return self._connection


def _is_cut(connection: Connection) -> bool:
    """Whether the other side has ended it. Postgres says nothing unasked: what can be read here is its goodbye."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
