"""
Attacks on the sandbox: what foreign code would try, run for real against each backend that works here.

Each attack is a small program. It is contained when it cannot say that it got out, and when nothing outside
has changed: the bystander's file, the bystander's process, and no process of the attack is left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agentq.errors import SandboxUnavailable
from agentq.sandbox.backends import Backend
from agentq.sandbox.limits import Ended, Limits

LIMITS = Limits(
    wall_s=1.5, cpu_s=1, memory_bytes=160 * 1024**2, processes=16, disk_bytes=16 * 1024**2,
    file_bytes=12 * 1024**2, output_bytes=64 * 1024, result_bytes=1024**2,
)  # fmt: skip
_MARK = "agentq_attack"
_SECRET = "a secret of the bystander"


@dataclass(frozen=True)
class Attack:
    """One program, what it looks for, and how its end is judged beside the general rules."""

    name: str
    code: str
    collect: tuple[str, ...] = ()
    # Harmless enough to be run without any sandbox, where it must succeed: so that the attack itself is tested.
    control: bool = False
    judge: Callable[[Ended], str | None] = field(default=lambda _: None)


@dataclass(frozen=True)
class Verdict:
    """Whether an attack was contained, and if not, how it got out."""

    attack: str
    escaped: str | None
    ended_by: str
    took_s: float


def _no_files(ended: Ended) -> str | None:
    return f"files came out: {sorted(ended.files)}" if ended.files else None


def _was_stopped(ended: Ended) -> str | None:
    return "it ended by itself, with success" if ended.ok else None


def _small(ended: Ended) -> str | None:
    return f"{len(ended.stdout)} bytes came out" if len(ended.stdout) > LIMITS.output_bytes else None


# Facts about the bystander are given to each program as BAIT; got(what) says that it escaped.
_HEAD = """
import ctypes, json, mmap, os, signal, socket, sys, threading, time
BAIT = json.loads(%r)
libc = ctypes.CDLL(None, use_errno=True)
def got(what): print("ESCAPED", what, flush=True)
def attempt(what, function):
    try:
        found = function()
    except BaseException as error:
        return None
    if found is not False: got(what)
def call(name, *args):
    x86 = dict(ptrace=101, bpf=321, keyctl=250, perf=298, uffd=323, uring=425, unshare=272, mount=165, pvr=310, kcmp=312, nto=303, keyadd=248)
    arm = dict(ptrace=117, bpf=280, keyctl=219, perf=241, uffd=282, uring=425, unshare=97, mount=40, pvr=270, kcmp=272, nto=264, keyadd=217)
    number = (x86 if os.uname().machine == "x86_64" else arm)[name]
    return libc.syscall(ctypes.c_long(number), *args) >= 0
"""

ATTACKS = [
    Attack("fork bomb", "while True:\n  try: os.fork()\n  except OSError: pass", judge=_was_stopped),
    Attack(
        "fork bomb of daemons",
        "while True:\n  try:\n    if os.fork() == 0: os.setsid(); os.fork()\n  except OSError: pass",
        judge=_was_stopped,
    ),
    Attack("memory in one process", "x = []\nwhile True: x.append(b'x' * 2**20)", judge=_was_stopped),
    Attack(
        "memory over many processes",
        "for _ in range(12):\n  if os.fork() == 0: break\nx = []\n"
        "while len(x) < 60: x.append(os.urandom(2**20))\ntime.sleep(9)",
        judge=_was_stopped,
    ),
    Attack("memory by threads", "def grow():\n  x = []\n  while True: x.append(bytearray(2**20))\n"
           "for _ in range(8): threading.Thread(target=grow).start()"),
    Attack("tcp to the host", "attempt('tcp', lambda: socket.create_connection(('127.0.0.1', BAIT['port']), 1))", control=True),
    Attack("udp, raw, packet, vsock, netlink", """
for family, kind in ((2, 2), (2, 3), (10, 2), (17, 3), (40, 1), (16, 3)):
    attempt(f'socket {family} {kind}', lambda: socket.socket(family, kind).sendto(b'x', ('127.0.0.1', BAIT['port'])))
