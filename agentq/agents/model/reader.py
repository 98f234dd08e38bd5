"""A tool of agentq's own: reads on in a result that was too long for the conversation."""

from __future__ import annotations

from agentq.agents.model import history as histories
from agentq.agents.tools import ToolContext, tool
from agentq.errors import Semantic
from agentq.payload import decode, encode

_PAGE_CHARACTERS = 8_000


@tool(idempotent=True, poll=True, retries=3)
def read_result(ctx: ToolContext, call: str, offset: int = 0) -> str:
    """Read on in a tool result that was too long to be shown whole.

    Args:
        call: the id that the shortened result names
        offset: the character to begin at
    """
    key = histories.stored_results(histories.read_whole(ctx.messages())).get(call)
    if key is None:
        raise Semantic(f"no result of a call {call!r} was cut off")
    found = ctx.effect_result(key)
    if found is None:
        raise Semantic(f"the result of call {call!r} is no longer stored")
    value = decode(found)
    text = value if isinstance(value, str) else encode(value).decode()
    page = text[max(offset, 0) : max(offset, 0) + _PAGE_CHARACTERS]
    end = max(offset, 0) + len(page)
    return f"{page}\n[characters {offset:,} to {end:,} of {len(text):,}]"
