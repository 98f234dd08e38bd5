"""
Headless Chromium, driven over its DevTools protocol: pages opened, keys pressed, sizes measured, pictures taken.

It needs Chromium and nothing from Python that Flower does not bring: the socket is Tornado's.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from base64 import b64decode, b64encode
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tornado.websocket import WebSocketClientConnection, websocket_connect

PHONE = (390, 844)
DESK = (1280, 900)
_START_S, _LOAD_S = 30.0, 30.0
# Where what is drawn ends: the document is never shorter than the window.
_BOTTOM = "(document.querySelector('main') || document.body).getBoundingClientRect().bottom + scrollY"
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "Space": 32}


def program() -> str | None:
    """Chromium, where one is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """One browser with one page. What its scripts and its policy complain about is kept in `errors`."""

    def __init__(self, login: str = "") -> None:
        found = program()
        assert found is not None, "no Chromium is installed: apt-get install chromium"
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
             "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={self._folder.name}",
             "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.errors: list[str] = []
        self._events: list[dict[str, Any]] = []
        self._number = 0
        self._loop = asyncio.new_event_loop()
        self._socket = self._connect()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        if login:
            header = f"Basic {b64encode(login.encode()).decode()}"
            self.send("Network.setExtraHTTPHeaders", headers={"Authorization": header})
        self.resize(*DESK)

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """The window's size; as on a phone, with a finger for a pointer."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)

    def open(self, address: str) -> None:
        """Go there, and wait until all of it is loaded."""
        self._events.clear()
        went = self.send("Page.navigate", url=address)
        assert "errorText" not in went, went
        self.wait_for("Page.loadEventFired")

    def wait_for(self, event: str) -> None:
        """Wait for the page's next event of this name, or take one that has come since the last look."""
        until = time.monotonic() + _LOAD_S
        while not any(one["method"] == event for one in self._events):
            self._read(until)
        self._events = []

    def run(self, script: str) -> Any:
        """What an expression comes to, in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, down and up."""
        facts: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"Enter": "\r", "Space": " "}.get(key)
        self.send("Input.dispatchKeyEvent", type="keyDown", **facts, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        """Text into whatever has the focus."""
        self.send("Input.insertText", text=text)

    def picture(self, target: Path, *, height_max: int = 1250) -> bytes:
        """A picture of the page from its top, as high as it is, up to a limit."""
        size = self.run(f"[innerWidth, Math.ceil({_BOTTOM})]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], height_max), "scale": 1}
        shot = self.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b64decode(shot["data"]))
        return target.read_bytes()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol; its answer."""
        self._number += 1
        number = self._number
        message = json.dumps({"id": number, "method": method, "params": parameters})
        self._loop.run_until_complete(self._written(message))
        until = time.monotonic() + _LOAD_S
        while True:
            answer = self._read(until)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result

    async def _written(self, message: str) -> None:
        await self._socket.write_message(message)

    def _read(self, until: float) -> dict[str, Any]:
        left = max(until - time.monotonic(), 0.01)
        text = self._loop.run_until_complete(asyncio.wait_for(self._next(), left))
        assert text is not None, "Chromium is gone"
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message["params"])
        return message

    async def _next(self) -> str | bytes | None:
        return await self._socket.read_message()

    def _note(self, method: str, facts: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(facts["exceptionDetails"])[:500])
            case "Runtime.consoleAPICalled" if facts["type"] == "error":
                self.errors.append(json.dumps(facts["args"])[:500])
            case "Log.entryAdded" if facts["entry"]["level"] == "error" and "favicon" not in str(facts):
                self.errors.append(str(facts["entry"].get("text")) + " " + str(facts["entry"].get("url")))

    def _connect(self) -> WebSocketClientConnection:
        note, until = Path(self._folder.name) / "DevToolsActivePort", time.monotonic() + _START_S
        while not (note.is_file() and "\n" in note.read_text("utf-8")):
            assert self._process.poll() is None, "Chromium ended at once"
            assert time.monotonic() < until, "Chromium does not listen"
            time.sleep(0.05)
        port = note.read_text("utf-8").splitlines()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            [page] = [one for one in json.load(answer) if one["type"] == "page"]

        async def connected() -> WebSocketClientConnection:
            return await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=64 * 1024 * 1024)

        return self._loop.run_until_complete(connected())

    def close(self) -> None:
        """End it, and all of its processes."""

        async def said_goodbye() -> None:
            self._socket.close()

        self._loop.run_until_complete(said_goodbye())
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._loop.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
