"""One tool call: made once, whatever happens around it, and its end told to the model as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_ai.messages import ModelRequest

from agentq.agents.context import AsyncContext, Context
from agentq.agents.model.answer import returned
from agentq.agents.model.conversation import Call, Conversation
from agentq.agents.model.history import WRITER, to_store
from agentq.agents.model.toolbox import Calling, Entry
from agentq.agents.returns import Done, Next, Returned
from agentq.errors import ApprovalRefused, FenceLost, Semantic, Stopped
from agentq.payload import encode
from agentq.policies.failures import attempts_for
from agentq.verdicts import Failure

if TYPE_CHECKING:
    from agentq.agents.model.agent import ModelAgent


def call_sync(agent: ModelAgent, entry: Entry, state: Conversation, ctx: Context, call: Call) -> Returned:
    """Carry out one call of a plain function."""
    try:
        with Calling(agent.context_for(state, ctx)):
            value = ctx.call(entry.perform, **entry.check(call.arguments))
    except Exception as error:
        return _end(agent, ctx, _told(ctx, call, error))
    return _end(agent, ctx, _result(agent, ctx, call, value))


async def call_async(agent: ModelAgent, entry: Entry, state: Conversation, ctx: AsyncContext, call: Call) -> Returned:
    """Carry out one call of an `async def` function."""
    try:
        if entry.ready is not None:
            await entry.ready()
        with Calling(agent.context_for(state, ctx)):
            value = await ctx.call(entry.perform, **entry.check(call.arguments))
    except Exception as error:
        return _end(agent, ctx, _told(ctx, call, error))
    return _end(agent, ctx, _result(agent, ctx, call, value))


def _end(agent: ModelAgent, ctx: Context | AsyncContext, message: ModelRequest) -> Returned:
    """
    Each call appends its own return, so that parallel calls need not be copied by their join.
    """
    ctx.messages.append(to_store(message), by=WRITER)
    # Within a branch the join follows; a call that came alone goes straight back to the model.
    return Done() if ctx.in_branch else Next(agent.steps["model"])


def _result(agent: ModelAgent, ctx: Context | AsyncContext, call: Call, value: Any) -> ModelRequest:
    """What the tool returned; too long for a conversation, as its beginning and where the rest is."""
    text = value if isinstance(value, str) else encode(value).decode()
    if len(text) <= agent.result_max_chars:
        return returned(call, value)
    shown = text[: agent.result_max_chars]
    note = (
        f"[the first {len(shown):,} of {len(text):,} characters; the rest is stored: "
        f'read_result(call="{call.id}", offset={len(shown)}) shows more]'
    )
    return returned(call, f"{shown}\n{note}", metadata={"effect": ctx.last_effect_key, "chars": len(text)})


def _told(ctx: Context | AsyncContext, call: Call, error: Exception) -> ModelRequest:
    """
    What the model is told of a call that failed for good; it must not take it for done.

    Raises:
        Exception: the error itself, when another attempt may do better, or only a person can.
    """
    if isinstance(error, Stopped | FenceLost):
        raise error
    if isinstance(error, ApprovalRefused):
        return returned(call, f"{error}. The call was not carried out.", outcome="denied")
    failure = ctx.classify(error)
    if failure.kind == "unknown" or _comes_again(ctx, failure):
        raise error
    ctx.logger.warning("tool %s failed: %s", call.tool, failure.type)
    if isinstance(error, Semantic) or failure.kind == "semantic":
        return returned(call, f"{failure.message}\nCorrect it and call again, or go on without.", outcome="failed")
    why = f"{failure.type}: {failure.message}"[:2000]
    return returned(
        call,
        f"The call failed and gave no result: {why}\nDo not act or answer as if it had succeeded.",
        outcome="failed",
    )


def _comes_again(ctx: Context | AsyncContext, failure: Failure) -> bool:
    if failure.kind in ("semantic", "permanent"):
        return False
    return ctx.attempt < attempts_for(failure, ctx.attempts_max)
