"""
What the kernel is asked through ctypes: seccomp filters, Landlock rules, namespaces.

Standard library only: the launcher loads it in a bare interpreter.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

EPERM, ENOSYS = 1, 38
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 1, 38, 22, 36
SECCOMP_MODE_FILTER = 2
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18

# Each flag of clone() that makes a namespace.
_NAMESPACES = 0x7E020000

_ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64; None: it has no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "quotactl_fd": (443, 443), "unshare": (272, 97), "setns": (308, 268),
    "clone": (56, 220), "clone3": (435, 435), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "sethostname": (170, 161), "setdomainname": (171, 162), "acct": (163, 89), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "syslog": (103, 116),
    "quotactl": (179, 60), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
    "personality": (135, 92), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "lookup_dcookie": (212, 18), "vhangup": (153, 58), "ioctl": (16, 29),
    "mknod": (133, None), "mknodat": (259, 33),
    # What Landlock does not mediate, for a tool that shares files and user with others.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
}  # fmt: skip

_SHARED_ONLY = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes",
    "futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
    "setxattrat", "removexattrat", "file_setattr", "setpriority", "ioprio_set", "prlimit64", "sched_setaffinity",
    "sched_setparam", "sched_setscheduler", "sched_setattr", "shmget", "shmat", "semget", "msgget", "mq_open",
)  # fmt: skip
_SPECIAL = ("socket", "clone", "clone3", "ioctl", "prlimit64")
_AF_UNIX, _TIOCSTI, _TIOCLINUX = 1, 0x5412, 0x541C

_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def supported() -> str | None:
    """Why the filters cannot be used here; None: they can."""
    machine = platform.machine()
    if machine not in _ARCHES:
        return f"there is no table of system calls for {machine} (there is for {', '.join(_ARCHES)})"
    return None


def seccomp_program(*, shared: bool, machine: str = "") -> bytes:
    """
    A filter that refuses what sandboxed code has no business with; the rest is allowed.

    `shared`: the tool shares files, user and IPC with others, so no sockets, modes or priorities either.
    """
    arch, column = _ARCHES[machine or platform.machine()]
    program = [_op(_LD, 4), _op(_JEQ, arch, 1, 0), _op(_RET, _KILL), _op(_LD, 0)]
    if column == 0:
        # The x32 table has the same calls under other numbers.
        program += [_op(_JGE, 0x40000000, 0, 1), _op(_RET, _KILL)]
    for name, numbers in _NUMBERS.items():
        number = numbers[column]
        if number is None or name in _SPECIAL or (name in _SHARED_ONLY and not shared):
            continue
        program += [_op(_JEQ, number, 0, 1), _op(_RET, _ERRNO | EPERM)]
    program += _special(column, shared=shared)
    program.append(_op(_RET, _ALLOW))
    return b"".join(program)


def _special(column: int, *, shared: bool) -> list[bytes]:
    """Calls that are refused by their arguments."""

    def number(name: str) -> int:
        found = _NUMBERS[name][column]
        assert found is not None
        return found

    refuse = _op(_RET, _ERRNO | EPERM)
    again = _op(_LD, 0)
    # libc falls back to clone(), whose flags a filter can see.
    rules = [_op(_JEQ, number("clone3"), 0, 1), _op(_RET, _ERRNO | ENOSYS)]
    rules += [_op(_JEQ, number("clone"), 0, 4), _argument(0), _op(_JSET, _NAMESPACES, 0, 1), refuse, again]
    rules += [_op(_JEQ, number("ioctl"), 0, 5), _argument(1), _op(_JEQ, _TIOCSTI, 1, 0), _op(_JEQ, _TIOCLINUX, 0, 1)]
    rules += [refuse, again]
    if shared:
        rules += [_op(_JEQ, number("socket"), 0, 1), refuse]
        rules += [_op(_JEQ, number("prlimit64"), 0, 4), _argument(0), _op(_JEQ, 0, 1, 0), refuse, again]
    else:
        rules += [_op(_JEQ, number("socket"), 0, 4), _argument(0), _op(_JEQ, _AF_UNIX, 1, 0), refuse, again]
    return rules


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _argument(index: int) -> bytes:
    return _op(_LD, 16 + 8 * index)  # the lower half: both machines are little-endian


# ── Landlock ─────────────────────────────────────────────────────────────────

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
LANDLOCK_LEAST, LANDLOCK_SIGNALS = 3, 6  # truncation is mediated since 3, signals since 6
READ = _EXECUTE | _READ | _READ_DIR


def libc() -> ctypes.CDLL:
    """The C library, with errno kept."""
    return ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0: it has none, or it is off."""
    found = int(libc().syscall(ctypes.c_long(_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
    return max(found, 0)


def landlock(readable: list[str], writable: list[str], devices: list[str]) -> None:
    """
    Confine this process to these paths, for ever.

    Raises:
        OSError: the kernel refused.
    """
    version, lib = landlock_version(), libc()
    every = (1 << _FS_BITS.get(version, 16)) - 1
    net, scoped = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attributes = struct.pack("<QQQ", every, net, scoped)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _checked(lib.syscall(ctypes.c_long(_CREATE), attributes, ctypes.c_size_t(len(attributes)), 0), "landlock")
    for paths, access in ((readable, READ), (writable, every), (devices, _READ | _WRITE)):
        for path in paths:
            _allow(lib, ruleset, path, access & every)
    _checked(lib.syscall(ctypes.c_long(_RESTRICT), ctypes.c_int(ruleset), ctypes.c_uint32(0)), "landlock_restrict_self")
    os.close(ruleset)


def _allow(lib: ctypes.CDLL, ruleset: int, path: str, access: int) -> None:
    try:
        at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        access &= _EXECUTE | _READ | _WRITE | (1 << 14) | (1 << 15)
    rule = struct.pack("<Qi", access, at)
    _checked(lib.syscall(ctypes.c_long(_ADD_RULE), ctypes.c_int(ruleset), ctypes.c_int(1), rule, 0), f"landlock {path}")
    os.close(at)


# ── processes ────────────────────────────────────────────────────────────────


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _checked(
        libc().prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), "prctl"
    )


def filter_calls(program: bytes) -> None:
    """Install a seccomp filter on this thread; it needs no_new_privs."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    given = Program(len(program) // 8, program)
    _checked(libc().prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(given)), "seccomp")


def own_mounts() -> None:
    """From here on, mounts of this process are nobody else's."""
    _checked(libc().unshare(ctypes.c_int(CLONE_NEWNS)), "unshare")
    _checked(libc().mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "mount private")


def bind(source: str, target: str) -> None:
    """Show one path at another."""
    _checked(libc().mount(source.encode(), target.encode(), None, ctypes.c_ulong(MS_BIND | MS_REC), None), "bind")


def become(uid: int) -> None:
    """Give up root for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
