"""What the shop grants. Decided from the order database alone: no sentence in a mail, and no model, can widen it."""

from __future__ import annotations

from tasks.support_desk.cases import Decision, Mail, Order, Understood

RETURN_DAYS = 60
REFUND_MAX_CENTS = 30_000


def decide(mail: Mail, asked: Understood, order: Order | None, own_orders: tuple[Order, ...] = ()) -> Decision:
    """
    What to do about a ticket.

    `order` is the one the mail names, `own_orders` are those of the sender's address. The
    mail server is taken to have verified that address; without that, refund nothing by mail.
    """
    match asked.intent:
        case "thanks":
            return Decision(outcome="thanks")
        case "complaint":
            return Decision(outcome="complaint")
        case "refund" | "address" | "where":
            return _about_an_order(mail, asked, order, own_orders)
        case _:
            return Decision(outcome="passed_on")


def _about_an_order(mail: Mail, asked: Understood, order: Order | None, own_orders: tuple[Order, ...]) -> Decision:
    if len(asked.orders) > 1:
        return Decision(outcome="needs_person", order=", ".join(asked.orders))
    if not asked.orders:
        # Reading out a status harms nobody; anything else needs the number.
        if asked.intent != "where" or len(own_orders) != 1:
            return Decision(outcome="which_order")
        order = own_orders[0]
    if order is None:
        return Decision(outcome="unknown_order", order=asked.orders[0])
    if order.email != mail.sender:
        return Decision(outcome="not_yours", order=order.number)
    if asked.intent == "refund":
        return _refund(asked, order)
    if asked.intent == "address":
        return _address(asked, order)
    return where(order)


def _refund(asked: Understood, order: Order) -> Decision:
    cents = order.total_cents if asked.amount_cents is None else asked.amount_cents
    facts = Decision(
        outcome="refunded", order=order.number, item=order.item, amount_cents=cents, currency=order.currency
    )
    if order.status == "cancelled":
        return facts.model_copy(update={"outcome": "already_cancelled"})
    if order.status == "shipped":
        return facts.model_copy(update={"outcome": "not_arrived"})
    if order.delivered_days is not None and order.delivered_days > RETURN_DAYS:
        return facts.model_copy(update={"outcome": "too_late"})
    # Two sums in one mail, or more than was paid: somebody should read it.
    if asked.amounts_named > 1 or not 0 < cents <= min(order.total_cents, REFUND_MAX_CENTS):
        return facts.model_copy(update={"outcome": "needs_person"})
    return facts.model_copy(update={"payment": order.payment})


def _address(asked: Understood, order: Order) -> Decision:
    facts = Decision(outcome="address_changed", order=order.number, address=asked.address)
    if order.status != "packing":
        return facts.model_copy(update={"outcome": "address_too_late"})
    if len(asked.address) < 10:
        return facts.model_copy(update={"outcome": "address_missing"})
    return facts


def where(order: Order) -> Decision:
    """Where a parcel is, as far as the shop knows."""
    facts = Decision(
        outcome="packing", order=order.number, item=order.item, carrier=order.carrier, tracking=order.tracking
    )
    match order.status:
        case "shipped" if not order.tracking:
            return facts.model_copy(update={"outcome": "not_scanned"})
        case "shipped" | "delivered":
            return facts.model_copy(update={"outcome": order.status})
        case "cancelled":
            return facts.model_copy(update={"outcome": "already_cancelled"})
        case _:
            return facts
