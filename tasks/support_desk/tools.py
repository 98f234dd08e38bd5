"""
The desk's tools: the few places where it touches the world.

Each is called through `ctx.call`, which remembers its result: a step that runs again after a crash
reads it instead of calling twice. What happens to a call that was cut off is declared here, per tool.
"""

from __future__ import annotations

import hashlib
import smtplib
import urllib.parse
from email.message import EmailMessage
from email.utils import formataddr, formatdate

import httpx
from pydantic import BaseModel

import agentq
from agentq import Permanent, Transient, effect
from tasks.support_desk import model, orders, rules
from tasks.support_desk.cases import Decision, Mail, Order, Understood, Usage
from tasks.support_desk.places import places

PAYMENTS_TIMEOUT_S = 6.0
MAIL_TIMEOUT_S = 6.0
MAIL_USER = "desk"


class Heard(BaseModel):
    """What was understood, by whom, and what it took."""

    understood: Understood
    by: str
    usage: Usage


class Worded(BaseModel):
    """An answer's text, by whom, and what it took."""

    text: str
    by: str
    usage: Usage


@effect(idempotent=True)
def understand(mail: Mail) -> Heard:
    """
    What the customer wants: read by the model when one is configured, else by rules.

    Idempotent, because a question asked twice harms nobody; at worst it is paid twice.
    """
    if at := model.endpoint():
        understood, usage = model.understand(at, mail)
        return Heard(understood=understood, by=at.model, usage=usage)
    return Heard(understood=rules.understand(mail), by=rules.NAME, usage=Usage())


@effect(idempotent=True)
def word(mail: Mail, understood: Understood, decision: Decision) -> Worded:
    """The answer's text: by the model when one is configured, else by rules."""
    if at := model.endpoint():
        text, usage = model.word(at, mail, understood, decision)
        return Worded(text=text, by=at.model, usage=usage)
    return Worded(text=rules.word(mail, understood, decision), by=rules.NAME, usage=Usage())


def find_order(tenant: str, number: str) -> Order | None:
    """The tenant's order of that number."""
    return orders.find(places().orders, tenant, number)


def find_customer(tenant: str, email: str) -> list[Order]:
    """What this address ordered before."""
    return orders.of_customer(places().orders, tenant, email)


@effect(idempotent=True)
def change_address(tenant: str, number: str, address: str) -> bool:
    """Send an order elsewhere. Idempotent by nature: setting the same address again changes nothing."""
    return orders.change_address(places().orders, tenant, number, address)


@effect(idempotent=True, key=lambda payment, cents, currency: f"refund:{payment}")  # noqa: ARG005
def issue_refund(payment: str, cents: int, currency: str) -> str:
    """
    Pay money back, once per payment, however many mails ask for it.

    The key names the payment, so that two tickets about one order share one refund. The provider
    honours it too: a call repeated after a crash gets the first call's answer, not a second refund.
    """
    body = {"payment": payment, "amount_cents": cents, "currency": currency, "reason": "requested_by_customer"}
    try:
        response = httpx.post(
            f"{places().payments_url}/refunds",
            headers={
                "Idempotency-Key": agentq.idempotency_key(),
                "Authorization": f"Bearer {places().payments_token}",
            },
            json=body,
            timeout=PAYMENTS_TIMEOUT_S,
        )
    except httpx.TransportError as error:
        raise Transient(f"payments: {type(error).__name__}") from None
    if response.status_code == 409 or response.status_code >= 500:
        raise Transient(f"payments: HTTP {response.status_code}", float(response.headers.get("Retry-After", 0)))
    if response.status_code != 201:
        raise Permanent(f"payments: HTTP {response.status_code} {response.json().get('error', '')}")
    return str(response.json()["id"])


def was_sent(tenant: str, mail: Mail, ticket: str, text: str) -> str | None:  # noqa: ARG001 - called as send_mail is
    """
    The Message-ID, when the mail server has taken that message already.

    Raises:
        ConnectionError: the mail server did not say; nothing may be sent before it does.
    """
    message_id = _message_id(tenant)
    try:
        response = httpx.get(
            f"{places().mail_url}/messages/{urllib.parse.quote(message_id, safe='')}",
            headers={"Authorization": f"Bearer {places().mail_token}"},
            timeout=MAIL_TIMEOUT_S,
        )
    except httpx.TransportError as error:
        raise ConnectionError(f"mail server: {type(error).__name__}") from None
    if response.status_code not in (200, 404):
        raise ConnectionError(f"mail server: HTTP {response.status_code}")
    return message_id if response.status_code == 200 else None


@effect(check=was_sent)
def send_mail(tenant: str, mail: Mail, ticket: str, text: str) -> str:
    """
    Answer a mail. SMTP would deliver a repeat as a second message, so after a crash `was_sent` is asked.

    Raises:
        Transient: the message was certainly not taken; it may be sent again.
        ConnectionError: it may have been taken; `was_sent` is asked before anything is sent again.
    """
    message = _message(tenant, mail, ticket, text)
    host, _, port = places().smtp.rpartition(":")
    try:
        server = smtplib.SMTP(host, int(port), timeout=MAIL_TIMEOUT_S)
    except (OSError, smtplib.SMTPException) as error:
        raise Transient(f"mail server: {type(error).__name__}") from None
    with server:
        try:
            server.login(MAIL_USER, places().mail_token)
        except smtplib.SMTPAuthenticationError:
            raise Permanent("mail server: wrong password") from None
        except (OSError, smtplib.SMTPException) as error:
            raise Transient(f"mail server: {type(error).__name__}") from None
        _hand_over(server, message)
    return str(message["Message-ID"])


def _hand_over(server: smtplib.SMTP, message: EmailMessage) -> None:
    try:
        server.send_message(message)
    except smtplib.SMTPRecipientsRefused:
        raise Permanent("mail server: it refuses the recipient") from None
    except smtplib.SMTPResponseException as error:
        if error.smtp_code == 421:
            raise ConnectionError("mail server: it closed before it confirmed") from None
        if error.smtp_code >= 500:
            raise Permanent(f"mail server: {error.smtp_code}") from None
        raise Transient(f"mail server: {error.smtp_code}") from None
    except (OSError, smtplib.SMTPException) as error:
        raise ConnectionError(f"mail server: {type(error).__name__} before it confirmed") from None


def _message(tenant: str, mail: Mail, ticket: str, text: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = f"help@{tenant}.example"
    message["To"] = formataddr((mail.name, mail.sender))
    message["Subject"] = mail.subject if mail.subject.lower().startswith("re:") else f"Re: {mail.subject}"
    message["Date"] = formatdate()
    message["Message-ID"] = _message_id(tenant)
    message["Auto-Submitted"] = "auto-replied"  # so that no other machine answers us (RFC 3834)
    message["X-Ticket"] = ticket
    if mail.message_id:
        message["In-Reply-To"] = mail.message_id
    message.set_content(text)
    return message


def _message_id(tenant: str) -> str:
    """The same in every attempt, because it is made from the effect's key."""
    return f"<{hashlib.sha256(agentq.idempotency_key().encode()).hexdigest()[:32]}@{tenant}.example>"