""", control=True),
    Attack("io_uring", "attempt('io_uring', lambda: call('uring', 4, ctypes.create_string_buffer(120)))", control=True),
    Attack("unix sockets by path and by abstract name", """
attempt('path', lambda: socket.socket(socket.AF_UNIX).connect(BAIT['socket']))
attempt('abstract', lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + BAIT['abstract']))
""", control=True),
    Attack("password file", "attempt('shadow', lambda: print(open('/etc/shadow').read()))"),
    Attack("environment of others", """
try: others = [p for p in os.listdir('/proc') if p.isdigit()]
except OSError: others = [str(n) for n in range(1, 3000)]
for pid in ['self', 'thread-self', str(os.getppid())] + others:
    try: found = open(f'/proc/{pid}/environ', 'rb').read()
    except OSError: continue
    if BAIT['secret'].encode() in found: got(f'environment of {pid}')
if BAIT['secret'] in str(dict(os.environ)): got('own environment')
""", control=True),
    Attack("files outside", """
for path in (BAIT['file'], '/proc/1/root' + BAIT['file'], '/proc/self/cwd/../../..' + BAIT['file']):
    attempt(path, lambda: BAIT['secret'] in open(path).read())
attempt('home', lambda: bool(os.listdir('/root')) and 'pyenv' not in str(os.listdir('/root')))
""", control=True),
    Attack("write, truncate, chmod, unlink, rename, utime outside", """
path = BAIT['file']
for name, act in (
    ('write', lambda: open(path, 'a').write('x')), ('truncate', lambda: os.truncate(path, 0)),
    ('chmod', lambda: os.chmod(path, 0o777)), ('chown', lambda: os.chown(path, os.getuid(), -1)),
    ('unlink', lambda: os.unlink(path)), ('rename', lambda: os.rename(path, path + '2')),
    ('utime', lambda: os.utime(path, (0, 0))), ('create', lambda: open(os.path.dirname(path) + '/new', 'w')),
    ('xattr', lambda: os.setxattr(path, 'user.x', b'x')), ('etc', lambda: open('/etc/agentq', 'w')),
    ('usr', lambda: open('/usr/agentq', 'w')),
): attempt(name, act)
"""),
    Attack("kill, ptrace, read, limit, renice others", """
pid = BAIT['pid']
import resource
attempt('kill', lambda: os.kill(pid, signal.SIGTERM))
attempt('kill parent', lambda: os.kill(os.getppid(), 0) if os.getppid() > 20 and BAIT['shares'] else False)
attempt('ptrace', lambda: call('ptrace', 16, pid, 0, 0))
attempt('vm', lambda: call('pvr', pid, 0, 0, 0, 0, 0))
attempt('prlimit', lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (9, 9)))
attempt('nice', lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
attempt('affinity', lambda: os.sched_setaffinity(pid, {0}))
attempt('memory', lambda: open(f'/proc/{pid}/mem', 'rb'))
"""),
    Attack("kill everything", "attempt('kill', lambda: os.kill(-1, signal.SIGKILL) or False)\nos.killpg(0, 9)"),
    Attack("namespaces, mounts, chroot", """
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000): attempt(hex(flag), lambda: call('unshare', flag))
attempt('mount', lambda: call('mount', b'none', b'/tmp', b'tmpfs', 0, 0))
attempt('chroot', lambda: os.chroot('.'))
attempt('clone', lambda: libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0) >= 0)
"""),
    Attack("become root", """
attempt('setuid', lambda: os.setuid(0) or os.getuid() == 0 and os.access('/etc/shadow', os.R_OK))
for program in ('/bin/su', '/usr/bin/sudo', '/usr/bin/passwd', '/usr/bin/mount', '/usr/bin/newgrp'):
    if os.path.exists(program) and os.spawnv(os.P_WAIT, program, [program, '-c', 'cat /etc/shadow']) == 0:
        got(program)
try: status = open('/proc/self/status').read()
except OSError: status = 'CapEff:\\t0000000000000000'
if 'CapEff:\\t0000000000000000' not in status: got('capabilities')
"""),
    Attack("kernel interfaces", """
