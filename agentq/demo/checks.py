"""The comparison at the end: what should have happened, against the records of those to whom it happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UNANSWERED = ("fails", "automatic", "spam")
SHOWN = 5


@dataclass(frozen=True)
class Check:
    """One promise, whether it held, and the figures."""

    name: str
    ok: bool
    figures: str
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What a person who read the ticket says should become of it."""

    ticket: str
    ends: str
    refund: tuple[str, int] | None = None
    address: tuple[str, str] | None = None

    @property
    def tenant(self) -> str:
        return self.ticket.split("/")[0]

    @classmethod
    def from_json(cls, ticket: str, facts: Mapping[str, Any]) -> Expected:
        refund, address = facts.get("refund"), facts.get("address")
        return cls(
            ticket,
            facts["ends"],
            refund=(str(refund[0]), int(refund[1])) if refund else None,
            address=(str(address[0]), str(address[1])) if address else None,
        )


@dataclass(frozen=True)
class Ended:
    """How a ticket's session ended, by agentq's own record."""

    ticket: str
    tenant: str
    session_id: str
    state: str
    result: Mapping[str, Any] | None
    failure: str

    @property
    def ends(self) -> str:
        """The outcome in the words of `Expected`."""
        if self.state == "failed":
            return "fails"
        return str((self.result or {}).get("ended", self.state))


@dataclass(frozen=True)
class Refund:
    """One refund that the payment provider made, by its record."""

    tenant: str
    order: str
    amount_cents: int
    payment: str


@dataclass(frozen=True)
class Interference:
    """What was done to the fleet in the middle, and what became of it."""

    in_hand: int = 0
    ran_again: int = 0
    unsent: int = 0
    found_again: int = 0


def sessions(expected: Iterable[Expected], ended: Iterable[Ended], repeated: int) -> Check:
    """Each ticket has one session, submitted twice or not, and it has ended."""
    tickets = {each.ticket for each in expected}
    found = Counter(each.ticket for each in ended)
    wrong = [f"{ticket}: {found[ticket]} sessions" for ticket in sorted(tickets) if found[ticket] != 1]
    wrong += [f"{ticket}: nobody sent it" for ticket in sorted(set(found) - tickets)]
    wrong += [f"{each.ticket}: {each.state}" for each in ended if each.state not in ("done", "failed")]
    if repeated:
        wrong.append(f"the second submission started {repeated} sessions anew")
    figures = f"{len(tickets)} tickets submitted twice, {sum(found.values())} sessions, {repeated} doubled"
    return _check("one session per ticket, all ended", wrong, figures)


def answers(expected: Iterable[Expected], ended: Iterable[Ended], messages: Iterable[Mapping[str, Any]]) -> Check:
    """
    By the mail server's record, each ticket has exactly one answer.

    Those that must not be answered (no return address, spam, answering machines) have none, and a recorded reason.
    """
    messages = list(messages)
    sent = Counter(str(message["ticket"]) for message in messages)
    ids = {str(message["ticket"]): str(message["message_id"]) for message in messages}
    by_ticket = {each.ticket: each for each in ended}
    wrong, answered, silent = [], 0, 0
    for each in expected:
        end = by_ticket.get(each.ticket)
        ends = end.ends if end else "missing"
        claimed = str((end.result or {}).get("answer", "")) if end else ""
        if ends in UNANSWERED:
            silent += 1
            if sent[each.ticket]:
                wrong.append(f"{each.ticket}: ended as {ends}, yet {sent[each.ticket]} answers went out")
            if ends == "fails" and each.ends != "fails":
                wrong.append(f"{each.ticket}: not answered: {end.failure if end else ''}")
        elif sent[each.ticket] != 1:
            wrong.append(f"{each.ticket}: {sent[each.ticket]} answers")
        elif claimed != ids[each.ticket]:
            wrong.append(f"{each.ticket}: the session names another message than the mail server")
        else:
            answered += 1
    known = {each.ticket for each in expected}
    wrong += [f"{ticket}: answers to an unknown ticket" for ticket in sorted(set(sent) - known)]
    figures = f"{answered} answered once, {silent} closed with a reason and no answer, {len(messages)} messages in all"
    return _check("each ticket answered, by the mail server's record", wrong, figures)


