"""Foreign code outside the worker: what it may do, what it may not, and that nothing runs unprotected."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentq import Agent, AsyncContext, ConfigError, Context, Done, InvalidInput, effect, sandbox
from agentq.agents.programs import run_python, run_shell
from agentq.agents.registry import Registry
from agentq.agents.sandboxed import boxed
from agentq.client import Client
from agentq.errors import SandboxFailed, SandboxUnavailable
from agentq.sandbox import Backend, Bubblewrap, Docker, Landlock, Limits, kernel
from agentq.sandbox.attacks import _HEAD, ATTACKS, bystander
from agentq.sandbox.backends import _ended
from agentq.store.traces import Traces
from agentq.testing import LocalFleet
from tests.sandbox import tools
from tests.support.hands import at_once

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("bubblewrap", "landlock")
BACKENDS: list[Backend] = [Bubblewrap(), Landlock()]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def box(request: pytest.FixtureRequest) -> Backend:
    """Each backend that works on this machine; the others are skipped, and it is said why."""
    why = request.param.unusable()
    if why is not None:
        pytest.skip(f"NOT CHECKED HERE: {request.param.name}: {why}")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def any_box() -> Backend:
    try:
        return sandbox.backend()
    except SandboxUnavailable as error:
        pytest.skip(f"NOT CHECKED HERE: {error}")


# ── what it does ─────────────────────────────────────────────────────────────


def test_a_program_gets_its_files_and_gives_back_what_is_asked_for(box: Backend) -> None:
    ended = box.run(
        ["/bin/sh", "-c", "cat in/a.txt > out.txt; echo said; echo wrong >&2; ls -A; exit 3"],
        files={"in/a.txt": b"hello \xff"},
        collect=["out.*", "missing"],
    )
    assert (ended.code, ended.ended_by, ended.ok) == (3, "itself", False)
    assert (ended.stdout, ended.stderr) == (b"said\nin\nout.txt\n", b"wrong\n")
    assert ended.files == {"out.txt": b"hello \xff"}


def test_it_sees_nothing_of_the_worker(box: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    No variable, no open file, no terminal, a user of its own.
    """
    monkeypatch.setenv("AGENTQ_DATABASE_URL", "postgresql://secret")
    ended = box.run(["/bin/sh", "-c", "env; id -u; ls /proc/self/fd 2>/dev/null | tr '\\n' ' '"])
    assert b"secret" not in ended.stdout
    if os.getuid() == 0:
        assert b"\n6000" in ended.stdout or b"\n6001" in ended.stdout or b"\n600" in ended.stdout


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", ""])
def test_names_that_leave_the_work_folder_are_refused(any_box: Backend, name: str) -> None:
    with pytest.raises(InvalidInput, match="work folder"):
        any_box.run(["/bin/true"], files={name: b"x"})
    with pytest.raises(InvalidInput, match="work folder"):
        any_box.run(["/bin/true"], collect=[name])


def test_many_at_once_do_not_meet(box: Backend) -> None:
    calls: list[Callable[[], Any]] = [
        lambda n=n: box.run(["/bin/sh", "-c", f"echo {n} > mine; sleep 0.2; cat *"]).stdout  # type: ignore[misc]
        for n in range(6)
    ]
    assert at_once(*calls) == [f"{n}\n".encode() for n in range(6)]


def test_starting_one_is_quick(box: Backend) -> None:
    """
    Tens of milliseconds; the bound leaves room for a busy machine.
    """
    took = min(_timed(lambda: box.run(["/bin/true"])) for _ in range(3))
    assert took < 2.0


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# ── what it withstands ───────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[tuple[str, bool], subprocess.Popen[str] | str]]:
    """The attack suite as its command runs it: against each backend, as root and as an ordinary user, side by side."""
    started = {(name, root): _attacking(name, as_root=root) for root in (True, False) for name in NAMES}
    yield started
    for one in started.values():
        if not isinstance(one, str) and one.poll() is None:
            one.kill()
            one.wait()


