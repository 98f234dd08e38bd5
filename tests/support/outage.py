"""An agent that needs a provider, and the provider: a server that can be out of order, and counts its calls."""

from __future__ import annotations

import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from pydantic import BaseModel

from agentq import Agent, Context, Done, Next


class Ask(BaseModel):
    """Where to ask, how often, and for what dependency."""

    url: str = "http://127.0.0.1:9/"
    asked: int = 0
    until: int = 2


asker = Agent("asker", state=Ask)


@asker.step(start=True, needs="test-provider", retries=2)
def ask(state: Ask, ctx: Context) -> Next | Done:
    request = urllib.request.Request(state.url, headers={"Authorization": ctx.tenant})
    with urllib.request.urlopen(request, timeout=5) as answer:
        answer.read()
    state.asked += 1
    return Next(ask, state) if state.asked < state.until else Done(state.asked)


class Provider:
    """A provider in this process. `down` answers 503; a tenant in `denied` is told that its key is bad."""

    def __init__(self) -> None:
        self.down = False
        self.denied: set[str] = set()
        self.calls = 0
        self.calls_while_down = 0
        self._lock = threading.Lock()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(provider._answer(self.headers["Authorization"]))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: the tests count."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def _answer(self, tenant: str) -> int:
        with self._lock:
            self.calls += 1
            self.calls_while_down += self.down
        return 503 if self.down else 401 if tenant in self.denied else 200

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
