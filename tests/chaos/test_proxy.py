"""The proxy does to bytes what it is told, and says how many it did it to."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from agentq.chaos.proxy import Link, Proxy


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


@pytest.fixture
def link() -> Iterator[Link]:
    """A link to a server that says everything again."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy()
    try:
        yield proxy.link("echo", lambda: server.server_address[1])
    finally:
        proxy.stop()
        server.shutdown()
        server.server_close()


def _connect(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=5)


def _echo(connection: socket.socket, words: bytes = b"hello") -> bytes:
    connection.sendall(words)
    return connection.recv(100)


def test_it_passes_bytes_on(link: Link) -> None:
    """Untold, it is not there."""
    with _connect(link) as connection:
        assert _echo(connection) == b"hello"
    assert link.counts.connections == 1


def test_slow(link: Link) -> None:
    """Each way takes the latency, at least half of it."""
    with _connect(link) as connection:
        link.slow(0.1)
        began = time.monotonic()
        assert _echo(connection) == b"hello"
        assert time.monotonic() - began >= 0.1
        assert link.counts.delayed == 2


def test_cut(link: Link) -> None:
    """A reset, not a goodbye; the next connection works."""
    with _connect(link) as connection:
        assert _echo(connection) == b"hello"
        link.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert link.counts.cut == 1
    with _connect(link) as connection:
        assert _echo(connection) == b"hello"


def test_a_stall_that_delivers_late(link: Link) -> None:
    """Nothing comes through until it flows again; then all of it does."""
    with _connect(link) as connection:
        assert _echo(connection) == b"hello"
        link.stall()
        connection.sendall(b"late")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        link.flow(late=True)
        connection.settimeout(5)
        assert connection.recv(100) == b"late"
    assert link.counts.held == 4


def test_a_stall_that_loses(link: Link) -> None:
    """What was held never arrives."""
    with _connect(link) as connection:
        link.stall()
        connection.sendall(b"lost")
        time.sleep(0.1)
        link.flow(late=False)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_parted(link: Link) -> None:
    """New connections are refused, old ones silent; afterwards the old are reset and the same port works."""
    with _connect(link) as connection:
        assert _echo(connection) == b"hello"
        link.part()
        with pytest.raises(ConnectionRefusedError):
            _connect(link)
        connection.settimeout(0.1)
        connection.sendall(b"anybody")
        with pytest.raises(TimeoutError):
            connection.recv(1)
        link.join()
        connection.settimeout(5)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with _connect(link) as connection:
        assert _echo(connection) == b"hello"
