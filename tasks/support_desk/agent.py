"""
The support desk's steps, from a mail to its answer.

    read ─► classify ─┬► look_up_order ──┐
      │               └► look_up_customer┴► decide ─┬► refund ─────────┐
      │                                     ▲       ├► redirect ───────┤
      │                                     │       ├► look_again ─────┤  (waits a moment first)
      └────────► reply (unreadable)         └───────┴──────────────────┴► reply ─► done
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

from pydantic import BaseModel, Field

from agentq import Agent, Branch, Context, Done, Fail, KeyConflict, Next, Permanent, Sleep, Spawn
from tasks.support_desk import policy, tools
from tasks.support_desk.cases import Decision, Mail, Order, Understood, Usage
from tasks.support_desk.mailbox import read_mail

CARRIER_PAUSE = "2s"


class Ticket(BaseModel):
    """One ticket on its way through the desk."""

    ticket: str = Field(description="the mail as it arrived")
    encoding: Literal["text", "base64"] = "text"
    source: str = Field("", max_length=200, description="where it came from, for people")
    mail: Mail = Mail()
    understood: Understood | None = None
    decision: Decision | None = None
    refund: str = ""
    by: str = ""

    def raw(self) -> bytes:
        """The mail's bytes."""
        return base64.b64decode(self.ticket) if self.encoding == "base64" else self.ticket.encode()


desk = Agent("support-desk", state=Ticket, version=1)


@desk.step(start=True)
def read(state: Ticket) -> Next | Done | Fail:
    """Read the mail, whatever state it is in. From here on the raw bytes are not carried along."""
    try:
        state.mail = read_mail(state.raw())
    except binascii.Error:
        return Fail("the ticket is not base64")
    state.ticket = ""
    if not state.mail.sender:
        return Fail(f"nobody to answer: {'; '.join(state.mail.problems)}")
    if state.mail.automatic:
        return Done({"ended": "automatic", "why": "written by a machine; an answer could start a mail loop"})
    if not state.mail.body:
        state.understood = Understood(intent="unclear")
        state.decision = Decision(outcome="unreadable")
        return Next(reply, state)
    return Next(classify, state)


@desk.step(retries=5, timeout="90s")
def classify(state: Ticket, ctx: Context) -> Next | Done | Spawn:
    """What does the customer want? Asks the model, or the rules."""
    heard = ctx.call(tools.understand, state.mail)
    _note(ctx, heard.usage)
    state.understood, state.by = heard.understood, heard.by
    ctx.progress("understood", intent=heard.understood.intent, by=heard.by)
    if heard.understood.intent == "spam":
        return Done({"ended": "spam", "why": "spam is not answered", "by": state.by})
    number = next(iter(heard.understood.orders), "")
    branches = [Branch(look_up_order, args={"number": number}), Branch(look_up_customer)]
    return Spawn(branches, then=decide, state=state)


@desk.step
def look_up_order(state: Ticket, ctx: Context, number: str) -> Done:  # noqa: ARG001
    """The order that the mail names, if this tenant has it."""
    return Done(tools.find_order(ctx.tenant, number))


@desk.step
def look_up_customer(state: Ticket, ctx: Context) -> Done:
    """What the sender ordered before; looked up beside the order, not after it."""
    return Done(tools.find_customer(ctx.tenant, state.mail.sender))


@desk.step
def decide(state: Ticket, ctx: Context) -> Next | Sleep:
    """What the shop does about it: policy decides, on the two look-ups."""
    found, orders = (result.value for result in ctx.results)
    order = Order.model_validate(found) if found else None
    own = tuple(Order.model_validate(each) for each in orders)
    assert state.understood
    state.decision = policy.decide(state.mail, state.understood, order, own)
    match state.decision.outcome:
        case "refunded":
            return Next(refund, state)
        case "address_changed":
            return Next(redirect, state)
        case "not_scanned":
            # The carrier may scan it any minute. No worker waits: the session sleeps in Postgres.
            return Sleep(CARRIER_PAUSE, then=look_again, state=state)
        case _:
            return Next(reply, state)


@desk.step
def look_again(state: Ticket, ctx: Context) -> Next:
    """Has the carrier scanned the parcel by now?"""
    assert state.decision
    order = tools.find_order(ctx.tenant, state.decision.order)
    if order:
        state.decision = policy.where(order)
    return Next(reply, state)


@desk.step(retries=8, timeout="30s")
def refund(state: Ticket, ctx: Context) -> Next:
    """Pay back what policy granted, once per payment."""
    decision = state.decision
    assert decision
    try:
        state.refund = ctx.call(tools.issue_refund, decision.payment, decision.amount_cents, decision.currency)
    except (Permanent, KeyConflict) as error:
        # The provider says no, or the payment was refunded with another amount: somebody should look.
        ctx.logger.warning("no refund for %s: %s", decision.order, error)
        state.decision = decision.model_copy(update={"outcome": "needs_person"})
    return Next(reply, state)


@desk.step(retries=5)
def redirect(state: Ticket, ctx: Context) -> Next:
    """Send an order that is still in the house to its new address."""
    decision = state.decision
    assert decision
    if not ctx.call(tools.change_address, ctx.tenant, decision.order, decision.address):
        state.decision = decision.model_copy(update={"outcome": "address_too_late"})
    return Next(reply, state)


@desk.step(retries=8, timeout="120s")
def reply(state: Ticket, ctx: Context) -> Done:
    """Word the answer, then send it. Both are remembered: a repeat neither words anew nor sends twice."""
    assert state.understood
    assert state.decision
    worded = ctx.call(tools.word, state.mail, state.understood, state.decision)
    _note(ctx, worded.usage)
    sent = ctx.call(tools.send_mail, ctx.tenant, state.mail, state.source or str(ctx.session_id), worded.text)
    result: dict[str, Any] = {"ended": state.decision.outcome, "answer": sent, "by": worded.by}
    if state.refund:
        decision = state.decision
        result |= {"refund": state.refund, "order": decision.order, "amount_cents": decision.amount_cents}
    return Done(result)


def _note(ctx: Context, used: Usage) -> None:
    if used.input_tokens or used.output_tokens:
        ctx.usage(input_tokens=used.input_tokens, output_tokens=used.output_tokens, cost_usd=used.cost_usd)
