"""
The sandbox: foreign code runs outside the worker, without its environment, network, files or rights, or not at all.
"""

from __future__ import annotations

import threading
from typing import Literal

from agentq.errors import SandboxUnavailable
from agentq.sandbox.backends import Backend, Bubblewrap, Docker, Landlock
from agentq.sandbox.limits import Ended, Limits

Choice = Literal["auto", "bubblewrap", "landlock", "docker"]

_lock = threading.Lock()
_wanted: Choice = "auto"
_image = "python:3.12-slim"
_chosen: Backend | None = None


def configure(backend: Choice, image: str) -> None:
    """Say once per process which backend is wanted; `auto`: bubblewrap, else Landlock, else none."""
    global _wanted, _image, _chosen
    with _lock:
        _wanted, _image, _chosen = backend, image, None


def backend() -> Backend:
    """
    The backend that works here.

    Raises:
        SandboxUnavailable: none does, and nothing is run unprotected; the message says why of each.
    """
    global _chosen
    with _lock:
        if _chosen is None:
            _chosen = _choose()
        return _chosen


def candidates(wanted: Choice, image: str) -> list[Backend]:
    """The backends to try, in order. Docker only where it is asked for: it is slow, and its daemon is root."""
    known: dict[str, Backend] = {"bubblewrap": Bubblewrap(), "landlock": Landlock(), "docker": Docker(image)}
    return [known["bubblewrap"], known["landlock"]] if wanted == "auto" else [known[wanted]]


def _choose() -> Backend:
    reasons = []
    for candidate in candidates(_wanted, _image):
        why = candidate.unusable()
        if why is None:
            return candidate
        reasons.append(f"{candidate.name}: {why}")
    raise SandboxUnavailable("; ".join(reasons))


__all__ = ["Backend", "Bubblewrap", "Choice", "Docker", "Ended", "Landlock", "Limits", "backend", "configure"]