def _attacking(name: str, *, as_root: bool) -> subprocess.Popen[str] | str:
    """The running command, or why there is none."""
    prefix: tuple[str, ...] = ()
    python = sys.executable
    if as_root != (os.getuid() == 0):
        if as_root:
            return "the tests do not run as root"
        system = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin")
        setpriv = shutil.which("setpriv")
        if not system or not setpriv or not _readable_by_all(ROOT):
            return "no python3, no setpriv, or this checkout, that an ordinary user may use"
        prefix, python = (setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups"), system
    return subprocess.Popen(
        [*prefix, python, "-m", "agentq.sandbox", "attack", "--json", "--backend", name],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("as_root", [True, False], ids=["root", "ordinary-user"])
@pytest.mark.parametrize("name", NAMES)
def test_every_attack_is_contained(
    reports: dict[tuple[str, bool], subprocess.Popen[str] | str], name: str, as_root: bool
) -> None:
    """
    As root each run gets a uid of its own; as an ordinary user the kernel's rules alone keep it from the worker.
    """
    running = reports[name, as_root]
    if isinstance(running, str):
        pytest.skip(f"NOT CHECKED HERE: {running}")
    output, errors = running.communicate(timeout=170)
    assert output, errors
    found = json.loads(output)
    assert found["as_root"] == as_root
    if found["unusable"][name] is not None:
        pytest.skip(f"NOT CHECKED HERE: {name}: {found['unusable'][name]}")
    verdicts = found["attacks"][name]
    assert len(verdicts) == len(ATTACKS) >= 18
    assert {verdict["attack"]: verdict["escaped"] for verdict in verdicts if verdict["escaped"]} == {}


def _readable_by_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.control], ids=lambda attack: attack.name)
def test_without_a_sandbox_the_attack_succeeds(attack: Any, tmp_path: Path) -> None:
    """
    The control: an attack that would fail anywhere proves nothing.
    """
    with bystander() as beside:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _HEAD % json.dumps(beside.bait()) + attack.code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert "ESCAPED" in done.stdout, done.stderr


def test_the_filters_are_programs_that_a_kernel_takes() -> None:
    """
    Each jump lands within the program, on both machines; the refusals differ where files are shared.
    """
    for machine in ("x86_64", "aarch64"):
        for shared in (False, True):
            program = kernel.seccomp_program(shared=shared, machine=machine)
            count, left = divmod(len(program), 8)
            assert left == 0
            assert 50 < count < 4096
            for at in range(count):
                code, yes, no = program[at * 8], program[at * 8 + 2], program[at * 8 + 3]
                if code in (0x15, 0x35, 0x45):
                    assert at + 1 + max(yes, no) < count
    small, large = (len(kernel.seccomp_program(shared=shared, machine="aarch64")) for shared in (False, True))
    assert small < large


# ── what is refused ──────────────────────────────────────────────────────────


class Broken:
    """A backend that does not work here."""

    def __init__(self, name: str) -> None:
        self.name = name

    def unusable(self) -> str:
        return "the kernel says no"


def test_where_nothing_works_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Refused, with the reason of each backend, instead of run unprotected.
    """
    monkeypatch.setattr(sandbox, "candidates", lambda wanted, image: [Broken("bubblewrap"), Broken("landlock")])
    sandbox.configure("auto", "image")
    try:
        with pytest.raises(SandboxUnavailable, match=r"refused.*bubblewrap: the kernel says no; landlock"):
            run_python("print(1)")
        with pytest.raises(SandboxUnavailable):
            boxed(tools.moved, Limits())(tools.Point(x=1, y=1))
    finally:
        sandbox.configure("auto", "image")


def test_a_launcher_that_cannot_close_it_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    bubblewrap is there and fails: the command has not run, and the reason is bubblewrap's own.
    """
    box = Bubblewrap()
    if shutil.which("bwrap") is None:
        pytest.skip("NOT CHECKED HERE: bubblewrap is not installed")
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    why = box.unusable()
    assert why is not None
    assert "could not be closed" in why or "No permissions" in why


def test_docker_is_told_to_forbid_everything() -> None:
    """
    Its command line; no container engine has run it.
    """
    words = Docker("img").command("n", ["/opt/tool"], Limits(processes=9, memory_bytes=1000, disk_bytes=77))
    line = " ".join(words[: words.index("img")])
    for wanted in (
        "--rm", "--network none", "--read-only", "--cap-drop ALL", "--security-opt no-new-privileges",
        "--user 65534:65534", "--pids-limit 13", "--memory 1000", "--memory-swap 1000", "--shm-size",
        "--tmpfs /work:rw,size=77,mode=1777", "--volume /opt/tool:/opt/tool:ro",
    ):  # fmt: skip
        assert wanted in line
    assert "--privileged" not in line


