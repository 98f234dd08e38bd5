"""The tools: the service refuses, loses its answer, hangs, or answers garbage; with and without having acted."""

from __future__ import annotations

from agentq.chaos.strike import Evidence, Strike

TRACE_TIMEOUT_S = 8.0


def fail(strike: Strike) -> Evidence:
    """A third of the calls is refused, or loses its answer."""
    return _weather(strike, refused=0.25, lost=0.08)


def hang(strike: Strike) -> Evidence:
    """A call in seven is never answered."""
    return _weather(strike, hung=0.15)


def garbage(strike: Strike) -> Evidence:
    """A call in five is answered with something that is no answer."""
    return _weather(strike, garbage=0.2)


def _weather(strike: Strike, **shares: float) -> Evidence:
    strike.begins(strike.everybody())
    try:
        strike.service.weather(shares, strike.blow.seed)
        strike.wait(strike.blow.lasts_s)
    finally:
        strike.service.weather({})
        strike.heals()

    def counts() -> dict[str, int]:
        found = [request for request in strike.since() if request.fate in shares]
        strike.sessions |= {request.session for request in found}
        return {fate: n for fate in shares if (n := sum(request.fate == fate for request in found))}

    seen: dict[str, int] = strike.until(counts, TRACE_TIMEOUT_S, "no call met the weather")
    return {f"calls {fate}": count for fate, count in seen.items()}
