"""Spending: a call's money reserved before it goes out, and its charge noted for the step's settlement."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Mapping
from contextvars import Token
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, TypeVar

from agentq import engine
from agentq.agents.listening import Hearer, call_back, call_out
from agentq.engine import Attempt
from agentq.errors import BudgetExceeded, FenceLost, InvalidInput, NotNow, UnknownPrice
from agentq.policies.budgets import estimate_tokens, fate_of, refuse
from agentq.policies.kinds import headers_of
from agentq.policies.prices import Prices, Quote, split
from agentq.policies.rates import Admission, Counter, Gate
from agentq.store.budgets import Budgets, Reserved, Wanted
from agentq.store.pool import Store, persist
from agentq.store.rates import StoredRates
from agentq.verdicts import Charge, Usage

log = logging.getLogger("agentq.spending")

Unpriced = Literal["refuse", "tokens"]

T = TypeVar("T")

# How long a call that waits for its neighbours looks away at most.
_LOOK_S = 0.5


class Budgeting:
    """What every spend of a process works with."""

    def __init__(
        self,
        store: Store,
        *,
        unpriced: Unpriced = "refuse",
        patience_s: float = 120.0,
        counter: Counter | None = None,
    ) -> None:
        self.gate = Gate(StoredRates(store), counter)
        self.budgets = Budgets(store)
        self.prices = Prices(self.budgets.prices)
        self.unpriced = unpriced
        self.patience_s = patience_s


@dataclass(frozen=True, slots=True)
class SpendRequest:
    """A call as the step asks for it."""

    model: str
    max_tokens: int
    input_tokens: int | None = None
    prompt: Any = None
    provider: str | None = None
    session_cost_usd: Decimal | float | str | None = None
    session_tokens: int | None = None


class ModelCall:
    """One reserved call: say what it used."""

    def __init__(self, wanted: Wanted, prices: Prices, gate: Gate) -> None:
        self._wanted = wanted
        self._prices = prices
        self._gate = gate
        self._charge: Charge | None = None
        self._heard: Mapping[str, Any] = {}
        self.price_version = wanted.price_version
        self.admission = Admission(0.0)
        self.reservation_id = wanted.reservation_id
        self.max_tokens = wanted.max_tokens

    def used(
        self,
        *,
        input_tokens: int,
        output_tokens: int,
        cached_input_tokens: int = 0,
        cost_usd: Decimal | float | str | None = None,
    ) -> None:
        """
        What the provider counted; `input_tokens` includes the cached ones. The last word counts.

        The cost is worked out from the price unless the provider named it.
        """
        if min(input_tokens, output_tokens, cached_input_tokens) < 0:
            raise InvalidInput("tokens cannot be negative")
        if cost_usd is not None:
            micros: int | None = micros_of(cost_usd)
            self.price_version = "the provider's own"
        else:
            quote = self._prices.quote(
                self._wanted.provider,
                self._wanted.model,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                cached_tokens=cached_input_tokens,
            )
            micros, self.price_version = quote.micros, quote.version
        self._charge = Charge(self.reservation_id, "charged", micros, input_tokens, cached_input_tokens, output_tokens)

    def answered(self, headers: Mapping[str, Any]) -> None:
        """The answer's headers: what they say of the provider's limits holds for the whole fleet."""
        self._gate.learn(self._wanted.provider, headers, model=self._wanted.model)

    def hear(self, headers: Mapping[str, Any]) -> None:
        """The same, while the call is out: taken to heart once it is over, because learning may wait for Postgres."""
        self._heard = headers

    @property
    def cost_micros(self) -> int:
        """What the call has been said to cost."""
        return (self._charge.cost_micros or 0) if self._charge is not None else 0

    def not_sent(self, why: str = "never sent") -> None:
        """The call did not go out: nothing is charged."""
        self._charge = Charge(self.reservation_id, "released", note=why)

    def close(self, error: BaseException | None) -> Charge:
        """What is written with the settlement, whatever became of the block."""
        if headers := self._heard or (headers_of(error) if error is not None else {}):
            self.answered(headers)
        if self._charge is not None:
            return self._charge
        if error is None:
            log.warning("call %s did not say what it used and is charged as estimated", self.reservation_id)
            return Charge(self.reservation_id, "uncertain", note="the step did not say what it used")
        return Charge(self.reservation_id, fate_of(error), note=type(error).__name__)

    def give_back(self, charge: Charge) -> None:
        """Return to the provider's rates what the call held and did not use; what is uncertain counts as used."""
        if self.admission.parts and charge.state != "uncertain":
            used = None if charge.state == "released" else charge.input_tokens + charge.output_tokens
            self._gate.give_back(self.admission, used)

    def usage_of(self, charge: Charge) -> Usage:
        """The charge as it is added to the step's usage."""
        match charge.state:
            case "released":
                return Usage()
            case "uncertain":
                return Usage(self._wanted.input_tokens, self._wanted.max_tokens, self._wanted.micros or 0)
            case _:
                micros = charge.cost_micros if charge.cost_micros is not None else self._wanted.micros or 0
                return Usage(charge.input_tokens, charge.output_tokens, micros)


