"""Budgets: how large a call may become, what a refusal means, and what a failed call is charged."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any, Literal

from agentq.errors import BudgetExceeded, NotNow, UnknownPrice
from agentq.policies.kinds import status_of
from agentq.store.budgets import Reserved, Wanted
from agentq.verdicts import usd

# Estimates err towards more: what is reserved too much comes back at the settlement.
MARGIN = 1.25

# Steps that wait for a window do not all come back in the same second.
WINDOW_JITTER_S = 30.0

_PIECES = re.compile(r"[A-Za-z]+|[0-9]+|\s+|[^\x00-\x7f]+|.")


def estimate_tokens(what: Any) -> int:
    """
    About how many tokens a text, or anything with a JSON form, becomes; without the model's tokenizer.

    Errs towards more, except for long runs of base64.
    """
    text = what if isinstance(what, str) else json.dumps(what, ensure_ascii=False, default=str)
    return max(int(sum(map(_weight, _PIECES.findall(text))) * MARGIN), 1)


def _weight(piece: str) -> float:
    first = piece[0]
    if first.isspace():
        # A single blank belongs to the word that follows it.
        return 0.0 if piece == " " else 1.0
    if first.isdigit():
        return -(-len(piece) // 3)
    if first.isascii():
        if not first.isalpha():
            return 0.9
        mixed = len(piece) > 12 or not (piece.islower() or piece.isupper() or piece.istitle())
        return len(piece) / 2.2 if mixed else 1.0 + max(len(piece) - 7, 0) / 4
    # Two bytes a letter for Greek or Russian, three for Chinese: the tokenizer knows them less well.
    return len(piece.encode("utf-8", "replace")) / 2.4


def anchored_tokens(after: tuple[int, int] | None, added: Any) -> int:
    """
    The input of the next call: what the last one was said to have used, and an estimate of what was added since.

    `after` is the last call's input and output tokens as the provider counted them, which includes
    instructions and tool schemas; None before the first call, when `added` is everything.
    """
    return (sum(after) if after else 0) + estimate_tokens(added)


def refuse(answer: Reserved, wanted: Wanted, draw: Callable[[], float] = random.random) -> Exception:
    """What a refused call raises: it comes back when its budget opens, or a person decides, or it ends here."""
    if answer.status == "unpriced":
        return UnknownPrice(f"{wanted.provider}:{wanted.model}")
    scope, subject, period = answer.scope or "tenant", answer.subject or "", answer.period or "day"
    what = f"{scope} {subject}".strip()
    said = f"the budget of {what} for {'the whole' if period == 'session' else 'this'} {period}"
    if answer.why == "held":
        # The rest is reserved by calls that run now; mostly they use less than they reserved.
        return NotNow(f"{said} is held by calls that run now", delay_s=0.5 + draw())
    left = _left(answer)
    if answer.why == "never":
        message = f"{said} is smaller than this one call may cost: {left}"
        return BudgetExceeded(message, scope, subject, period, "park" if answer.on_refusal == "park" else "end")
    if answer.on_refusal == "wait" and answer.wait_s is not None:
        return NotNow(f"{said} is spent: {left}", delay_s=answer.wait_s + draw() * WINDOW_JITTER_S)
    return BudgetExceeded(f"{said} is spent: {left}", scope, subject, period, answer.on_refusal or "end")


def _left(answer: Reserved) -> str:
    parts = []
    if answer.limit_micros is not None:
        parts.append(f"{usd(answer.spent_micros)} of {usd(answer.limit_micros)} spent")
    if answer.limit_tokens is not None:
        parts.append(f"{answer.spent_tokens or 0:,} of {answer.limit_tokens:,} tokens spent")
    return ", ".join(parts)


def fate_of(error: BaseException) -> Literal["released", "uncertain"]:
    """
    What a call that raised is charged: nothing when it never went out or was refused, else its estimate.

    An answer with an error status was not billed. A time-out, or anything else once the call was out,
    may have been.
    """
    if status_of(error) is not None:
        return "released"
    names = {ancestor.__name__ for ancestor in type(error).__mro__}
    if isinstance(error, ConnectionRefusedError) or names & _NEVER_SENT:
        return "released"
    return "uncertain"


# By class name, as in `agentq.policies.failures`: the connection was never made, or the request never left.
_NEVER_SENT = frozenset(
    {
        "ConnectError", "ConnectTimeout", "PoolTimeout", "NewConnectionError", "gaierror", "UnsupportedProtocol",
        "InvalidURL", "RateLimitError", "AuthenticationError", "PermissionDeniedError", "NotFoundError",
        "BadRequestError", "UnprocessableEntityError", "ModelRateLimitError", "ModelAuthenticationError",
        "ModelNotFoundError", "ModelRequestRejectedError", "ModelQuotaExceededError", "ModelOverloaded",
        "ModelOverloadedError", "OverloadedError", "DependencyDown", "NotNow",
    }
)  # fmt: skip

__all__ = ["anchored_tokens", "estimate_tokens", "fate_of", "refuse", "usd"]
