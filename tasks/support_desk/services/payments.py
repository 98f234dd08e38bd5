"""
The payment provider: refunds over HTTP, under idempotency keys as the large providers honour them.

    POST /refunds   Idempotency-Key: …   {"payment", "amount_cents", "currency", "reason"}

The same key with the same body gets the stored answer, also when the first answer was lost; with
another body 422; while the first request still runs 409. Everything asked and done is in the record.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .outside import HOST, Temper, announce, arguments, end_with_starter, temper

TOKEN_VARIABLE = "PAYMENTS_TOKEN"  # noqa: S105 - the variable's name
BODY_MAX = 64 * 1024
SCHEMA = """
create table if not exists payment (payment text primary key, paid_cents integer not null, currency text not null);
create table if not exists request (
    id integer primary key, at real not null, key text, payment text, amount_cents integer, status integer
);
create table if not exists answer (
    key text primary key, body_hash text not null, status integer, body text, check ((status is null) = (body is null))
);
create table if not exists refund (
    id text primary key, at real not null, key text not null, payment text not null references payment,
    amount_cents integer not null check (amount_cents > 0), currency text not null
);
"""

Answer = tuple[int, dict[str, Any]]


class Record:
    """The provider's own books, in SQLite."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("pragma journal_mode = wal")
            connection.executescript(SCHEMA)

    def note_payments(self, payments: list[dict[str, Any]]) -> None:
        """Enter payments that customers made."""
        with self._writing() as connection:
            connection.executemany("insert or ignore into payment values (:payment, :paid_cents, :currency)", payments)

    def note_request(self, key: str, body: dict[str, Any]) -> int:
        """Enter that somebody asked, before anything is done about it."""
        with self._writing() as connection:
            row = connection.execute(
                "insert into request (at, key, payment, amount_cents) values (?, ?, ?, ?)",
                (time.time(), key, _text(body.get("payment")), _whole(body.get("amount_cents"))),
            )
            return row.lastrowid or 0

    def note_status(self, request: int, status: int) -> None:
        """Enter what the asker is told next, if it still listens."""
        with self._writing() as connection:
            connection.execute("update request set status = ? where id = ?", (status, request))

    def begin(self, key: str, body_hash: str) -> Answer | None:
        """Claim the key. An answer: it was used before."""
        with self._writing() as connection:
            row = connection.execute("select body_hash, status, body from answer where key = ?", (key,)).fetchone()
            if row is None:
                connection.execute("insert into answer (key, body_hash) values (?, ?)", (key, body_hash))
                return None
        if row[0] != body_hash:
            return 422, {"error": "idempotency_key_reused", "message": "this key was used with another request"}
        if row[1] is None:
            return 409, {"error": "in_progress", "message": "the first request with this key is still running"}
        return row[1], json.loads(row[2])

    def abandon(self, key: str) -> None:
        """Give the key back: nothing was done under it."""
        with self._writing() as connection:
            connection.execute("delete from answer where key = ? and status is null", (key,))

    def refund(self, key: str, body: dict[str, Any]) -> Answer:
        """Pay back and store the answer under its key, in one transaction."""
        with self._writing() as connection:
            status, answer = self._decide(connection, key, body)
            connection.execute(
                "update answer set status = ?, body = ? where key = ?", (status, json.dumps(answer), key)
            )
        return status, answer

    def _decide(self, connection: sqlite3.Connection, key: str, body: dict[str, Any]) -> Answer:
        payment, cents, currency = body.get("payment"), body.get("amount_cents"), body.get("currency")
        if not isinstance(payment, str) or not isinstance(cents, int) or isinstance(cents, bool) or cents <= 0:
            return 400, {"error": "bad_request", "message": "want payment, and amount_cents above 0"}
        paid = connection.execute("select paid_cents, currency from payment where payment = ?", (payment,)).fetchone()
        if paid is None:
            return 404, {"error": "no_such_payment", "message": f"no payment {payment}"}
        [back] = connection.execute(
            "select coalesce(sum(amount_cents), 0) from refund where payment = ?", (payment,)
        ).fetchone()
        if currency != paid[1] or back + cents > paid[0]:
            return 422, {"error": "amount_not_refundable", "message": f"{back} of {paid[0]} {paid[1]} are paid back"}
        refund = f"re_{secrets.token_hex(8)}"
        connection.execute(
            "insert into refund values (?, ?, ?, ?, ?, ?)", (refund, time.time(), key, payment, cents, currency)
        )
        return 201, {"id": refund, "payment": payment, "amount_cents": cents, "currency": currency}

    def refunds(self) -> list[dict[str, Any]]:
        """Every refund made."""
        return self._rows("select * from refund order by at")

    def requests(self) -> list[dict[str, Any]]:
        """Every request for a refund, with the status that was answered; none: not decided yet."""
        return self._rows("select * from request order by id")

    def _rows(self, query: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            connection.execute("begin immediate")  # read and write as one: two requests with one key must not both pass
            try:
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")


class Provider(ThreadingHTTPServer):
    """The server: one thread per request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, record: Record, temper: Temper, token: str, port: int = 0) -> None:
        super().__init__((HOST, port), _Door)
        self.record, self.temper, self.token = record, temper, token

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"


class _Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Provider

    def do_GET(self) -> None:
        self._answer(*((200, {"ok": True}) if self.path == "/health" else (404, {"error": "not_found"})))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_MAX:
            self.close_connection = True
            self._answer(413, {"error": "too_large"})
            return
        raw = self.rfile.read(int(length))
        if self.path != "/refunds":
            self._answer(404, {"error": "not_found"})
        elif not secrets.compare_digest(self.headers.get("Authorization", ""), f"Bearer {self.server.token}"):
            self._answer(401, {"error": "unauthorized"})
        else:
            self._refund(raw)

    def _refund(self, raw: bytes) -> None:
        key = self.headers.get("Idempotency-Key", "")
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict) or not key:
            self._answer(400, {"error": "bad_request", "message": "want a JSON object and an Idempotency-Key"})
            return
        request = self.server.record.note_request(key, body)
        answer = self._carry_out(key, body, hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest())
        self.server.record.note_status(request, answer[0])
        self._answer(*answer)

    def _carry_out(self, key: str, body: dict[str, Any], body_hash: str) -> Answer:
        record, temper = self.server.record, self.server.temper
        known = record.begin(key, body_hash)
        if known:
            return known
        mood = temper.mood()
        time.sleep(temper.pause_s())
        if mood == "refuses":
            record.abandon(key)
            return 503, {"error": "unavailable", "message": "try again"}
        answer = record.refund(key, body)
        # From here on the refund is made, whether or not the asker lives to hear of it.
        time.sleep(temper.slow_s if mood == "dawdles" else temper.pause_s())
        return (502, {"error": "bad_gateway"}) if mood == "forgets" else answer

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status in (409, 503):
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the asker hung up, or was killed

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the record has it."""


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and abs(value) < 2**62 else None


def main() -> None:
    """Serve until told to stop."""
    parser = arguments(__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--payments", type=Path, help="JSON lines: payment, paid_cents, currency")
    options = parser.parse_args()
    record = Record(options.record)
    if options.payments:
        record.note_payments([json.loads(line) for line in options.payments.read_text("utf-8").splitlines()])
    provider = Provider(record, temper(options), os.environ[TOKEN_VARIABLE], options.port)
    announce(options.address_file, url=provider.url)
    if options.with_starter:
        end_with_starter()
    provider.serve_forever()


if __name__ == "__main__":
    main()
