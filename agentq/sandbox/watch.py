"""The watch over a running sandbox: its time, its output, and what all of its processes use together."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agentq.sandbox.limits import EndedBy, Limits

LOOK_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_KILL_S = 3.0
_OWN_PROCESSES = 6  # bubblewrap, its init, the stage and their like


class Watch:
    """Reads what comes out, and kills what goes too far."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        answer: int,
        limits: Limits,
        *,
        stdin: bytes,
        kill: Callable[[], None],
        folder: Path | None,
    ) -> None:
        self._process = process
        self._limits = limits
        self._kill = kill
        self._folder = folder
        self._input = memoryview(stdin)
        self.ended_by: EndedBy = "itself"
        self.read: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "answer": bytearray()}
        self._selector = selectors.DefaultSelector()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for name, file in (
            ("stdout", process.stdout.fileno()),
            ("stderr", process.stderr.fileno()),
            ("answer", answer),
        ):
            os.set_blocking(file, False)
            self._selector.register(file, selectors.EVENT_READ, name)
        os.set_blocking(process.stdin.fileno(), False)
        self._selector.register(process.stdin.fileno(), selectors.EVENT_WRITE, "stdin")

    def run(self) -> int:
        """Until it has ended, or was ended; its exit code."""
        began = time.monotonic()
        deadline = began + self._limits.wall_s
        look_at = began + LOOK_S
        while self._selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                self._end("wall")
            elif now >= look_at:
                look_at = now + LOOK_S
                self._look()
            if self.ended_by != "itself":
                break
            for key, _ in self._selector.select(min(look_at, deadline) - now if now < deadline else 0):
                self._move(key.fd, str(key.data))
            if self._process.poll() is not None and not self._selector.select(0):
                break  # something else holds the pipes open; it has been killed or will be
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(deadline - time.monotonic(), 0.1) if self.ended_by == "itself" else 5.0)
        if self._process.poll() is None:
            self._end("wall")
            self._process.wait(5.0)
        self._kill()
        self._drain()
        self._selector.close()
        return self._process.returncode

    def _move(self, descriptor: int, name: str) -> None:
        if name == "stdin":
            self._write(descriptor)
            return
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(descriptor)
            return
        self.read[name] += data
        # A base64 answer is a third longer than what it carries.
        most = self._limits.output_bytes if name != "answer" else self._limits.result_bytes * 2 + 65536
        if len(self.read[name]) > most:
            del self.read[name][most:]
            self._end("output")

    def _write(self, descriptor: int) -> None:
        try:
            self._input = self._input[os.write(descriptor, self._input[:65536]) :]
        except BlockingIOError:
            return
        except OSError:
            self._input = self._input[:0]
        if not self._input:
            self._selector.unregister(descriptor)
            assert self._process.stdin is not None
            with suppress(OSError):
                self._process.stdin.close()

    def _drain(self) -> None:
        """What was still in the pipes when it ended."""
        for key in list(self._selector.get_map().values()):
            if key.data != "stdin":
                with suppress(OSError):
                    while len(self.read[str(key.data)]) < self._limits.output_bytes:
                        data = os.read(key.fd, 65536)
                        if not data:
                            break
                        self.read[str(key.data)] += data

    def _look(self) -> None:
        memory, count = usage_below(self._process.pid)
        if memory > self._limits.memory_bytes:
            self._end("memory")
        elif count > self._limits.processes + _OWN_PROCESSES:
            self._end("processes")
        elif self._folder is not None and folder_bytes(self._folder, self._limits.disk_bytes) > self._limits.disk_bytes:
            self._end("disk")

    def _end(self, why: EndedBy) -> None:
        if self.ended_by == "itself":
            self.ended_by = why
        self._kill()


def below(pid: int) -> list[int]:
    """A process and all that live and descend from it, as far as the kernel still knows; parents first."""
    parents: dict[int, list[int]] = {}
    dead: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                facts = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(facts[1]), []).append(int(entry))
        if facts[0] in (b"Z", b"X"):
            dead.add(int(entry))
    found, todo = [], [pid]
    while todo:
        one = todo.pop(0)
        if one not in dead:
            found.append(one)
        todo += parents.get(one, ())
    return found


def usage_below(pid: int) -> tuple[int, int]:
    """Resident bytes and number of all processes of a tree."""
    total, count = 0, 0
    for one in below(pid):
        try:
            with open(f"/proc/{one}/statm", "rb") as file:
                total += int(file.read().split()[1]) * _PAGE
            count += 1
        except (OSError, IndexError):
            continue
    return total, count


def kill_tree(pid: int) -> None:
    """
    Kill a tree of processes, the root last.

    It is the subreaper, or the parent of a namespace's first process: while it lives, what loses its
    parent stays below it and is found.
    """
    deadline = time.monotonic() + _KILL_S
    while (found := [one for one in below(pid) if one != pid]) and time.monotonic() < deadline:
        for one in found:
            with suppress(OSError):
                os.kill(one, signal.SIGKILL)
        time.sleep(0.002)
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def kill_user(uid: int) -> None:
    """Kill every process of a user that only sandboxes have. Only as root."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        except OSError:
            pass
        os._exit(0)
    os.waitpid(child, 0)


def folder_bytes(folder: Path, enough: int) -> int:
    """What a folder holds on disk; stops counting when it is more than enough. Follows no link."""
    total, todo = 0, [str(folder)]
    while todo and total <= enough:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    facts = entry.stat(follow_symlinks=False)
                    total += max(facts.st_blocks * 512, 4096)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
        except OSError:
            continue
    return total