def test_the_stage_answers_on_one_channel_as_docker_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    With a `docker` that runs the command here: files in, output and files out, through one pipe.
    """
    fake = tmp_path / "docker"
    work = tmp_path / "work"
    work.mkdir()
    script = f'while [ "$1" != img ]; do shift; done; shift; sed "s#\\"/work\\"#\\"{work}\\"#g" | exec "$@"'
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ended = Docker("img").run(
        ["/bin/sh", "-c", "cat a; echo e >&2; cp a b; exit 2"],
        files={"a": b"x"},
        collect=["b"],
        limits=Limits(processes=4000, memory_bytes=2**33),
    )
    assert (ended.code, ended.stdout, ended.stderr, ended.files) == (2, b"x", b"e\n", {"b": b"x"})


@pytest.mark.parametrize(
    "answer", [b"", b"no json", b"[]", b'{"code": "x", "files": {}}', b'{"code": 0}', b"[" * 100000]
)
def test_a_forged_answer_is_not_believed(answer: bytes) -> None:
    read = {"stdout": bytearray(b"said"), "stderr": bytearray(), "answer": bytearray(answer)}
    ended = _ended(read, "itself", 0, 0.1)
    assert (ended.ok, ended.ended_by, ended.files, ended.stdout) == (False, "killed", {}, b"said")


def test_a_file_in_an_answer_that_is_no_base64_is_empty() -> None:
    facts = {"code": 0, "files": {"a": "!", "b": 3, "c": base64.b64encode(b"x").decode()}}
    read = {"stdout": bytearray(), "stderr": bytearray(), "answer": bytearray(json.dumps(facts).encode())}
    assert _ended(read, "itself", 0, 0.1).files["c"] == b"x"


# ── as effects and tools ─────────────────────────────────────────────────────


class Empty(BaseModel):
    pass


def one_call(registry: Registry, function: Callable[..., Any], *args: Any, is_async: bool = False, **more: Any) -> None:
    agent = Agent("boxer", state=Empty, registry=registry)
    if is_async:

        @agent.step(retries=0)
        async def work(state: Empty, ctx: AsyncContext) -> Done:
            return Done(await ctx.call(function, *args, **more))
    else:

        @agent.step(retries=0)
        def work(state: Empty, ctx: Context) -> Done:
            return Done(ctx.call(function, *args, **more))


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_an_effect_in_the_sandbox_returns_what_it_says(
    registry: Registry, client: Client, tenant: str, any_box: Backend, is_async: bool
) -> None:
    """
    Models in, models out, imported by name in there; its time is told as the sandbox's.
    """
    one_call(registry, tools.moved, tools.Point(x=1, y=2), by=5, is_async=is_async)
    with LocalFleet(client) as fleet:
        assert fleet.drain(client.start("boxer", tenant=tenant, input={})).result == {"x": 6, "y": 2}
    [row] = Traces(client.sessions.store).spend("tool", seconds=3600, tenant=tenant)
    assert 0 < row.seconds_sandbox == row.seconds


def test_an_effect_in_the_sandbox_sees_no_settings(
    registry: Registry, client: Client, tenant: str, any_box: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The package of the function is shown, nothing beside it: no configuration, no variable.
    """
    monkeypatch.setenv("AGENTQ_DATABASE_URL", "postgresql://secret")
    one_call(registry, tools.whereabouts)
    with LocalFleet(client) as fleet:
        found = fleet.drain(client.start("boxer", tenant=tenant, input={})).result
    assert (found["secret"], found["settings"]) == ("", "False")
    assert found["cwd"] != os.getcwd()


@pytest.mark.parametrize(
    ("function", "why"), [(tools.broken, "ValueError: no luck"), (tools.endless, r"ended \(wall\)")]
)
def test_what_fails_in_there_says_so(any_box: Backend, function: Callable[..., Any], why: str) -> None:
    args = ("luck",) if function is tools.broken else ()
    with pytest.raises(SandboxFailed, match=why):
        boxed(function, Limits(wall_s=1.0) if function is tools.endless else Limits())(*args)


def test_what_cannot_be_imported_is_refused() -> None:
    @effect(sandbox=True)
    def local() -> None: ...

    with pytest.raises(ConfigError, match="top of a module"):
        boxed(local, Limits())


def test_programs_that_a_model_writes(any_box: Backend) -> None:
    """
    `run_python` and `run_shell`: what they printed, how they ended, the files that were asked for.
    """
    ran = run_python("print(open('a').read()); open('b', 'w').write('y')", files={"a": "x"}, collect=("b",))
    assert (ran.code, ran.ended_by, ran.stdout, ran.files) == (0, "itself", "x\n", {"b": "y"})
    wrong = run_python("print(1")
    assert wrong.code == 1
    assert "SyntaxError" in wrong.stderr
    assert run_shell("echo $((6*7)); exit 4").model_dump(include={"code", "stdout"}) == {"code": 4, "stdout": "42\n"}
    with pytest.raises(InvalidInput, match=r"main\.py"):
        run_python("1", files={"main.py": "2"})
