"""
`python -m benchmarks.desk`: a support desk on a model agent, under everything that goes wrong at once.

Each ticket is a session of a `ModelAgent`, whose model is asked over HTTP on loopback and fails now and
then. Its tools call an effects service of their own process, which fails one call in five: refused, done
and the answer lost, or answered with garbage. Meanwhile workers are SIGKILLed, each while a call of its
own is out, and refunds above a sum wait for a person, who grants, denies, or grants less.

Then the service's own record is compared with what each ticket leads to: every session ended, each change
was made once or never, and what people denied was not done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agentq.agents.registry import Registry
from agentq.chaos.record import Request, ServiceProcess
from agentq.chaos.tools import SERVICE
from agentq.client import Client, Session
from agentq.settings import load
from agentq.store.workers import Workers
from benchmarks.desk_agent import MODEL_URL, Ticket, desk
from benchmarks.desk_model import Mind
from benchmarks.fleet import ROOT, environment, servers
from tests.support.openai_server import OpenAIServer

LARGE_CENTS = 20_000
LESS_CENTS = 7_500
READY_S = 120.0
THREADS = 16
PERSON = "ada"

# Of ten tickets: what is wanted, and what the person who is asked says.
_TURNS = (
    ("refund", 2_500, "nobody is asked"),
    ("refund", LARGE_CENTS, "granted"),
    ("refund", LARGE_CENTS, "denied"),
    ("track", 0, ""),
    ("move", 0, ""),
    ("refund", LARGE_CENTS, "less"),
    ("move", 0, ""),
    ("refund", LARGE_CENTS, "granted"),
    ("track", 0, ""),
    ("refund", 2_500, "nobody is asked"),
)


@dataclass(frozen=True)
class Plan:
    """One ticket and what must become of it."""

    ticket: Ticket
    person: str

    @property
    def paid_cents(self) -> int:
        """What is paid back in the end."""
        if self.ticket.wish != "refund" or self.person == "denied":
            return 0
        return LESS_CENTS if self.person == "less" else self.ticket.cents

    @property
    def outcome(self) -> str:
        """What the session must say that it did."""
        if self.ticket.wish == "refund":
            return "refunded" if self.paid_cents else "not done"
        return "redirected" if self.ticket.wish == "move" else "told"

    @property
    def changes(self) -> dict[str, str]:
        """Each change that the service must have made, exactly once, and with what."""
        order = self.ticket.order
        changes = {"send_answer": f"{order} Your wish: {self.outcome}."}
        if self.paid_cents:
            changes["issue_refund"] = f"{order} {self.paid_cents}"
        if self.ticket.wish == "move":
            changes["change_address"] = f"{order} 12 Other Street"
        return changes


@dataclass
class Found:
    """What a run came to."""

    sessions: int
    seconds: float = 0.0
    ended: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    kills_in_a_call: int = 0
    steps: int = 0
    steps_of_killed_workers: int = 0
    model_requests: int = 0
    model_failures: dict[str, int] = field(default_factory=dict)
    tool_calls: int = 0
    tool_failures: int = 0
    changes_wanted: int = 0
    changes_made: int = 0
    approvals: dict[str, int] = field(default_factory=dict)
    session_p50_s: float = 0.0
    session_max_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def tool_failure_share(self) -> float:
        return self.tool_failures / self.tool_calls if self.tool_calls else 0.0


def plans(sessions: int) -> list[Plan]:
    """The tickets of a run."""
    turns = [_TURNS[number % len(_TURNS)] for number in range(sessions)]
    return [Plan(Ticket(number=n, wish=wish, cents=cents), person) for n, (wish, cents, person) in enumerate(turns)]


class Fleet:
    """Worker processes, each replaced when it is killed."""

    def __init__(self, env: Mapping[str, str], log: Path, workers: int) -> None:
        self._env, self._log = dict(env), log
        self._steps = [self._start() for _ in range(workers)]
        self._quarantine = self._start("--group", "quarantine")
        self.killed: list[int] = []

    def _start(self, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agentq", "worker", *(more or ("-c", str(THREADS))), "--loglevel", "WARNING"]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, env=self._env, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def wait_ready(self, client: Client) -> None:
        """Return once all have registered."""
        present, everyone = Workers(client.ledger.store).present, [*self._steps, self._quarantine]
        deadline = time.monotonic() + READY_S
        while len(present()) < len(everyone):
            if time.monotonic() > deadline or any(process.poll() is not None for process in everyone):
                raise RuntimeError(f"the workers did not start:\n{self._log.read_text('utf-8', 'replace')[-4000:]}")
            time.sleep(0.1)

    def kill(self, pid: int) -> None:
        """SIGKILL the worker and start another in its place."""
        place = [process.pid for process in self._steps].index(pid)
        os.killpg(pid, signal.SIGKILL)
        self._steps[place].wait()
        self.killed.append(pid)
        self._steps[place] = self._start()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._steps]

    def stop(self) -> None:
        for process in [*self._steps, self._quarantine]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Killer(threading.Thread):
    """Kills a worker each time another share of the calls is made: one that has a call out, as the service sees it."""

    def __init__(self, fleet: Fleet, service: ServiceProcess, kills: int, answered: int) -> None:
        super().__init__(name="killer", daemon=True)
        self._fleet, self._service = fleet, service
        self._at = [answered * (number + 1) // (kills + 1) for number in range(kills)]
        self.over = threading.Event()
        self.broken: BaseException | None = None

    def run(self) -> None:
        try:
            for at in self._at:
                while sum(1 for request in self._service.read() if request.applied) < at:
                    if self.over.wait(0.1):
                        return
                while not (calling := [call.pid for call in self._service.open() if call.pid in self._fleet.pids]):
                    if self.over.wait(0.005):
                        return
                self._fleet.kill(calling[0])
        except BaseException as error:
            self.broken = error


class Person(threading.Thread):
    """Decides what waits for people, as the plans say."""

    def __init__(self, client: Client, tenant: str, by_order: Mapping[str, Plan]) -> None:
        super().__init__(name="person", daemon=True)
        self._client, self._tenant, self._by_order = client, tenant, by_order
        self.said: Counter[str] = Counter()
        self.over = threading.Event()
        self.broken: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.wait(0.3):
                for listed in self._client.approvals.ls(tenant=self._tenant, limit=500):
                    self._decide(str(listed.approval_id))
        except BaseException as error:
            self.broken = error

    def _decide(self, approval_id: str) -> None:
        approvals = self._client.approvals
        says = self._by_order[str(approvals.get(approval_id, tenant=self._tenant).args["order"])].person
        who = approvals.who(PERSON)
        if says == "denied":
            approvals.deny(approval_id, reason="not within our terms", tenant=self._tenant, who=who)
        else:
            edits = {"cents": LESS_CENTS} if says == "less" else None
            approvals.grant(approval_id, reason="within our terms", edits=edits, tenant=self._tenant, who=who)
        self.said[says] += 1


def play(
    env: Mapping[str, str],
    folder: Path,
    *,
    sessions: int,
    kills: int,
    seed: int,
    tools_fail: float = 0.2,
    model_fails: float = 0.05,
    workers: int = 3,
    tenant: str = "desk",
    timeout_s: float = 900.0,
) -> Found:
    """Run the tickets on servers that the environment names; what became of them."""
    planned = plans(sessions)
    mind, registry = Mind(seed, model_fails), Registry()
    registry.add(desk)
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(_service(folder))
        service.weather({"refused": tools_fail / 2, "lost": tools_fail / 4, "garbage": tools_fail / 4}, seed)
        server = stack.enter_context(OpenAIServer(answer=mind, keep=False))
        added = {"AGENTQ_AGENTS": "benchmarks.desk_agent", MODEL_URL: server.url, SERVICE: f"127.0.0.1:{service.port}"}
        env = environment(dict(env), **added)
        client = stack.enter_context(Client(load(env), registry))
        if all(known.name != tenant for known in client.tenants.ls()):
            client.tenants.add(tenant, concurrency=64)
        fleet = Fleet(env, folder / "workers.log", workers)
        stack.callback(fleet.stop)
        fleet.wait_ready(client)
        began = time.monotonic()
        items = [(plan.ticket, f"ticket-{plan.ticket.number}") for plan in planned]
        started = client.start_many(desk.name, tenant=tenant, items=items)
        person = Person(client, tenant, {plan.ticket.order: plan for plan in planned})
        killer = Killer(fleet, service, kills, sum(len(plan.changes) + 2 for plan in planned))
        person.start()
        killer.start()
        try:
            client.wait_all(started, timeout=timeout_s)
        finally:
            for helper in (person, killer):
                helper.over.set()
                helper.join(30)
        for broken in filter(None, (person.broken, killer.broken)):
            raise broken
        found = Found(sessions, time.monotonic() - began, kills=len(fleet.killed))
        _judge(found, planned, started, service.read(), fleet.killed)
        _approvals(found, client, tenant, person)
        found.model_requests = mind.asked.total()
        found.model_failures = {name: count for name, count in mind.asked.items() if name != "well"}
        return found


@contextlib.contextmanager
def _service(folder: Path) -> Iterator[ServiceProcess]:
    service = ServiceProcess(folder)
    try:
        yield service
    finally:
        service.stop()


def _judge(
    found: Found, planned: list[Plan], sessions: list[Session], record: list[Request], killed: list[int]
) -> None:
    """Compare the service's record, and what the sessions say, with what the tickets lead to."""
    calls = [request for request in record if request.what == "call"]
    found.tool_calls = len(calls)
    found.tool_failures = sum(call.fate in ("refused", "lost", "garbage") for call in calls)
    found.kills_in_a_call = len({call.pid for call in calls if call.pid in killed and call.fate == "cut"})
    made: dict[str, list[Request]] = {}
    for call in calls:
        if call.applied and call.kind == "checked":
            made.setdefault(call.session, []).append(call)
    ended: Counter[str] = Counter()
    took = []
    for plan, session in zip(planned, sessions, strict=True):
        view = session.view()
        ended[view.state] += 1
        steps = session.steps()
        found.steps += len(steps)
        found.steps_of_killed_workers += sum(step.crashes > 0 for step in steps)
        if view.ended_at is not None:
            took.append((view.ended_at - view.created_at).total_seconds())
        said = {"outcome": plan.outcome, "cents": plan.ticket.cents if plan.outcome == "refunded" else 0}
        came_to = view.result if view.state == "done" else view.failure
        if came_to != said:
            found.wrong.append(f"{plan.ticket.order}: {view.state}, {came_to} instead of {said}")
        changes = Counter((change.place, change.value) for change in made.get(session.id, []))
        wanted = Counter(plan.changes.items())
        found.changes_made += changes.total()
        found.changes_wanted += wanted.total()
        for change, times in (changes - wanted).items():
            found.wrong.append(f"{plan.ticket.order}: {change} was done {times} times too often")
        for change in wanted - changes:
            found.wrong.append(f"{plan.ticket.order}: {change} was not done")
    found.ended = dict(ended)
    found.session_p50_s, found.session_max_s = statistics.median(took), max(took)