def refunds(
    wanted: Iterable[tuple[str, str, int]], made: Iterable[Refund], requests: Iterable[Mapping[str, Any]]
) -> Check:
    """By the provider's record, each refund was made exactly once, and nobody asked for one under a second key."""
    made, requests = list(made), list(requests)
    should, did = Counter(dict.fromkeys(wanted, 1)), Counter((r.tenant, r.order, r.amount_cents) for r in made)
    wrong = [f"{_refund(each)}: not made" for each in should if not did[each]]
    wrong += [f"{_refund(each)}: made {count} times" for each, count in did.items() if should[each] and count > 1]
    wrong += [f"{_refund(each)}: made, and nobody should have got it" for each in did if not should[each]]
    keys: dict[str, set[str]] = {}
    for request in requests:
        keys.setdefault(str(request["payment"]), set()).add(str(request["key"]))
    wrong += [f"{payment}: asked under {len(used)} keys" for payment, used in keys.items() if len(used) > 1]
    total: Counter[str] = Counter()
    for refund in made:
        total[refund.tenant] += refund.amount_cents
    sums = ", ".join(f"{tenant} {cents / 100:.2f}" for tenant, cents in sorted(total.items()))
    figures = f"{len(made)} refunds ({sums}), asked for {len(requests)} times"
    return _check("each refund made exactly once, by the payment provider's record", wrong, figures)


def addresses(expected: Iterable[Expected], before: Mapping[str, str], after: Mapping[str, str]) -> Check:
    """By the order database, the addresses that should have changed did, and no other."""
    wanted = {each.address[0]: each.address[1] for each in expected if each.address}
    changed = {order: address for order, address in after.items() if before.get(order) != address}
    wrong = [f"{order}: goes to {after.get(order)!r}" for order in wanted if changed.get(order) != wanted[order]]
    wrong += [f"{order}: changed, and nobody asked" for order in changed if order not in wanted]
    return _check("addresses changed as asked, by the order database", wrong, f"{len(changed)} changed")


def judgement(expected: Iterable[Expected], ended: Iterable[Ended]) -> Check:
    """Each ticket was decided as a person would have."""
    ends = {each.ticket: each.ends for each in ended}
    expected = list(expected)
    wrong = [
        f"{each.ticket}: {ends.get(each.ticket, 'missing')}, a person says {each.ends}"
        for each in expected
        if ends.get(each.ticket) != each.ends
    ]
    return _check("decided as a person would", wrong, f"{len(expected) - len(wrong)} of {len(expected)}")


def interference(what: Interference) -> Check:
    """The faults really hit something, and what they hit ran again: else this run shows nothing."""
    wrong = []
    if not what.in_hand:
        wrong.append("no worker with a step in hand was killed")
    if what.ran_again < what.in_hand:
        wrong.append(f"{what.in_hand - what.ran_again} steps of the killed worker did not run again")
    if not what.unsent:
        wrong.append("no broker with messages in it was emptied")
    if what.found_again < what.unsent:
        wrong.append(f"{what.unsent - what.found_again} steps whose message was lost did not run")
    figures = (
        f"{what.ran_again} of {what.in_hand} steps of the killed worker ran again, "
        f"{what.found_again} of {what.unsent} steps ran whose message the broker had"
    )
    return _check("the kill and the empty broker hit work, and all of it went on", wrong, figures)


def granted(ended: Iterable[Ended]) -> set[tuple[str, str, int]]:
    """The refunds that sessions say they made. Several tickets may speak of one."""
    found = set()
    for each in ended:
        if each.result and each.result.get("refund"):
            found.add((each.tenant, str(each.result["order"]), int(each.result["amount_cents"])))
    return found


def _refund(key: tuple[str, str, int]) -> str:
    return f"{key[0]} {key[1]} {key[2] / 100:.2f}"


def _check(name: str, wrong: list[str], figures: str) -> Check:
    if len(wrong) > SHOWN:
        wrong = [*wrong[:SHOWN], f"and {len(wrong) - SHOWN} more"]
    return Check(name, not wrong, figures, tuple(wrong))
