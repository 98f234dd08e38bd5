"""
A TCP proxy between a worker and its servers: it slows, cuts, swallows and refuses, as networks do.

One asyncio loop in a thread of its own carries every link. A link that is not told anything passes bytes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from agentq.embedded import ports

CHUNK_BYTES = 64 * 1024
HOST = "127.0.0.1"
LISTEN_TRIES = 50


@dataclass
class Counts:
    """What a link did: the evidence that a fault on it hit something."""

    connections: int = 0
    delayed: int = 0
    cut: int = 0
    held: int = 0
    refused: int = 0


@dataclass(eq=False)
class _Pair:
    """One connection from a worker, and ours to the server."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    broken: bool = False

    def abort(self) -> None:
        """Cut both sides with a reset; what is on its way is lost."""
        self.broken = True
        for writer in (self.near, self.far):
            raw = writer.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Link:
    """One address that stands for a server. Told what to do from any thread."""

    def __init__(self, name: str, port: Callable[[], int], loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.counts = Counts()
        self.port = 0
        self._target = port
        self._loop = loop
        self._latency_s = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._closed = False
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None

    # ── what a network can do to it ──────────────────────────────────────────

    def slow(self, latency_s: float) -> None:
        """Each piece of data takes about so much longer; 0 ends it."""
        self._do(self._set_latency(latency_s))

    def cut(self) -> None:
        """Reset every connection; new ones are welcome."""
        self._do(self._cut())

    def stall(self) -> None:
        """Swallow silently from now on: connections stay open, and nothing comes through."""
        self._do(self._stall())

    def flow(self, *, late: bool) -> None:
        """End the stall. With `late` what was held is delivered now, else it is lost with its connections."""
        self._do(self._flow(late))

    def part(self) -> None:
        """Refuse new connections, and hold the old ones without a word."""
        self._do(self._part())

    def join(self) -> None:
        """End the partition: the old connections are reset, new ones are welcome."""
        self._do(self._join())

    # ── inside the loop ──────────────────────────────────────────────────────

    async def listen(self) -> None:
        """Take connections, on the same port each time."""
        for tries in range(LISTEN_TRIES):
            try:
                self._server = await asyncio.start_server(self._carry, HOST, self.port, backlog=256)
                break
            except OSError:  # another program may hold the port for a moment
                if tries == LISTEN_TRIES - 1:
                    raise
                await asyncio.sleep(0.1)
        assert self._server is not None
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._closed = True
        if self._server is not None:
            self._server.close()
        for pair in list(self._pairs):
            pair.abort()

    async def _carry(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self.counts.connections += 1
        try:
            far_reader, far = await asyncio.open_connection(HOST, self._target())
        except OSError:
            self.counts.refused += 1
            near.transport.abort()
            return
        pair = _Pair(near, far)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._pump(reader, far, pair), self._pump(far_reader, near, pair))
        finally:
            self._pairs.discard(pair)
            for writer in (near, far):
                with contextlib.suppress(OSError):
                    writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self._latency_s:
                    self.counts.delayed += 1
                    await asyncio.sleep(self._latency_s * random.uniform(0.5, 1.5))
                if not self._flowing.is_set():
                    self.counts.held += len(data)
                    await self._flowing.wait()
                if pair.broken:
                    return
                writer.write(data)
                await writer.drain()
            await self._flowing.wait()  # a silent network does not tell of a goodbye either
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            pair.abort()

    async def _set_latency(self, latency_s: float) -> None:
        self._latency_s = latency_s

    async def _cut(self) -> None:
        self.counts.cut += len(self._pairs)
        for pair in list(self._pairs):
            pair.abort()

    async def _stall(self) -> None:
        self._flowing.clear()

    async def _flow(self, late: bool) -> None:
        if not late:
            await self._cut()
        self._flowing.set()

    async def _part(self) -> None:
        self._flowing.clear()
        if self._server is not None:
            self._server.close()

    async def _join(self) -> None:
        await self._cut()
        self._flowing.set()
        if not self._closed:
            await self.listen()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30.0)


class Proxy:
    """The links, and the thread that carries them."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agentq-chaos-proxy", daemon=True)
        self._thread.start()

    def link(self, name: str, port: Callable[[], int]) -> Link:
        """A new link to whatever listens at that port when a connection comes."""
        link = Link(name, port, self._loop)
        link.port = ports.pick()  # outside the range from which the kernel gives ports to everybody
        asyncio.run_coroutine_threadsafe(link.listen(), self._loop).result(timeout=30.0)
        self.links[name] = link
        return link

    def stop(self) -> None:
        """Cut everything and end the thread."""
        if not self._thread.is_alive():
            return
        for link in self.links.values():
            asyncio.run_coroutine_threadsafe(link.close(), self._loop).result(timeout=10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10.0)
