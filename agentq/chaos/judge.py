"""
The judge: compares what should have happened with three records, and trusts none of them alone.

It knows the plan, what the producers were told, what the outside service saw, and how the sessions ended by
the public client. It reads no table of agentq's, so a ledger that is consistently wrong does not fool it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentq.chaos.plan import Wanted
from agentq.chaos.producer import Accepted
from agentq.chaos.record import Request
from agentq.chaos.strike import Hit

POISON_RUNS_MAX = 4
# An effect in flight when a fault falls may notice it, and be parked, a little later.
SLACK_S = 3.0

KINDS = (
    "lost",
    "doubled",
    "effect missing",
    "effect repeated",
    "silent duplicate",
    "corrupt",
    "out of order",
    "stuck",
    "innocent dead",
    "parked without a fault",
    "poison alive",
    "fault without effect",
)


@dataclass(frozen=True)
class End:
    """How a session stands at the end, by the public client."""

    key: str
    tenant: str
    session_id: str
    state: str
    result: Any = None
    failure_kind: str = ""
    failure: str = ""
    waits_for_person: bool = False


@dataclass(frozen=True)
class History:
    """Everything the judge is given."""

    wanted: Sequence[Wanted]
    accepted: Sequence[Accepted]
    requests: Sequence[Request]
    ends: Sequence[End]
    hits: Sequence[Hit]
    lease_s: float = 15.0


@dataclass(frozen=True)
class Violation:
    """One thing that must not be."""

    kind: str
    session: str
    what: str


@dataclass(frozen=True)
class Judgement:
    """What was found, and the figures that show that something was at stake."""

    violations: tuple[Violation, ...]
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.violations

    def count(self, kind: str) -> int:
        """Violations of that kind."""
        return sum(violation.kind == kind for violation in self.violations)


def judge(history: History) -> Judgement:
    """Every violation in the history, and its figures."""
    bench = _Bench(history)
    violations = [
        *bench.acceptance(),
        *(violation for wanted in history.wanted for violation in bench.session(wanted)),
        *bench.faults(),
    ]
    return Judgement(tuple(violations), bench.figures())


class _Bench:
    """The history, laid out for looking things up."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.ends: dict[str, list[End]] = defaultdict(list)
        for end in history.ends:
            self.ends[end.key].append(end)
        self.requests: dict[str, list[Request]] = defaultdict(list)
        for request in history.requests:
            self.requests[request.session].append(request)
        self.unknown = {
            wanted.key
            for wanted in history.wanted
            if wanted.may_be_unknown and any(_is_parked(end) for end in self.ends[wanted.key])
        }

    # ── each session ─────────────────────────────────────────────────────────

    def acceptance(self) -> Iterator[Violation]:
        """What a producer was told is true: one session for a key, and it is there."""
        ids: dict[str, set[str]] = defaultdict(set)
        created: Counter[str] = Counter()
        for accepted in self.history.accepted:
            ids[accepted.key].add(accepted.session_id)
            created[accepted.key] += accepted.created
        for key, known in ids.items():
            found = {end.session_id for end in self.ends[key]}
            if not found:
                yield Violation("lost", key, "a producer was told that it is accepted, and it is not there")
            if len(known | found) > 1:
                yield Violation("doubled", key, f"{len(known | found)} sessions for one key")
            if created[key] > 1:
                yield Violation("doubled", key, f"{created[key]} submissions were told that they created it")
        for wanted in self.history.wanted:
            if wanted.key not in ids:
                yield Violation("lost", wanted.key, "it was never accepted")

    def session(self, wanted: Wanted) -> Iterator[Violation]:
        """What became of one session."""
        if wanted.poison:
            yield from self._poison(wanted)
            return
        yield from self._effects(wanted)
        for end in self.ends[wanted.key]:
            match end.state:
                case "done":
                    yield from self._done(wanted, end)
                case _ if _is_parked(end):
                    yield from self._parked(wanted, end)
                case "failed" | "cancelled":
                    yield Violation(
                        "innocent dead", wanted.key, f"{end.state}: {end.failure_kind} {end.failure}".strip()
                    )
                case _:
                    yield Violation("stuck", wanted.key, f"still {end.state} long after the last fault was over")

    def _done(self, wanted: Wanted, end: End) -> Iterator[Violation]:
        if end.result != wanted.result:
            yield Violation("corrupt", wanted.key, f"came to {end.result!r}, follows {wanted.result!r}")
        made = {request.place for request in self.requests[wanted.key] if request.applied}
        for operation in wanted.operations:
            if operation.place not in made:
                yield Violation("effect missing", wanted.key, f"{operation.place} never reached the service")

    def _parked(self, wanted: Wanted, end: End) -> Iterator[Violation]:
        if not wanted.may_be_unknown:
            yield Violation(
                "innocent dead",
                wanted.key,
                f"parked as unknown, though each of its effects can be settled: {end.failure}",
            )
        elif not self._was_in_flight(wanted):
            yield Violation("parked without a fault", wanted.key, "no fault fell while it was in flight")

    def _effects(self, wanted: Wanted) -> Iterator[Violation]:
        """By the service's record alone: each change once, with the value that follows, in order."""
        known = {operation.place: operation for operation in wanted.operations}
        applied: dict[str, list[Request]] = defaultdict(list)
        first: dict[str, Request] = {}
        for request in self.requests[wanted.key]:
            if request.what != "call":
                continue
            operation = known.get(request.place)
            if operation is None:
                yield Violation("corrupt", wanted.key, f"asked for {request.place!r}, which is not in the plan")
                continue
            if request.value != operation.value or request.kind != operation.kind:
                yield Violation(
                    "corrupt", wanted.key, f"{request.place} with {request.value!r}, follows {operation.value!r}"
                )
            first.setdefault(request.place, request)
            if request.applied:
                applied[request.place].append(request)
        for place, requests in applied.items():
            if len(requests) > 1:
                kind = "effect repeated" if known[place].kind == "idempotent" else "silent duplicate"
                who = ", ".join(f"process {request.pid}" for request in requests)
                yield Violation(
                    kind, wanted.key, f"{place} ({known[place].kind}) was done {len(requests)} times: {who}"
                )
        for place, request in first.items():
            for before in known[place].after:
                if before not in applied or applied[before][0].at > request.at:
                    yield Violation("out of order", wanted.key, f"{place} was asked for before {before} was done")

    def _poison(self, wanted: Wanted) -> Iterator[Violation]:
        runs = [request for request in self.requests[wanted.key] if request.what == "ran"]
        if len(runs) > POISON_RUNS_MAX:
            yield Violation("poison alive", wanted.key, f"it ran {len(runs)} times")
        for end in self.ends[wanted.key]:
            if end.state in ("running", "queued", "ready"):
                yield Violation("stuck", wanted.key, f"the poison is still {end.state}")
            elif end.failure_kind != "worker_lost":
                yield Violation("poison alive", wanted.key, f"it ended {end.state}: {end.failure_kind or 'no failure'}")

    # ── the run ──────────────────────────────────────────────────────────────

    def faults(self) -> Iterator[Violation]:
        """A run whose faults hit nothing shows nothing."""
        for hit in self.history.hits:
            if hit.missed:
                yield Violation("fault without effect", hit.name, hit.missed)

    def figures(self) -> dict[str, int]:
        """What was at stake."""
        calls = [request for request in self.history.requests if request.what == "call"]
        asked: Counter[str] = Counter(request.key for request in calls)
        states = Counter(end.state for ends in self.ends.values() for end in ends)
        plain = {wanted.key for wanted in self.history.wanted if wanted.may_be_unknown}
        return {
            "sessions wanted": len(self.history.wanted),
            "sessions done": states["done"],
            "sessions failed": states["failed"],
            "submissions": len(self.history.accepted),
            "submissions repeated by producers": sum(each.tries - 1 for each in self.history.accepted),
            "effects wanted": sum(len(wanted.operations) for wanted in self.history.wanted),
            "effects done": sum(request.applied for request in calls),
            "calls": len(calls),
            "calls repeated under their key": sum(count - 1 for count in asked.values()),
            "calls cut off": sum(request.fate == "cut" for request in calls),
            "calls misanswered": sum(request.fate in ("refused", "lost", "hung", "garbage") for request in calls),
            "questions asked instead of a repeat": sum(r.what == "ask" for r in self.history.requests),
            "parked as unknown": len(self.unknown),
            "in flight at a fault and not to be settled": len({key for key in plain if self._in_flight_at(key)}),
            "poison runs": sum(request.what == "ran" for request in self.history.requests),
            "blows": len(self.history.hits),
            "blows that hit": sum(not hit.missed for hit in self.history.hits),
            "sessions hit": len({session for hit in self.history.hits for session in hit.sessions}),
        }

    def _was_in_flight(self, wanted: Wanted) -> bool:
        return self._in_flight_at(wanted.key)

    def _in_flight_at(self, key: str) -> bool:
        """Whether a fault fell between this session's first request and a little after its last."""
        times = [request.at for request in self.requests[key]]
        if not times:
            # Its first call never arrived: it was on its way while something held it.
            return any(not hit.missed for hit in self.history.hits)
        first, last = min(times), max(request.until or request.at for request in self.requests[key])
        return any(
            hit.began - SLACK_S <= last + SLACK_S and hit.healed + self.history.lease_s >= first
            for hit in self.history.hits
        )


def _is_parked(end: End) -> bool:
    """Whether it waits for a person because nobody knows whether an effect happened."""
    return end.waits_for_person or (end.state == "failed" and end.failure_kind == "unknown")


def counts(violations: Iterable[Violation]) -> dict[str, int]:
    """Every kind, with its number, nought included."""
    found = Counter(violation.kind for violation in violations)
    return {kind: found[kind] for kind in KINDS}
