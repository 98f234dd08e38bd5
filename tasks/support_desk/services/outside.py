"""What both servers share: temper, a file that says where they listen, and an end when their starter is gone."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HOST = "127.0.0.1"
Mood = Literal["well", "refuses", "forgets", "dawdles"]


@dataclass(frozen=True)
class Temper:
    """
    How the server behaves: the world is slow, and sometimes it fails.

    refuses: it fails before it did anything. forgets: it did it, and the answer is lost.
    dawdles: it did it, and answers when nobody listens any more.
    """

    latency_s: tuple[float, float] = (0.0, 0.0)
    fail: float = 0.0
    slow: float = 0.0
    slow_s: float = 8.0

    def pause_s(self) -> float:
        """How long half of the work takes; the other half comes after it is recorded."""
        return random.uniform(*self.latency_s) / 2

    def mood(self) -> Mood:
        """What becomes of this request."""
        drawn = random.random()
        if drawn < self.slow:
            return "dawdles"
        if drawn < self.slow + self.fail:
            return "refuses" if random.random() < 0.5 else "forgets"
        return "well"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that both servers take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--record", type=Path, required=True, help="SQLite file with all that was asked and done")
    parser.add_argument("--address-file", type=Path, help="written when the server listens")
    parser.add_argument("--latency", default="0-0", help="seconds, as MIN-MAX")
    parser.add_argument("--fail", type=float, default=0.0, help="share of requests that fail, 0 to 1")
    parser.add_argument("--slow", type=float, default=0.0, help="share that is answered too late, 0 to 1")
    parser.add_argument("--slow-s", type=float, default=8.0, help="how late that is")
    parser.add_argument("--seed", type=int, help="repeats the same moods")
    parser.add_argument("--with-starter", action="store_true", help="end when standard input closes")
    return parser


def temper(options: argparse.Namespace) -> Temper:
    """The temper that the options ask for."""
    random.seed(options.seed)
    low, _, high = options.latency.partition("-")
    return Temper((float(low), float(high or low)), options.fail, options.slow, options.slow_s)


def announce(path: Path | None, **addresses: Any) -> None:
    """Say where the server listens, in one move, so that a reader sees all or nothing."""
    if path:
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(addresses), "utf-8")
        scratch.replace(path)
    print("listening:", ", ".join(f"{name} {address}" for name, address in addresses.items()), flush=True)


def end_with_starter() -> None:
    """End the process when its starter closes our standard input, even by dying."""

    def watch() -> None:
        # Not sys.stdin: its lock would be held by this thread when the interpreter shuts down.
        while os.read(0, 1024):
            pass
        os._exit(0)

    if not sys.stdin.closed:
        threading.Thread(target=watch, name="with-starter", daemon=True).start()
