"""
The ways to close a sandbox: bubblewrap, Landlock with seccomp, Docker.

Each says by a probe whether it works here. None that works: what was to run is refused. All share the
kernel with their host, so none is a boundary like a virtual machine's.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

from agentq.errors import InvalidInput, SandboxUnavailable
from agentq.sandbox import kernel
from agentq.sandbox.limits import Ended, EndedBy, Limits
from agentq.sandbox.watch import Watch, kill_tree, kill_user

_HERE = Path(__file__).parent
_UIDS = range(60000, 60064)
_LAUNCH_FAILED = 125
_SHM_BYTES = 16 * 1024**2
_LIBRARIES = ("/lib", "/lib64", "/bin", "/sbin", "/lib32")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs", "/etc/localtime")


class Backend(Protocol):
    """One way to run a command so that it can do no harm."""

    name: str

    def unusable(self) -> str | None:
        """Why it cannot be used here; None: it can. Asked once per process."""
        ...

    def python(self) -> str:
        """The interpreter that sandboxed code finds inside."""
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        collect: Sequence[str] = (),
        readable: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Ended:
        """
        Run a command on these files, with these paths readable beside the system's own.

        Raises:
            SandboxUnavailable: it could not be closed; nothing has run.
        """
        ...


class _Local:
    """What bubblewrap and Landlock share: a launcher, an own uid when root, a watch."""

    name = ""
    disk_is_watched = False

    def __init__(self) -> None:
        self._probed = threading.Lock()

    def unusable(self) -> str | None:
        with self._probed:
            return self._why_not

    @cached_property
    def _why_not(self) -> str | None:
        if sys.platform != "linux":
            return "it needs Linux; on macOS only the Docker backend is available"
        why = kernel.supported() or self._missing()
        if why is not None:
            return why
        try:
            probe = "import os,socket;os.mkdir('d')\ntry:\n  socket.socket()\nexcept OSError: print('closed')"
            ended = self.run([self.python(), "-I", "-S", "-c", probe], limits=Limits(wall_s=10, processes=8))
        except SandboxUnavailable as error:
            return error.why
        except OSError as error:
            return str(error)
        if not (ended.ok and ended.stdout == b"closed\n"):
            said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
            return f"its probe failed ({ended.ended_by}, code {ended.code}): {said[-1] if said else 'it said nothing'}"
        return None

    def _missing(self) -> str | None:
        raise NotImplementedError

    def python(self) -> str:
        raise NotImplementedError

    def run(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        collect: Sequence[str] = (),
        readable: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Ended:
        bounds = limits or Limits()
        with _uid() as uid, tempfile.TemporaryDirectory(prefix="agentq-sandbox-", ignore_cleanup_errors=True) as folder:
            room = Path(folder)
            work = room / "work"
            work.mkdir(mode=0o700)
            if uid is not None:
                room.chmod(0o711)
                os.chown(work, uid, uid)
            read_answer, write_answer = os.pipe()
            try:
                # Closed by this object alone: a number that is closed twice may by then be another thread's.
                with open(write_answer, "wb", buffering=0) as writing:
                    spec = self._spec(room, uid, [*readable], bounds) | {"answer_fd": write_answer}
                    inside = _stage_spec(
                        argv,
                        files or {},
                        collect,
                        bounds,
                        work=self._work(spec),
                        channel="fd",
                        answer_fd=write_answer,
                    )
                    return self._carry(spec, inside, (read_answer, writing), bounds, work)
            finally:
                os.close(read_answer)

    def _spec(self, room: Path, uid: int | None, readable: list[str], limits: Limits) -> dict[str, Any]:
        staging = room / "shown"
        staging.mkdir()
        shown = _outermost([*self._base(), *readable])
        return {
            "backend": self.name,
            "uid": uid,
            "staging": str(staging),
            "work": str(room / "work"),
            "readable": shown,
            "links": [(os.readlink(path), path) for path in _LIBRARIES if os.path.islink(path) and path not in shown],
            "disk_bytes": limits.disk_bytes,
            "shm_bytes": _SHM_BYTES,
            "bwrap": shutil.which("bwrap"),
            "stage": [self.python(), "-I", "-S", "-c", _stage_text()],
        }

    def _base(self) -> list[str]:
        found = ["/usr", *(path for path in _LIBRARIES if os.path.isdir(path) and not os.path.islink(path))]
        found += [path for path in _ETC if os.path.exists(path)]
        return [*found, _prefix_of(self.python())]

    def _work(self, spec: dict[str, Any]) -> str:
        """Where the work folder is, as the command sees it."""
        return str(spec["work"])

    def _carry(
        self, spec: dict[str, Any], inside: bytes, answer: tuple[int, IO[bytes]], limits: Limits, work: Path
    ) -> Ended:
        read_answer, write_answer = answer
        began = time.monotonic()
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_HERE / "launcher.py"), str(reading)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=(reading, spec["answer_fd"]),
                start_new_session=True,
            )
        finally:
            os.close(reading)
        write_answer.close()
        with os.fdopen(writing, "wb") as given, suppress(BrokenPipeError):
            given.write(json.dumps(spec).encode())

        def kill() -> None:
            kill_tree(process.pid)
            if spec["uid"] is not None:
                kill_user(spec["uid"])

        watch = Watch(
            process, read_answer, limits, stdin=inside, kill=kill, folder=work if self.disk_is_watched else None
        )
        with process:
            code = watch.run()
        return _ended(watch.read, watch.ended_by, code, time.monotonic() - began)


class Bubblewrap(_Local):
    """Namespaces of its own by bubblewrap, as root or as an ordinary user; the work folder is a sized tmpfs."""

    name = "bubblewrap"

    def _missing(self) -> str | None:
        return None if shutil.which("bwrap") else "bubblewrap is not installed (its package is called bubblewrap)"

    def python(self) -> str:
        return os.path.realpath(sys.executable)

    def _work(self, spec: dict[str, Any]) -> str:  # noqa: ARG002 - a mount of its own, wherever the folder is
        return "/work"


class Landlock(_Local):
    """
    Landlock and seccomp in the namespaces that are there already, for containers that forbid others.

    The work folder is on disk and watched; what is written between two looks, 50 ms, may exceed its limit.
    """

    name = "landlock"
    disk_is_watched = True

    def _missing(self) -> str | None:
        version = kernel.landlock_version()
        if version < kernel.LANDLOCK_LEAST:
            return f"the kernel's Landlock is version {version}, and {kernel.LANDLOCK_LEAST} is needed"
        if os.getuid() != 0 and version < kernel.LANDLOCK_SIGNALS:
            return f"as an ordinary user it needs Landlock {kernel.LANDLOCK_SIGNALS}, which keeps signals in"
        if not self.python():
            return "there is no python3 that an ordinary user may run (/usr/bin/python3)"
        return None

    def python(self) -> str:
        own = os.path.realpath(sys.executable)
        if os.getuid() != 0 or _walkable(own):
            return own
        system = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
        return os.path.realpath(system) if system and _walkable(system) else ""


class Docker:
    """
    A container of its own for each run. The image needs python3; the fleet's own code is not shown to it.

    Its arguments are held by a test; no container engine has run it.
    """

    name = "docker"

    def __init__(self, image: str = "python:3.12-slim") -> None:
        self._image = image

    def unusable(self) -> str | None:
        found = shutil.which("docker")
        if found is None:
            return "docker is not installed"
        try:
            subprocess.run([found, "version"], capture_output=True, check=True, timeout=10)
        except (OSError, subprocess.SubprocessError) as error:
            return f"docker does not answer ({type(error).__name__})"
        return None

    def python(self) -> str:
        return "python3"

    def run(
        self,
        argv: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        collect: Sequence[str] = (),
        readable: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Ended:
        bounds = limits or Limits()
        began = time.monotonic()
        name = f"agentq-sandbox-{os.urandom(8).hex()}"
        inside = _stage_spec(argv, files or {}, collect, bounds, work="/work", channel="stdout", answer_fd=1)
        try:
            done = subprocess.run(
                self.command(name, readable, bounds),
                input=inside,
                capture_output=True,
                timeout=bounds.wall_s + 20,
                check=False,
            )
        except subprocess.TimeoutExpired:
            subprocess.run(["docker", "kill", name], capture_output=True, check=False)
            return Ended(-9, "wall", b"", b"", {}, time.monotonic() - began)
        except OSError as error:
            raise SandboxUnavailable(f"docker cannot be started: {error.strerror}") from None
        if done.returncode == _LAUNCH_FAILED:
            raise SandboxUnavailable(f"docker: {done.stderr.decode('utf-8', 'replace').strip()[-300:]}")
        read = {"stdout": bytearray(), "stderr": bytearray(), "answer": bytearray(done.stdout)}
        return _ended(read, "itself", done.returncode, time.monotonic() - began)

    def command(self, name: str, readable: Sequence[str], limits: Limits) -> list[str]:
        """The whole command line, which a test reads."""
        shown = [part for path in readable for part in ("--volume", f"{path}:{path}:ro")]
        return [
            "docker", "run", "--rm", "--interactive", "--name", name, "--network", "none", "--read-only",
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65534:65534", "--ipc", "private",
            "--pids-limit", str(limits.processes + 4), "--memory", str(limits.memory_bytes),
            "--memory-swap", str(limits.memory_bytes), "--cpus", "1", "--shm-size", str(_SHM_BYTES),
            "--tmpfs", f"/work:rw,size={limits.disk_bytes},mode=1777", "--workdir", "/work", *shown,
            self._image, "python3", "-I", "-S", "-c", _stage_text(),
        ]  # fmt: skip


def _stage_text() -> str:
    return (_HERE / "stage.py").read_text("utf-8")


def _stage_spec(
    argv: Sequence[str],
    files: Mapping[str, bytes],
    collect: Sequence[str],
    limits: Limits,
    *,
    work: str,
    channel: str,
    answer_fd: int,
) -> bytes:
    for name in (*files, *collect):
        if name.startswith("/") or ".." in Path(name).parts or not name:
            raise InvalidInput(f"{name!r} does not stay in the sandbox's work folder")
    spec = {
        "argv": list(argv),
        "env": {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8"},
        "files": {name: base64.b64encode(data).decode("ascii") for name, data in files.items()},
        "collect": list(collect),
        "work": work,
        "channel": channel,
        "answer_fd": answer_fd,
        "wall_s": limits.wall_s,
        "output_bytes": limits.output_bytes,
        "result_bytes": limits.result_bytes,
        "rlimits": {
            "CPU": limits.cpu_s,
            "AS": limits.memory_bytes,
            "FSIZE": limits.file_bytes,
            "NOFILE": limits.open_files,
            "NPROC": limits.processes if channel == "stdout" else _nproc(limits.processes),
            "CORE": 0,
        },
    }
    return json.dumps(spec).encode()


def _nproc(processes: int) -> int:
    """As root each run has a uid of its own; else the kernel counts all that this user runs already."""
    if os.getuid() == 0:
        return processes
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{entry}/task"))
    return count + processes


def _ended(read: Mapping[str, bytearray], ended_by: EndedBy, code: int, took_s: float) -> Ended:
    """What the watch saw, completed by what the stage says, which is believed only as far as it goes."""
    answer = _answer(bytes(read["answer"])) if ended_by == "itself" else None
    if answer is None:
        if ended_by == "itself" and (code == _LAUNCH_FAILED or read["stderr"].startswith(b"bwrap: ")):
            raise SandboxUnavailable(bytes(read["stderr"]).decode("utf-8", "replace").strip()[-500:])
        if ended_by == "itself":
            ended_by = "killed"
        return Ended(code or -9, ended_by, bytes(read["stdout"]), bytes(read["stderr"]), {}, took_s)
    stdout = _bytes(answer.get("stdout")) if "stdout" in answer else bytes(read["stdout"])
    stderr = _bytes(answer.get("stderr")) if "stderr" in answer else bytes(read["stderr"])
    said: EndedBy = "wall" if answer.get("ended_by") == "wall" else ended_by
    files = {str(name): _bytes(data) for name, data in answer["files"].items()}
    return Ended(answer["code"], said, stdout, stderr, files, took_s)


def _answer(data: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("code"), int):
        return None
    return answer if isinstance(answer.get("files"), dict) else None


def _bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(text)
    except (TypeError, ValueError):
        return b""


@contextmanager
def _uid() -> Iterator[int | None]:
    """A user that no other run has at this moment, when this process is root."""
    if os.getuid() != 0:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / "agentq-sandbox-uids"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != 0:
        raise SandboxUnavailable(f"{folder} is not root's")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # Not always the first: what a run left behind may take the kernel a moment to bury.
        first = int.from_bytes(os.urandom(2), "big") % len(_UIDS)
        for uid in (*_UIDS[first:], *_UIDS[:first]):
            lock = os.open(folder / str(uid), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            try:
                yield uid
            finally:
                os.close(lock)
            return
        time.sleep(0.05)
    raise SandboxUnavailable(f"all {len(_UIDS)} sandboxes of this machine are in use")


def _prefix_of(python: str) -> str:
    """What the interpreter needs beside itself: its own installation."""
    return "/usr" if python.startswith("/usr/") else str(Path(python).parent.parent)


def _outermost(paths: Sequence[str]) -> list[str]:
    """Without those that stand in another of them, parents first."""
    found: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths}):
        if not any(path == other or path.startswith(f"{other}/") for other in found):
            found.append(path)
    return found


def _walkable(path: str) -> bool:
    """Whether any user may reach and run it."""
    real = Path(os.path.realpath(path))
    return all(parent.stat().st_mode & 0o001 for parent in real.parents) and bool(real.stat().st_mode & 0o001)