class Spending:
    """Reserves calls of one attempt. Shared by both kinds of context."""

    def __init__(self, attempt: Attempt, budgeting: Budgeting, note: Callable[[Charge, Usage], None]) -> None:
        self._attempt = attempt
        self._with = budgeting
        self._note = note
        self._ordinal = 0
        self._changed = threading.Condition()
        self._open = 0
        self._turns = 0
        self._unsettled: list[Charge] = []

    def wanted(self, request: SpendRequest) -> Wanted:
        """
        The call as it is reserved: its largest size, at the price known now.

        Raises:
            UnknownPrice: nobody knows it, and settings do not let tokens alone count.
            InvalidInput: the request makes no sense.
        """
        if request.max_tokens <= 0:
            raise InvalidInput("max_tokens must be above 0: without a bound on its output a call has no price")
        if request.input_tokens is None and request.prompt is None:
            raise InvalidInput("give input_tokens, or the prompt to estimate them from")
        tokens = estimate_tokens(request.prompt) if request.input_tokens is None else request.input_tokens
        provider, model = split(request.model, request.provider)
        quote = self._with.prices.quote(provider, model, input_tokens=tokens, output_tokens=request.max_tokens)
        if quote.micros is None and self._with.unpriced == "refuse":
            raise UnknownPrice(f"{provider}:{model}")
        return self._numbered(request, provider, model, tokens, quote)

    def _numbered(self, request: SpendRequest, provider: str, model: str, tokens: int, quote: Quote) -> Wanted:
        claim = self._attempt.claim
        self._ordinal += 1
        cost = request.session_cost_usd
        return Wanted(
            reservation_id=f"{claim.ref.session_id}:{claim.ref.step_id}:{claim.fence}:{self._ordinal}",
            provider=provider,
            model=model,
            input_tokens=tokens,
            max_tokens=request.max_tokens,
            micros=quote.micros,
            price_version=quote.version,
            declared_micros=micros_of(cost) if cost is not None else None,
            declared_tokens=request.session_tokens,
        )

    def reserve(self, wanted: Wanted, *, beside_others: bool = False) -> ModelCall:
        """
        The call, with its money set aside in every scope.

        What this step's earlier calls left over is given back first, so that a step is not refused on account
        of itself. Calls side by side (`beside_others`) wait for each other where the rest is theirs.

        Raises:
            NotNow: it comes back when the budget's window opens, or when running calls have settled.
            BudgetExceeded: it does not fit, and waiting will not help.
            FenceLost: this attempt is superseded.
        """
        claim = self._attempt.claim
        while True:
            self._attempt.check()
            self._settle_closed()
            with self._changed:
                turn = self._turns
                self._open += 1  # also while it asks: whoever is refused meanwhile must not think itself alone
            answer = self._ask(wanted)
            if answer.status == "ok":
                return self._through_gate(wanted)
            if answer.status in ("superseded", "closed"):
                raise FenceLost(str(claim.ref.session_id), str(claim.ref.step_id), claim.fence)
            with self._changed:
                if answer.why != "held" or (turn == self._turns and not self._open):
                    raise refuse(answer, wanted)
                if not beside_others:
                    raise BudgetExceeded(
                        "the rest of the budget is held by a call of this very step, around this one",
                        answer.scope or "", answer.subject or "", answer.period or "", "end",
                    )  # fmt: skip
                self._changed.wait_for(lambda before=turn: self._turns != before or not self._open, _LOOK_S)  # type: ignore[misc]

    def _through_gate(self, wanted: Wanted) -> ModelCall:
        """The reserved call once its provider's rates allow it; refused, its money is given back."""
        call = ModelCall(wanted, self._with.prices, self._with.gate)
        try:
            tokens = wanted.input_tokens + wanted.max_tokens
            tenant = self._attempt.claim.ref.tenant
            call.admission = self._with.gate.admit(tenant, wanted.provider, tokens, model=wanted.model)
            if (wait_s := call.admission.wait_s) > 0:
                message = f"{wanted.provider} takes no more calls of {tenant} now"
                # Those who wait for the same bucket do not all come back at once.
                raise NotNow(message, delay_s=wait_s + random.random() * min(wait_s + 0.1, 5.0))
        except BaseException as error:
            call.not_sent(type(error).__name__)
            self.close(call, error)
            raise
        return call

    def _ask(self, wanted: Wanted) -> Reserved:
        granted = False
        try:
            claim = self._attempt.claim
            answer = self._persist(lambda: self._with.budgets.reserve(claim, wanted), wanted.reservation_id)
            engine.probe("reserved")
            granted = answer.status == "ok"
        finally:
            if not granted:
                self._leave()
        return answer

    def _leave(self, *charges: Charge, turn: bool = False) -> None:
        """One fewer under way; a `turn` may have made room for who waits."""
        with self._changed:
            self._unsettled += charges
            self._open -= 1
            self._turns += turn
            self._changed.notify_all()

    def close(self, call: ModelCall, error: BaseException | None) -> None:
        """Note what the call came to."""
        charge = call.close(error)
        call.give_back(charge)
        self._note(charge, call.usage_of(charge))
        self._leave(charge, turn=True)

    def _settle_closed(self) -> None:
        with self._changed:
            closed, self._unsettled = tuple(self._unsettled), []
            if not closed:
                return
            self._open += 1
        try:
            self._persist(lambda: self._with.budgets.settle(self._attempt.claim, closed), closed[0].reservation_id)
        finally:
            self._leave(turn=True)

    def _persist(self, action: Callable[[], T], what: str) -> T:
        return persist(
            action,
            patience_s=self._with.patience_s,
            what=f"reservation {what}",
            give_up=lambda: self._attempt.stopped is not None,
        )