buffer = ctypes.create_string_buffer(256)
for name, args in (('bpf', (0, buffer, 72)), ('keyctl', (0, -3, 1)), ('perf', (buffer, 0, -1, -1, 0)),
                   ('uffd', (0,)), ('kcmp', (os.getpid(), os.getpid(), 0, 0, 1)),
                   ('keyadd', (b'user', b'x', b'y', 1, -2)), ('nto', (-100, b'/', buffer, buffer, 0))):
    attempt(name, lambda: call(name, *args))
attempt('device', lambda: os.mknod('disk', 0o60666, os.makedev(8, 0)))
"""),
    Attack("system calls under other numbers", """
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex('b814000000cd80c3'))
run = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
if os.uname().machine == 'x86_64':
    if os.fork() == 0:
        if run() == os.getpid(): got('int 0x80')
        os._exit(0)
    os.wait()
    if os.fork() == 0:
        if libc.syscall(ctypes.c_long(0x40000000 + 39)) == os.getpid(): got('x32')
        os._exit(0)
    os.wait()
"""),
    Attack("endless output", "while True: os.write(1, b'x' * 65536)", judge=_small),
    Attack("endless errors", "while True: os.write(2, b'x' * 65536)", judge=_was_stopped),
    Attack("outlive: daemonise, ignore signals, sleep", """
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(3): os.close(fd)
            time.sleep(600)
        os._exit(0)
time.sleep(600)
""", judge=_was_stopped),
    Attack("leave daemons behind and exit", """
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(600)
        os._exit(0)
"""),
    Attack("burn the processor", "for _ in range(3): os.fork()\nwhile True: pass", judge=_was_stopped),
    Attack("links, pipes and devices in the results", """
os.symlink('/etc/passwd', 'r1'); os.symlink(BAIT['file'], 'r2')
try: os.mkfifo('r3')
except OSError: pass
attempt('hard link', lambda: os.link(BAIT['file'], 'r4'))
open('twice', 'w').write('x'); os.link('twice', 'r5')
os.mkdir('r6'); os.symlink('/proc/self/mem', 'r7')
open('r8', 'wb').truncate(10 * 2**20)
""", collect=("r*",), judge=_no_files),
    Attack("typing on the worker's terminal", """
import fcntl
for fd in range(3): attempt(f'TIOCSTI {fd}', lambda: fcntl.ioctl(fd, 0x5412, b'x'))
attempt('tty', lambda: open('/dev/tty', 'w'))
"""),
    Attack("fill /tmp and /dev/shm", """
for folder, most in (('/tmp', 40), ('/dev/shm', 40), ('/var/tmp', 1), ('/run', 1)):
    total = 0
    try:
        for n in range(most):
            open(f'{folder}/fill{n}', 'wb').write(b'x' * 2**20); total += 1
    except OSError: pass
    if total >= most: got(f'{folder}: {total} MB')
"""),
    Attack("fill the disk through the work folder", """
total = 0
try:
    for n in range(160):
        with open(f'fill{n}', 'wb') as file: file.write(b'x' * 2**20)
        total += 1
        time.sleep(0.01)
except OSError: pass
if total > 120: got(f'{total} MB')
""", judge=lambda ended: None if ended.ended_by == "disk" or b"ESCAPED" not in ended.stdout else "the disk was filled"),
    Attack("one huge file", """
def write():
    with open('huge', 'wb') as file:
        for _ in range(100): file.write(b'x' * 2**20)
attempt('100 MB in one file', write)
"""),
    Attack("raise the limits again", """
import resource
for name in ('RLIMIT_NPROC', 'RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_FSIZE', 'RLIMIT_NOFILE'):
    which = getattr(resource, name); hard = resource.getrlimit(which)[1]
    attempt(name, lambda: resource.setrlimit(which, (hard + 1, hard + 1)))
"""),
    Attack("descriptors of the worker", """
for fd in range(3, 64):
    try: os.fstat(fd)
    except OSError: continue
    got(f'descriptor {fd}: {os.readlink(f"/proc/self/fd/{fd}") if os.path.exists("/proc/self/fd") else "?"}')
"""),
    Attack("forge the answer", """
for fd in range(3, 32):
    try: os.write(fd, b'{"code": 0, "files": {"r": "eA=="}}'); got(f'wrote into {fd}')
    except OSError: pass
