"""Redrives from a page: their terms as a form, what they would do before they do it, and how far they are."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from agentq.agents.returns import seconds
from agentq.cli.redrive import REFUSALS, brought_back, plan_facts, state_of
from agentq.cli.selecting import rate, selection_of
from agentq.client import Client, Selection, Terms
from agentq.client.edits import parse_assignments
from agentq.client.tenants import acting_as
from agentq.errors import InvalidInput
from agentq.flower.pages.tab import Action, Route, Tab
from agentq.relay.redrives import Progress
from agentq.seeing.story import short
from agentq.store.dead_letters import Plan
from agentq.store.redrives import Job

T = TypeVar("T")

log = logging.getLogger("agentq.flower")

JOBS_SHOWN = 8
_FILTERS = ("tenant", "cause", "agent", "step", "class", "dependency", "since", "age")
_MANY = {"canary": "5", "threshold": "100", "canary_timeout": "10m", "rate": "2/s", "max_generation": "3"}
_ONE = {"canary": "0", "threshold": "100", "canary_timeout": "10m", "rate": "10/s", "max_generation": "3"}
_OPTIONAL = ("effects", "from_step", "deadline")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which letters, on which terms, with which edits: as somebody wrote it into the form."""

    selection: Selection
    filters: dict[str, str]
    fields: dict[str, str]
    edits: str
    terms: Terms

    @property
    def change(self) -> dict[str, Any] | None:
        """The edits, by path; None: there are none."""
        lines = tuple(filter(None, map(str.strip, self.edits.splitlines())))
        return parse_assignments(lines) or None

    @property
    def key(self) -> str:
        """Tells the same redrive again, where times are counted from now."""
        letters = sorted(map(str, self.selection.letters))
        return json.dumps(["flower", letters, self.filters], sort_keys=True)

    @property
    def seen(self) -> str:
        """What a dry run was shown of: a redrive of anything else is shown first."""
        text = json.dumps([self.key, self.fields, self.edits], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a redrive would do."""

    asked: Asked
    plan: Plan
    diff: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    @property
    def count(self) -> int:
        return brought_back(self.plan, self.asked.terms)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """As the command line says it; the name of its option is the form's field here."""
        found = plan_facts(self.plan, self.asked.terms)
        return [(name, text.replace("--effects", "“unknown effects” below")) for name, text in found if text]


def filters_of(page: Tab) -> dict[str, str]:
    """The filters of the address or form, as they were written."""
    found = {name: page.chosen(name) for name in _FILTERS}
    return {name: value for name, value in found.items() if value}


def selection(filters: dict[str, str], state: str | None = "open", **more: Any) -> Selection:
    """
    The letters that the filters name.

    Raises:
        InvalidInput: one of them is none.
    """
    named: dict[str, Any] = {name: filters.get(name) for name in _FILTERS} | {"generation": None}
    named["kind"] = named.pop("class")
    return _in_words(lambda: selection_of(**named, state=state, **more))


def asked_of(page: Tab, filters: dict[str, str], chosen: Selection, *, many: bool) -> Asked:
    """
    What the form asks for; its own beginnings where it says nothing.

    Raises:
        InvalidInput: a field is not what it should be.
    """
    usual = _MANY if many else _ONE
    fields = {name: page.chosen(name) or value for name, value in usual.items()}
    fields |= {name: value for name in _OPTIONAL if (value := page.chosen(name))}
    edits = (page.get_argument("edits", "", escape=False) or "").strip()[:20_000]
    return Asked(chosen, filters, fields, edits, _in_words(lambda: _terms(fields)))


def _terms(fields: dict[str, str]) -> Terms:
    deadline = fields.get("deadline")
    effects: Any = fields.get("effects")
    return Terms(
        canary=_whole("canaries", fields["canary"]),
        threshold=_whole("threshold", fields["threshold"]) / 100,
        canary_timeout_s=seconds(fields["canary_timeout"]),
        rate_per_s=rate(fields["rate"]),
        max_generation=_whole("most redrives", fields["max_generation"]),
        effects=effects,
        from_step=fields.get("from_step"),
        deadline_s=seconds(deadline) if deadline else None,
    )


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise InvalidInput(f"{name} is a whole number, not {text!r}")
    return int(text)


def _in_words(read: Callable[[], T]) -> T:
    try:
        return read()
    except click.ClickException as error:
        raise InvalidInput(error.format_message()) from None


def dry_run(client: Client, asked: Asked, redact: Callable[..., Any]) -> DryRun:
    """What it would do, and what its edits would change in the newest letter; nothing is changed."""
    letters = client.dead_letters
    plan = letters.plan(asked.selection, asked.terms)
    if not asked.edits:
        return DryRun(asked, plan)
    try:
        change = asked.change
        newest = letters.ls(asked.selection, limit=1)
        diff = letters.edit(newest[0], change, from_step=asked.terms.from_step)[1] if newest and change else []
    except InvalidInput as error:
        return DryRun(asked, plan, trouble=str(error))
    return DryRun(
        asked, plan, [one | {name: _shown(one, name, redact) for name in ("before", "after")} for one in diff]
    )


def _shown(one: dict[str, Any], name: str, redact: Callable[..., Any]) -> str:
    # Under its own name, so that a field which holds a secret is known as one.
    last = one["path"].rpartition(".")[2]
    return short(redact("state", {last: one[name]}).get(last, "[secret]"))


# ── doing it ─────────────────────────────────────────────────────────────────


def drive(user: str, steps: Generator[Progress]) -> None:
    """
    See a redrive through, on a thread of its own: it may take hours.

    Where this process ends first, the redrive stands as interrupted in the list, to be gone on with.
    """

    def run() -> None:
        try:
            with acting_as(user):
                for _ in steps:
                    pass
        except Exception:
            log.exception("a redrive was left; the list says where it stands")

    threading.Thread(target=run, name="agentq-redrive", daemon=True).start()


def begin(client: Client, asked: Asked, *, reason: str, user: str) -> str:
    """Begin a redrive of many and see it through behind the page; what to say."""
    steps = client.dead_letters.redrive(
        asked.selection, reason=reason, terms=asked.terms, change=asked.change, key=asked.key
    )
    first = next(steps)
    drive(user, steps)
    return f"redrive {first.job.job_id.hex[:8]} is under way: {first.job.matched:,} letters; below is how far it is"


def bring_back(client: Client, asked: Asked, *, reason: str) -> str:
    """
    Bring one letter back at once.

    Raises:
        InvalidInput: it was refused; the message says why.
    """
    outcomes: Counter[str] = Counter()
    whys: list[str] = []
    for progress in client.dead_letters.redrive(
        asked.selection, reason=reason, terms=asked.terms, change=asked.change, key=asked.key
    ):
        outcomes.update(progress.outcomes)
        whys += [why for _, _, why in progress.refusals if why]
        if not progress.driving:
            return "somebody else brings it back right now"
    if outcomes["redriven"]:
        return "the letter is redriven: its session goes on"
    for outcome, words in REFUSALS.items():
        if outcomes[outcome]:
            raise InvalidInput("; ".join([f"not redriven: such letters {words}", *whys]))
    return "nothing to redrive: the letter is not open any more"


# ── how far they are ─────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class JobLine:
    """A redrive in a list."""

    job: Job
    state: str
    what: str
    going: int
    well: int
    died_again: int

    @property
    def may(self) -> tuple[str, ...]:
        """What may be done with it."""
        if self.job.ended:
            return ()
        return ("stop", "resume") if self.job.abandoned and not self.job.terms.edits else ("stop",)


def job_lines(client: Client) -> list[JobLine]:
    """The newest redrives and what became of their letters."""
    store = client.dead_letters.redrives
    lines = []
    for job in store.recent(JOBS_SHOWN):
        found = store.outcomes(job.job_id)
        going, well, again = (found.get(state, 0) for state in ("redriving", "resolved", "redriven"))
        lines.append(JobLine(job, state_of(job), _named(job.selection), going, well, again))
    return lines


def _named(chosen: dict[str, Any]) -> str:
    letters = chosen.get("letters")
    parts = [f"{len(letters)} by id"] if letters else []
    parts += [f"{name} {str(value)[:24]}" for name, value in chosen.items() if name not in ("letters", "state")]
    return ", ".join(parts)


class JobAction(Action):
    """Stop a redrive, or go on with one that nobody drives, as the command line does."""

    tab = "aq-letters"

    def act(self, *, reason: str, user: str, **place: str) -> tuple[str, str]:
        letters, here = self.client.dead_letters, str(self.reverse_url("aq-letters"))
        job = letters.job(place["job_id"])
        if place["action"] == "stop":
            stopped = letters.stop(job, reason=reason)
            return f"the redrive is stopped: {stopped.redriven:,} of {stopped.matched:,} letters are redriven", here
        drive(user, letters.resume(job, reason=reason))
        return f"redrive {job.job_id.hex[:8]} goes on", here


ROUTES = (Route("aq-redrive-act", r"/redrive/(?P<job_id>[0-9a-f-]{36})/(?P<action>stop|resume)", JobAction),)