class Spend:
    """`with ctx.spend(…) as call`: see `Context.spend`."""

    def __init__(self, spending: Spending, request: SpendRequest, *, beside_others: bool = False) -> None:
        self._spending = spending
        self._request = request
        self._beside_others = beside_others
        self._call: ModelCall | None = None
        self._out: Token[Hearer | None] | None = None

    def __enter__(self) -> ModelCall:
        wanted = self._spending.wanted(self._request)
        return self._begin(self._spending.reserve(wanted, beside_others=self._beside_others))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(error)

    def _begin(self, call: ModelCall) -> ModelCall:
        self._call, self._out = call, call_out(call)
        return call

    def _end(self, error: BaseException | None) -> None:
        if self._out is not None:
            call_back(self._out)
        if self._call is not None:
            self._spending.close(self._call, error)


class AsyncSpend(Spend):
    """`async with ctx.spend(…) as call`: see `AsyncContext.spend`. In a thread of its own, a plain `with` does."""

    def __init__(self, spending: Spending, request: SpendRequest) -> None:
        super().__init__(spending, request, beside_others=True)

    async def __aenter__(self) -> ModelCall:
        wanted = await asyncio.to_thread(self._spending.wanted, self._request)
        return self._begin(await asyncio.to_thread(self._spending.reserve, wanted, beside_others=True))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(error)


class EmbeddingSpend:
    """A call of an embedder, from whichever thread: what it takes in is what it costs."""

    def __init__(self, spending: Spending, request: SpendRequest) -> None:
        self._spending = spending
        self._request = request
        self._call: ModelCall | None = None

    def __enter__(self) -> None:
        self._call = self._spending.reserve(self._spending.wanted(self._request), beside_others=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._call is None:
            return
        if error is None:
            self._call.used(input_tokens=self._request.input_tokens or 0, output_tokens=0)
        self._spending.close(self._call, error)


def micros_of(usd: Decimal | float | str) -> int:
    """A sum in dollars as micros, rounded up."""
    micros = Decimal(str(usd)) * 1_000_000
    if not micros.is_finite() or micros < 0:
        raise InvalidInput(f"{usd!r} is not a sum of money")
    return int(-(-micros // 1))


__all__ = ["AsyncSpend", "Budgeting", "EmbeddingSpend", "ModelCall", "Spend", "SpendRequest", "Spending"]
