"""A TCP proxy to a broker that can go mute towards consumers: their connections stay open, nothing comes through."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

# What only consumers send: Redis's BRPOP, and AMQP's basic.consume (class 60, method 20).
_CONSUMERS_SAY = (b"BRPOP", b"\x00\x3c\x00\x14")


class MuteProxy:
    """Passes everything on, until it is told to swallow what consumers should hear."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._consumers: set[int] = set()
        self._muted: set[int] = set()
        self.always_mute = False
        self._count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def mute(self) -> None:
        """From now on, consumers that are connected hear nothing; those that connect anew do."""
        self._muted |= set(self._consumers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._count += 1
            for source, sink, asks in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pump, args=(self._count, source, sink, asks), daemon=True).start()

    def _pump(self, number: int, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        try:
            while data := source.recv(65536):
                if asks and any(word in data for word in _CONSUMERS_SAY):
                    self._consumers.add(number)
                    if self.always_mute:
                        self._muted.add(number)
                if asks or number not in self._muted:
                    sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