def _approvals(found: Found, client: Client, tenant: str, person: Person) -> None:
    asked = client.approvals.ls(tenant=tenant, state=None, limit=5000)
    found.approvals = dict(Counter(f"{row.state} by {row.decided_by or 'nobody'}" for row in asked))
    decided = Counter(row.state for row in asked if row.decided_by == PERSON)
    wanted = Counter(granted=person.said["granted"] + person.said["less"], denied=person.said["denied"])
    if decided != wanted or any(row.state == "open" for row in asked):
        found.wrong.append(f"approvals are {found.approvals}, and people said {dict(wanted)}")


def show(found: Found, console: Console) -> None:
    """The figures, and what is wrong."""
    table = Table("", "", title=f"{found.sessions} sessions of a model agent", show_header=False)
    table.columns[1].justify = "right"
    rows = {
        "ended": ", ".join(f"{count} {state}" for state, count in sorted(found.ended.items())),
        "in": f"{found.seconds:.0f} s",
        "a session, p50 and longest": f"{found.session_p50_s:.1f} s, {found.session_max_s:.1f} s",
        "workers killed, with a call out": f"{found.kills}, {found.kills_in_a_call}",
        "steps, of which a worker died under": f"{found.steps:,}, {found.steps_of_killed_workers}",
        "requests to the model, of which failed": f"{found.model_requests:,}, {sum(found.model_failures.values())}",
        "calls of tools, of which failed": f"{found.tool_calls:,}, {found.tool_failures} "
        f"({found.tool_failure_share:.0%})",
        "changes wanted and made": f"{found.changes_wanted}, {found.changes_made}",
        "approvals": ", ".join(f"{count} {state}" for state, count in sorted(found.approvals.items())),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if not found.wrong:
        console.print("every session ended, each change was made once, and what was denied was not done")
    for line in found.wrong:
        console.print(f"wrong: {line}")


def main() -> None:
    """Run, print, and leave the figures as JSON; exit code 1 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.desk", description=__doc__)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tools-fail", type=float, default=0.2, help="share of the tools' calls, 0 to 1")
    parser.add_argument("--model-fails", type=float, default=0.05, help="share of the model's requests, 0 to 1")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("artifacts/bench-desk.json"))
    given: dict[str, Any] = vars(parser.parse_args())
    target = given.pop("json")
    with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as env:
        found = play(env, Path(folder), **given)
    show(found, Console())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(given | asdict(found), indent=2), "utf-8")
    sys.exit(1 if found.wrong else 0)


if __name__ == "__main__":
    main()