os.kill(os.getppid(), 9)
""", judge=_was_stopped),
    Attack("many empty files", "n = 0\nwhile True:\n  os.close(os.open(f'f{n}', os.O_CREAT)); n += 1", judge=_was_stopped),
    Attack("other sandboxes' folders", """
import glob
for path in glob.glob('/tmp/agentq-sandbox-*/work/*') + glob.glob('/tmp/agentq-sandbox-*/shown/*'):
    if not path.startswith(os.getcwd()): got(path)
attempt('uids', lambda: os.listdir('/tmp/agentq-sandbox-uids'))
"""),
]  # fmt: skip


class Bystander:
    """What stands beside the sandbox and must not notice it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "bystander.txt"
        self.file.write_text(_SECRET)
        self.before = self._facts()
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], env={"SECRET": _SECRET}, start_new_session=True
        )
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "socket"))
        self.unix.listen()
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0{_MARK}-{os.getpid()}")
        self.abstract.listen()

    def bait(self) -> dict[str, object]:
        return {
            "file": str(self.file),
            "pid": self.process.pid,
            "port": self.tcp.getsockname()[1],
            "socket": self.unix.getsockname(),
            "abstract": f"{_MARK}-{os.getpid()}",
            "secret": _SECRET,
            "shares": False,
        }

    def harm(self) -> str | None:
        """What was done to it."""
        if self.process.poll() is not None:
            return "the bystander's process was ended"
        if os.getpriority(os.PRIO_PROCESS, self.process.pid) != os.getpriority(os.PRIO_PROCESS, 0):
            return "the bystander's process was reniced"
        if self._facts() != self.before:
            return "the bystander's file was changed"
        for server in (self.tcp, self.unix, self.abstract):
            server.setblocking(False)
            with suppress(BlockingIOError):
                server.accept()
                return "somebody connected to the bystander"
        return None

    def _facts(self) -> tuple[object, ...]:
        facts = self.file.stat()
        return (
            self.file.read_text(),
            facts.st_mode,
            facts.st_mtime_ns,
            facts.st_uid,
            sorted(os.listdir(self.file.parent))[:1],
        )

    def leave(self) -> None:
        self.process.kill()
        self.process.wait()
        for server in (self.tcp, self.unix, self.abstract):
            server.close()


@contextmanager
def bystander() -> Iterator[Bystander]:
    """Somebody whose things must stay as they are."""
    with tempfile.TemporaryDirectory(prefix="bystander-") as folder:
        os.chmod(folder, 0o755)
        os.environ["AGENTQ_ATTACK_BAIT"] = _SECRET
        one = Bystander(Path(folder))
        try:
            yield one
        finally:
            one.leave()
            del os.environ["AGENTQ_ATTACK_BAIT"]


def carry_out(attack: Attack, backend: Backend, beside: Bystander) -> Verdict:
    """One attack against one backend."""
    mark = f"{_MARK}_{os.getpid()}_{time.monotonic_ns()}"
    code = f"# {mark}\n" + _HEAD % json.dumps(beside.bait()) + attack.code
    began = time.monotonic()
    try:
        ended = backend.run([backend.python(), "-I", "-S", "-c", code], collect=attack.collect, limits=LIMITS)
    except SandboxUnavailable as error:
        return Verdict(attack.name, f"it could not be run: {error.why}", "refused", time.monotonic() - began)
    took_s = time.monotonic() - began
    escaped = attack.judge(ended) or _said(ended) or beside.harm() or _left(mark)
    if escaped is None and took_s > LIMITS.wall_s + 6:
        escaped = f"it took {took_s:.1f} s"
    return Verdict(attack.name, escaped, ended.ended_by, took_s)


def _said(ended: Ended) -> str | None:
    lines = [line for line in ended.stdout.decode("utf-8", "replace").splitlines() if line.startswith("ESCAPED")]
    return "; ".join(lines[:5]) if lines else None


def _left(mark: str) -> str | None:
    """Processes of the attack that are still there; they are ended here at least."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    if mark.encode() not in file.read():
                        continue
                found.append(int(entry))
    for pid in found:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    return f"{len(found)} processes were left" if found else None
