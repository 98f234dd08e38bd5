"""An outside service with a record of its own: what was called, under which key. It knows nothing of agentq."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import sys
import threading
import time
from pathlib import Path
from typing import Any


class Record:
    """Every request in the order of its arrival, kept in a file that the test reads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._lock = threading.Lock()
        self._answers: dict[str, str] = {}

    def take(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._file.write(json.dumps({"at": time.time(), **request}) + "\n")
            if request["kind"] == "call":
                self._answers[request["key"]] = request["answer"]
            return {"answer": self._answers.get(request.get("key", ""))}


class Handler(socketserver.StreamRequestHandler):
    """One request, one answer, each a line of JSON. A request may ask the service to be slow."""

    def handle(self) -> None:
        line = self.rfile.readline()
        if not line:
            return  # killed before it could ask
        request = json.loads(line)
        answer = self.server.record.take(request)  # type: ignore[attr-defined]
        time.sleep(request.get("pause_s", 0.0))
        with contextlib.suppress(OSError):  # killed before it could listen
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


def ask(port: int, **request: Any) -> Any:
    """Call the service and return its answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(connection.makefile("rb").readline())["answer"]


if __name__ == "__main__":
    with Server(("127.0.0.1", 0), Handler) as server:
        server.record = Record(Path(sys.argv[1]))  # type: ignore[attr-defined]
        print(server.server_address[1], flush=True)
        server.serve_forever()
