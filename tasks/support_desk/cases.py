"""The desk's vocabulary: what a ticket, an order and a decision are. Plain frozen values, no IO."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Intent = Literal["refund", "address", "where", "complaint", "question", "thanks", "spam", "unclear"]

# Every way in which a ticket can end. `replies.toml` has a text for each of them.
Outcome = Literal[
    "refunded",
    "already_cancelled",
    "too_late",
    "not_arrived",
    "not_yours",
    "unknown_order",
    "which_order",
    "needs_person",
    "address_changed",
    "address_too_late",
    "address_missing",
    "packing",
    "shipped",
    "not_scanned",
    "delivered",
    "passed_on",
    "complaint",
    "thanks",
    "unreadable",
]


class Value(BaseModel):
    """What a step remembers: frozen, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Mail(Value):
    """A message as far as it could be read. `sender` is empty when nobody can be answered."""

    sender: str = ""
    name: str = ""
    subject: str = ""
    body: str = ""
    message_id: str = ""
    automatic: bool = False
    problems: tuple[str, ...] = ()


class Understood(Value):
    """What the customer wants, in the customer's words only. It grants nothing: `policy` does."""

    intent: Intent
    language: str = "en"
    orders: tuple[str, ...] = ()
    amount_cents: int | None = None
    amounts_named: int = 0
    address: str = ""


class Order(Value):
    """One row of the shop's order database."""

    number: str
    email: str
    customer: str
    item: str
    total_cents: int
    currency: str
    status: Literal["packing", "shipped", "delivered", "cancelled"]
    delivered_days: int | None = None
    carrier: str = ""
    tracking: str = ""
    address: str
    payment: str


class Decision(Value):
    """What the shop does about a ticket, and the facts that the answer may mention."""

    outcome: Outcome
    order: str = ""
    item: str = ""
    amount_cents: int = 0
    currency: str = ""
    payment: str = ""
    carrier: str = ""
    tracking: str = ""
    address: str = ""


class Usage(Value):
    """What one request to a model used. Rules use nothing."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
