"""
The mail server: takes messages over SMTP, delivers them to nobody, and keeps each in its record.

SMTP knows no idempotency: a message sent twice is two messages. So the server can be asked, as the
logs of a real one can:

    GET /messages/<message-id>      200 {"accepted_at", "to"} or 404
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
import os
import secrets
import sqlite3
import threading
import time
import urllib.parse
import warnings
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from .outside import HOST, Temper, announce, arguments, end_with_starter, temper

TOKEN_VARIABLE = "MAIL_TOKEN"  # noqa: S105 - the variable's name
SIZE_MAX = 1_000_000
SCHEMA = """
create table if not exists message (
    id integer primary key, at real not null, message_id text not null, sender text not null, recipient text not null,
    subject text not null, ticket text not null, raw blob not null
);
create index if not exists message_by_id on message (message_id);
create table if not exists refused (id integer primary key, at real not null, message_id text not null);
"""


class Record:
    """Every message that the server took, in SQLite. One sent twice is in it twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("pragma journal_mode = wal")
            connection.executescript(SCHEMA)

    def accept(self, sender: str, recipients: list[str], raw: bytes) -> None:
        """Take a message: from here on it is delivered."""
        message = email.message_from_bytes(raw, policy=email.policy.default)
        facts = {
            "at": time.time(),
            "message_id": str(message.get("Message-ID", "")).strip(),
            "sender": sender,
            "recipient": ", ".join(recipients),
            "subject": str(message.get("Subject", "")),
            "ticket": str(message.get("X-Ticket", "")).strip(),
            "raw": raw,
        }
        self._write(
            "insert into message (at, message_id, sender, recipient, subject, ticket, raw)"
            " values (:at, :message_id, :sender, :recipient, :subject, :ticket, :raw)",
            facts,
        )

    def refuse(self, raw: bytes) -> None:
        """Note a message that was turned away for now."""
        message = email.message_from_bytes(raw)
        facts = {"at": time.time(), "message_id": str(message.get("Message-ID", "")).strip()}
        self._write("insert into refused (at, message_id) values (:at, :message_id)", facts)

    def messages(self) -> list[dict[str, Any]]:
        """Every message taken, without its body."""
        return self._rows("select id, at, message_id, sender, recipient, subject, ticket from message order by id")

    def text(self, ticket: str) -> str:
        """The text of the latest message about a ticket; empty when there is none."""
        rows = self._rows("select raw from message where ticket = ? order by id desc limit 1", ticket)
        if not rows:
            return ""
        message = email.message_from_bytes(rows[0]["raw"], policy=email.policy.default)
        return str(message.get_content())

    def refusals(self) -> int:
        """How many messages were turned away for now."""
        return int(self._rows("select count(*) as n from refused")[0]["n"])

    def find(self, message_id: str) -> dict[str, Any] | None:
        """The message of that id, if it was taken."""
        rows = self._rows("select at, recipient from message where message_id = ? order by id limit 1", message_id)
        return rows[0] if rows else None

    def _rows(self, query: str, *parameters: str) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.path, timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, parameters)]

    def _write(self, query: str, facts: dict[str, Any]) -> None:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
            connection.execute(query, facts)


class Handler:
    """What aiosmtpd asks when a message has arrived."""

    def __init__(self, record: Record, temper: Temper) -> None:
        self.record, self.temper = record, temper

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """Take a message, or say why not; aiosmtpd calls it by position."""
        raw = envelope.original_content or b""
        mood = self.temper.mood()
        await asyncio.sleep(self.temper.pause_s())
        if mood == "refuses":
            self.record.refuse(raw)
            return "451 4.7.1 Greylisted, try again"
        self.record.accept(envelope.mail_from or "", list(envelope.rcpt_tos), raw)
        # From here on the message is out, whether or not the sender lives to hear of it.
        await asyncio.sleep(self.temper.slow_s if mood == "dawdles" else self.temper.pause_s())
        return "421 4.3.0 Lost the answer" if mood == "forgets" else "250 2.0.0 Accepted"


class _Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Questions

    def do_GET(self) -> None:
        kind, _, message_id = self.path.lstrip("/").partition("/")
        if kind == "health":
            self._answer(200, {"ok": True})
        elif not secrets.compare_digest(self.headers.get("Authorization", ""), f"Bearer {self.server.token}"):
            self._answer(401, {"error": "unauthorized"})
        elif kind == "messages" and (found := self.server.record.find(urllib.parse.unquote(message_id))):
            self._answer(200, {"accepted_at": found["at"], "to": found["recipient"]})
        else:
            self._answer(404, {"error": "not_found"})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the record has it."""


class _Questions(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, record: Record, token: str, port: int) -> None:
        super().__init__((HOST, port), _Door)
        self.record, self.token = record, token


class Sink:
    """Both doors of the mail server: SMTP on an event loop, questions over HTTP on threads."""

    def __init__(self, record: Record, temper: Temper, token: str, smtp_port: int = 0, http_port: int = 0) -> None:
        self.record, self.temper, self.token = record, temper, token
        self.questions = _Questions(record, token, http_port)
        self.smtp_port = smtp_port
        self._loop = asyncio.new_event_loop()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.questions.server_address[1]}"

    def start(self) -> None:
        """Listen on both doors; returns when both are open."""
        open_ = threading.Event()
        threading.Thread(target=self._run, args=(open_,), name="smtp", daemon=True).start()
        threading.Thread(target=self.questions.serve_forever, name="questions", daemon=True).start()
        if not open_.wait(10):
            raise TimeoutError("the SMTP server did not start")

    def stop(self) -> None:
        """Close both doors."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.questions.shutdown()
        self.questions.server_close()

    def _run(self, open_: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        handler = Handler(self.record, self.temper)

        def connection() -> SMTP:
            return SMTP(
                handler,
                hostname="mail.example",
                data_size_limit=SIZE_MAX,
                enable_SMTPUTF8=True,
                authenticator=self._authenticate,
                auth_required=True,
                auth_require_tls=False,  # loopback only
                loop=self._loop,
            )

        server = self._loop.run_until_complete(self._loop.create_server(connection, HOST, self.smtp_port))
        self.smtp_port = server.sockets[0].getsockname()[1]
        open_.set()
        self._loop.run_forever()
        server.close()

    def _authenticate(
        self, _server: object, _session: object, _envelope: object, _how: str, data: object
    ) -> AuthResult:
        given = data.password if isinstance(data, LoginPassword) else b""
        return AuthResult(success=secrets.compare_digest(given, self.token.encode()), handled=False)


def main() -> None:
    """Serve until told to stop."""
    parser = arguments(__doc__)
    parser.add_argument("--smtp-port", type=int, default=0)
    parser.add_argument("--http-port", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Requiring AUTH")  # without TLS: loopback only
    sink = Sink(
        Record(options.record), temper(options), os.environ[TOKEN_VARIABLE], options.smtp_port, options.http_port
    )
    sink.start()
    announce(options.address_file, smtp=f"{HOST}:{sink.smtp_port}", url=sink.url)
    if options.with_starter:
        end_with_starter()
    threading.Event().wait()


if __name__ == "__main__":
    main()
