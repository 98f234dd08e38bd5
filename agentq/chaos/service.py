"""
The effects service: a process of its own with a record of its own. It knows nothing of agentq.

`python service.py RECORD [HOST:PORT]` prints its port, then serves until standard input closes. A request is
one line of JSON, and so is the answer. Each request is recorded when it arrives, before anything is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import re
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

_PARTS = re.split(
    r"^-- name: (\w+)$", Path(__file__).with_name("sql").joinpath("service.sql").read_text("utf-8"), flags=re.MULTILINE
)
SQL = dict(zip(_PARTS[1::2], _PARTS[2::2], strict=True))


class Record:
    """Every request in the order of its arrival. A crash of the machine may lose its end, a crash of ours does not."""

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(path, isolation_level=None)
        self._base.execute("pragma journal_mode = wal")
        self._base.execute("pragma synchronous = off")
        self._base.executescript(SQL["schema"])

    def arrived(self, request: dict[str, Any]) -> int:
        """Note it; its number."""
        names = ("what", "session", "place", "kind", "key", "value")
        row = [str(request.get(name, "")) for name in names]
        cursor = self._base.execute(SQL["arrived"], [*row, int(request.get("pid", 0)), time.time()])
        return int(cursor.lastrowid or 0)

    def apply(self, number: int) -> None:
        """The change is made."""
        self._base.execute(SQL["apply"], (number,))

    def applied(self, key: str) -> tuple[str, str, str] | None:
        """Session, place and value of the change made under the key."""
        found: tuple[str, str, str] | None = self._base.execute(SQL["applied"], (key,)).fetchone()
        return found

    def ended(self, number: int, fate: str) -> None:
        """How the request ended, as far as this side knows."""
        self._base.execute(SQL["ended"], (fate, time.time(), number))


class Weather:
    """How badly the service behaves: shares of the calls, set from outside, drawn from a seed."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._draw = random.Random(0)

    def set(self, shares: dict[str, float], seed: int) -> None:
        self._shares, self._draw = dict(shares), random.Random(seed)

    def next(self) -> str:
        """What becomes of the next call: `answered`, or one of `refused`, `lost`, `hung`, `garbage`."""
        drawn = self._draw.random()
        for fate, share in self._shares.items():
            if drawn < share:
                return fate
            drawn -= share
        return "answered"

    def before(self) -> bool:
        """Whether a call that will not be answered is performed first."""
        return self._draw.random() < 0.5


class Service:
    """Takes requests until the end."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.weather = Weather()
        self._open: dict[int, dict[str, Any]] = {}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            line = await reader.readline()
            if line.endswith(b"\n"):
                await self._take(json.loads(line), reader, writer)
        except (OSError, ValueError):
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _take(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match request.get("what"):
            case "weather":
                self.weather.set(request["shares"], request["seed"])
                await _say(writer, {})
            case "open":
                await _say(writer, {"open": list(self._open.values())})
            case "call" | "ask" | "ran":
                await self._record(request, reader, writer)
            case _:
                await _say(writer, {"error": "unknown request"})

    async def _record(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        number = self.record.arrived(request)
        self._open[number] = {name: request.get(name) for name in ("what", "session", "place", "kind", "pid")}
        fate = "cut"
        try:
            fate = await self._answer(number, request, reader, writer)
        except OSError:
            pass
        finally:
            del self._open[number]
            self.record.ended(number, fate)

    async def _answer(
        self, number: int, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        if request["what"] == "ran":
            await _say(writer, {})
            return "answered"
        if request["what"] == "ask":
            known = self.record.applied(request["key"])
            await _say(writer, {"answer": _answer_to(*known) if known else None})
            return "answered"
        fate = self.weather.next()
        if fate == "refused":
            await _say(writer, {"error": "unavailable"})
            return fate
        if fate == "answered" or self.weather.before():
            self._perform(number, request)
        if await _gone(reader, 60.0 if fate == "hung" else float(request.get("pause_s", 0.0))):
            return "cut" if fate == "answered" else fate
        match fate:
            case "garbage":
                writer.write(b'\x00{"answer": [[[\xff\xfe<html>502</html>\n')
                await writer.drain()
            case "answered":
                known = self.record.applied(request["key"])
                await _say(writer, {"answer": _answer_to(*known) if known else None})
        return fate  # `lost` and `hung` end without a word

    def _perform(self, number: int, request: dict[str, Any]) -> None:
        # An idempotent service does once what it is asked for twice under one key. The others do it again.
        if request["kind"] == "idempotent" and self.record.applied(request["key"]):
            return
        self.record.apply(number)


def _answer_to(session: str, place: str, value: str) -> str:
    return hashlib.sha256(f"{session}|{place}|{value}".encode()).hexdigest()[:16]


async def _gone(reader: asyncio.StreamReader, pause_s: float) -> bool:
    """Wait; whether the caller went away meanwhile."""
    try:
        return not await asyncio.wait_for(reader.read(1), max(pause_s, 0.001))
    except TimeoutError:
        return False


async def _say(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    await writer.drain()


async def _until_let_go() -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.buffer.read)


async def main(record: Path, host: str, port: int) -> None:
    """Serve until whoever started us lets go of our standard input."""
    service = Service(Record(record))
    server = await asyncio.start_server(service.handle, host, port, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await _until_let_go()


if __name__ == "__main__":
    _host, _, _port = (sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:0").rpartition(":")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1]), _host, int(_port)))
