"""A server on loopback that speaks OpenAI's chat completions, and misbehaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Request = dict[str, Any]


@dataclass
class Reply:
    """One answer of the server."""

    text: str | None = None
    calls: Sequence[tuple[str, Any]] = ()
    finish: str | None = None
    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    hang: bool = False
    tokens: tuple[int, int] = (50, 10)


def error(status: int, code: str, message: str = "no", **headers: str) -> Reply:
    """An error as OpenAI words it."""
    body = {"message": message, "type": code, "code": code}
    return Reply(status=status, error=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: clients are killed on purpose."""


class OpenAIServer:
    """Answers from `replies` in turn, or from a function of the request; keeps what it was asked, if told to."""

    def __init__(self, *replies: Reply, answer: Callable[[Request], Reply] | None = None, keep: bool = True) -> None:
        self.replies = list(replies)
        self.requests: list[Request] = []
        self.over = threading.Event()
        self._answer = answer
        self._keep = keep
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def model(self, name: str = "gpt-5-mini") -> Any:
        """A Pydantic AI model whose requests come here."""
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        return OpenAIChatModel(name, provider=OpenAIProvider(base_url=self.url, api_key="sk-test-secret"))

    def reply_to(self, request: Request) -> Reply:
        with self._lock:
            if self._keep:
                self.requests.append(request)
            if self._answer is not None:
                return self._answer(request)
            return self.replies.pop(0)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(body)
                reply = server.reply_to(request)
                if reply.hang:
                    server.over.wait(30)
                    return
                if request.get("stream") and reply.status == 200 and reply.raw is None:
                    self._send("text/event-stream", _stream(reply), reply)
                else:
                    self._send("application/json", _body(reply), reply)

            def _send(self, kind: str, body: bytes, reply: Reply) -> None:
                self.send_response(reply.status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        return Handler


def _body(reply: Reply) -> bytes:
    if reply.raw is not None:
        return reply.raw
    if reply.error is not None:
        return json.dumps({"error": reply.error}).encode()
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.calls:
        message["tool_calls"] = _calls(reply)
    choice = {"index": 0, "message": message, "finish_reason": _finish(reply)}
    return json.dumps(_envelope("chat.completion") | {"choices": [choice], "usage": _usage(reply)}).encode()


def _stream(reply: Reply) -> bytes:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f"{word} "} for word in (reply.text or "").split()]
    deltas += [{"tool_calls": [call | {"index": n}]} for n, call in enumerate(_calls(reply))]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": _finish(reply)}]})
    chunks.append({"choices": [], "usage": _usage(reply)})
    lines = [json.dumps(_envelope("chat.completion.chunk") | chunk) for chunk in chunks]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


def _calls(reply: Reply) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{n}_{name}",
            "type": "function",
            "function": {"name": name, "arguments": args if isinstance(args, str) else json.dumps(args)},
        }
        for n, (name, args) in enumerate(reply.calls)
    ]


def _finish(reply: Reply) -> str:
    return reply.finish or ("tool_calls" if reply.calls else "stop")


def _usage(reply: Reply) -> dict[str, int]:
    given, made = reply.tokens
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def _envelope(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "gpt-5-mini"}
