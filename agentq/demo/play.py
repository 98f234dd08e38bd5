"""The play, from an empty folder to the comparison: what `agentq demo` runs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from agentq.broker.queues import tenant_queue
from agentq.client import Client
from agentq.demo import checks, faults
from agentq.demo.observe import Observer, Progress, Totals
from agentq.demo.screen import Screen
from agentq.demo.stage import KEYS, Stage
from agentq.demo.surroundings import own_environment, terminable
from agentq.embedded import processes
from agentq.embedded.fleet import Fleet
from agentq.settings import Settings, load
from agentq.store.pool import Store

TENANTS = ("alpenglow", "kettle-co", "lumen")
WORKERS = 2
# Fewer threads than the tenants may admit, so that the broker holds messages when it is emptied.
THREADS = 6
CONCURRENCY = 8
EMPTY_AFTER, KILL_AFTER, KILL_ANYWAY = 0.12, 0.3, 0.6  # shares of the tickets that have ended
PATIENCE_S = 150.0
LOOK_EVERY_S = 0.1


def run(settings: Settings | None = None, *, stay: bool | None = None, console: Console | None = None) -> int:
    """
    Play the demo; the exit code: 0 when every check held, 1 when one did not, 130 when it was interrupted.

    With `stay` (the default in a terminal) everything is left running until Ctrl-C.

    Raises:
        ConfigError: something cannot start; the message says what to do.
    """
    console = console or Console()
    stay = console.is_terminal if stay is None else stay
    with own_environment(), terminable():
        prefix = _prefix()
        os.environ.setdefault("AGENTQ_AGENTS", "tasks")
        os.environ.setdefault("AGENTQ_WORKER_THREADS", str(THREADS))
        # A proxy named in the environment must not stand between the agents and servers on loopback.
        os.environ["NO_PROXY"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1,localhost")))
        settings = (settings or load()).model_copy(update={"agents": ("tasks",)})
        screen = Screen(console)
        try:
            with Stage(settings.data_dir) as stage:
                screen.say("agentq demo: a support desk for three shops, on real servers", "bold")
                os.environ.update(stage.start())
                _introduce(screen, stage)
                with Fleet(settings, workers=WORKERS, console=console) as fleet:
                    os.environ.update(fleet.environment)
                    act, ok = _play(screen, stage, fleet)
                    _farewell(screen, act, prefix, stay=stay)
                    if stay:
                        screen.say("Everything is left running. Ctrl-C drains and stops it.", "bold")
                        _wait_for_interrupt()
        except KeyboardInterrupt:
            screen.say("interrupted; everything is stopped, the data stay")
            return 130
    return 0 if ok else 1


@dataclass
class Act:
    """The run while it goes on: what was done to the fleet, and when."""

    screen: Screen
    stage: Stage
    fleet: Fleet
    observer: Observer
    began: float = field(default_factory=time.monotonic)
    emptied: faults.Blow | None = None
    killed: faults.Blow | None = None
    took_s: float = 0.0

    def play(self) -> None:
        """Watch the tickets end; on the way empty the broker and kill a worker."""
        with self.screen:
            while True:
                tenants = self.observer.progress()
                ended, tickets = sum(t.ended for t in tenants), sum(t.tickets for t in tenants)
                self.took_s = time.monotonic() - self.began
                self._look()
                self.screen.follow(tenants, self.took_s, self._note())
                if (ended == tickets and all(blow.over for blow in self._blows)) or self.took_s > PATIENCE_S:
                    return
                self._interfere(ended / max(tickets, 1))
                time.sleep(LOOK_EVERY_S)

    @property
    def _blows(self) -> list[faults.Blow]:
        return [blow for blow in (self.emptied, self.killed) if blow]

    def _interfere(self, share: float) -> None:
        """Strike when it hurts; late in the run any moment will do."""
        if any(blow.begun_s is None for blow in self._blows):
            return  # one after the other, so that each recovery is its own
        if self.emptied is None and share >= EMPTY_AFTER:
            self.emptied = self._say(self._empty(at_least=6 if share < 0.4 else 1))
        elif self.killed is None and (share >= KILL_ANYWAY or (share >= KILL_AFTER and self._deaths_are_noticed())):
            self.killed = self._say(faults.kill_busiest(self.observer, self._pids(), at_least=4 if share < 0.7 else 1))

    def _empty(self, at_least: int) -> faults.Blow | None:
        embedded = self.fleet.stack.valkey in self.fleet.stack.servers
        queues = [tenant_queue(tenant) for tenant in TENANTS]
        return faults.empty_broker(self.observer, self.fleet.settings, queues, embedded=embedded, at_least=at_least)

    def _deaths_are_noticed(self) -> bool:
        """Whether Postgres has been up for a lease; before that only the lease itself tells of a death."""
        return self.observer.uptime_s() > self.fleet.settings.lease_s + 1

    def _pids(self) -> set[int]:
        """Our worker processes: none but ours is killed."""
        return {
            pid
            for name, child in self.fleet.children.items()
            if name.startswith("worker") and child.pid is not None
            for pid in (child.pid, *processes.descendants(child.pid))
        }

    def _say(self, blow: faults.Blow | None) -> faults.Blow | None:
        if blow:
            self.screen.say(f"⚡ {self.took_s:5.1f} s  {blow.what}", "bold yellow")
        return blow

    def _look(self) -> None:
        for blow in self._blows:
            if blow.look(self.observer):
                self.screen.say(f"  {self.took_s:5.1f} s  all {len(blow.hit)} steps run, {blow.begun_s:.1f} s later")

    def _note(self) -> str:
        if self.killed and self.killed.begun_s is None:
            return "(taking back the killed worker's steps)"
        if self.emptied and self.emptied.begun_s is None:
            return "(missing the lost messages)"
        return ""


def _play(screen: Screen, stage: Stage, fleet: Fleet) -> tuple[Act, bool]:
    with Client.from_env() as client:
        for tenant in TENANTS:
            client.tenants.add(tenant, concurrency=CONCURRENCY)
        _end_earlier_runs(screen, client)
    before = stage.addresses()
    with closing(Store(fleet.settings.database_url, size=2, name="agentq demo")) as store:
        act = Act(screen, stage, fleet, Observer(store, stage.key_prefix))
        submitted = stage.produce(fleet.environment)
        screen.say(f"a producer process submitted {submitted} tickets", "bold")
        sessions = _count(act.observer.progress())
        stage.produce(fleet.environment)
        repeated = _count(act.observer.progress()) - sessions
        screen.say(f"the same producer again: {submitted} tickets, {repeated} new sessions, for their keys are known")
        act.play()
        held = _compare(act, before, repeated)
        _figures(act, act.observer.totals())
    return act, held


def _end_earlier_runs(screen: Screen, client: Client) -> None:
    """Cancel what an interrupted run left: its payment provider and its mail server are gone."""
    left = [
        session
        for session in client.list(agent="support-desk", state="running", limit=1000)
        if session.key and session.key.startswith(KEYS)
    ]
    for session in left:
        client.cancel(session.tenant, str(session.session_id), reason="left by an earlier run of the demo")
    if left:
        screen.say(f"cancelled {len(left)} sessions that an earlier run of the demo left")


def _compare(act: Act, before: dict[str, str], repeated: int) -> bool:
    from tasks.support_desk.model import endpoint

    stage = act.stage
    expected, ended = stage.expected(), act.observer.ended()
    made, requests = stage.refunds()
    by_rules = endpoint() is None
    # A model may judge otherwise than we do; what it decided must still happen exactly once.
    wanted = {(e.tenant, *e.refund) for e in expected if e.refund} if by_rules else checks.granted(ended)
    killed, emptied = act.killed, act.emptied
    found = [
        checks.sessions(expected, ended, repeated),
        checks.answers(expected, ended, stage.messages()),
        checks.refunds(wanted, made, requests),
        checks.interference(
            checks.Interference(
                in_hand=len(killed.hit) if killed else 0,
                ran_again=killed.begun if killed else 0,
                unsent=len(emptied.hit) if emptied else 0,
                found_again=emptied.begun if emptied else 0,
            )
        ),
    ]
    judged = checks.judgement(expected, ended)
    if by_rules:
        found += [checks.addresses(expected, before, stage.addresses()), judged]
    act.screen.say("")
    act.screen.say("compared with the records of the mail server, the payment provider and the shops", "bold")
    act.screen.verdict(found)
    if not by_rules:
        act.screen.say(f"  the model decided {judged.figures} tickets as we would have")
    return all(check.ok for check in found)


def _figures(act: Act, totals: Totals) -> None:
    say = act.screen.say
    rate = totals.steps / act.took_s
    say("")
    say(f"  {totals.steps} steps in {act.took_s:.1f} s: {rate:.1f} steps/s, bound by the slow servers outside")
    if act.killed:
        say(f"  recovery from SIGKILL: the worker's {len(act.killed.hit)} steps {_recovery(act.killed)}")
    if act.emptied:
        say(f"  recovery from the empty broker: the {len(act.emptied.hit)} steps it had {_recovery(act.emptied)}")
    say(
        f"  {totals.crashes} attempts lost with the worker, {totals.retries} retries of attempts that failed, "
        f"{totals.calls_repeated} calls made again under the same key"
    )
    if not totals.tokens_in:
        say("  cost: 0 tokens, $0.00, for rules answered and no model was asked (see above)")
        return
    cost = f"${totals.cost_micros / 1e6:.4f}" if totals.cost_micros else "price unknown (set AGENTQ_DEMO_PRICES)"
    say(f"  cost: {totals.tokens_in:,} tokens in, {totals.tokens_out:,} out, {cost}")


def _recovery(blow: faults.Blow) -> str:
    begun = f"ran after {blow.begun_s:.1f} s" if blow.begun_s is not None else "never ran"
    return begun + (f", had ended after {blow.ended_s:.1f} s" if blow.ended_s is not None else ", have not ended")


def _introduce(screen: Screen, stage: Stage) -> None:
    from tasks.support_desk.model import endpoint

    at = endpoint()
    if at:
        screen.say(f"  the model {at.model} at {at.base_url} reads the mails and words the answers")
    else:
        screen.say(
            "  no model is configured: keyword rules read the mails, templates word the answers "
            "(set AGENTQ_DEMO_MODEL, OPENAI_BASE_URL, OPENAI_API_KEY for a real one)"
        )
    for name, server in stage.servers.items():
        record = _short(stage.folder / f"{name}.sqlite")
        screen.say(f"  {name.replace('_', ' ')}: process {server.pid}, record {record}")


def _farewell(screen: Screen, act: Act, prefix: str, *, stay: bool) -> None:
    found = shutil.which("agentq")
    agentq = prefix + ("agentq" if found else _short(Path(sys.executable).parent / "agentq"))
    screen.say("")
    if stay:
        screen.say(f"Flower: {act.fleet.flower_url}  (its login stands above)", "bold")
        screen.say("Try next, in another terminal, in this folder:", "bold")
    else:
        screen.say(f"Everything stops now; the data stay. `{agentq} up` brings it back, Flower too. Then try:", "bold")
    for command in _commands(act, stay=stay):
        screen.say(f"  {agentq} {command}")
    screen.say(f"The records of this run are in {_short(act.stage.folder)}")


def _commands(act: Act, *, stay: bool) -> list[str]:
    survivor = act.killed.hit.sessions[0] if act.killed else "ID"
    # The desk needs its servers, which are gone when nothing is left running.
    last = (
        "start support-desk --tenant lumen --wait --input "
        '\'{"ticket": "From: ben.carter@mail.example\\n\\nWhere is LU-3006?"}\''
    )
    return [
        "session ls --tenant lumen --limit 10",
        f"session show {survivor}   # its worker died",
        'start hello --tenant lumen --input \'{"name": "Ada"}\' --wait',
        "queue ls",
        last if stay else "tenant ls",
    ]


def _prefix() -> str:
    """What must stand before the commands, in a shell that knows nothing of this run."""
    known = load()
    wanted = "" if known.agents else "AGENTQ_AGENTS=tasks "
    if (folder := os.environ.get("AGENTQ_DATA_DIR")) is not None:
        wanted += f"AGENTQ_DATA_DIR={shlex.quote(folder)} "
    return wanted


def _count(tenants: list[Progress]) -> int:
    return sum(tenant.tickets for tenant in tenants)


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _wait_for_interrupt() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return  # the wanted end
