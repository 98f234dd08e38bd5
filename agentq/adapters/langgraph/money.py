"""Money of a graph: each model call of its nodes is reserved before it goes out, whoever makes it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult

from agentq.adapters.replay import MAX_TOKENS
from agentq.agents.context import AsyncContext
from agentq.agents.spending import ModelCall
from agentq.agents.tracing import Span
from agentq.policies.budgets import estimate_tokens

# What LangChain calls a provider, where prices know it by another name.
_PROVIDERS = {
    "amazon_bedrock": "aws", "azure_openai": "azure", "google_genai": "google", "google_vertexai": "google",
    "mistralai": "mistral",
}  # fmt: skip
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")


class Purse(BaseCallbackHandler):
    """Reserves each call of a LangChain model in every budget, and settles what it used; a refusal ends the call."""

    raise_error = True  # a call that no budget allows must not go out

    def __init__(self, ctx: AsyncContext) -> None:
        self._ctx = ctx
        self._open: dict[UUID, tuple[ExitStack, ModelCall, Span]] = {}

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[Any]], *, run_id: UUID, **more: Any
    ) -> None:
        """A chat model is about to be called."""
        text = "".join(
            f"{message.content}{getattr(message, 'tool_calls', '')}" for batch in messages for message in batch
        )
        self._begin(run_id, serialized, text, more)

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **more: Any) -> None:
        """A model of plain texts is about to be called."""
        self._begin(run_id, serialized, "".join(prompts), more)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """It answered."""
        if run_id not in self._open:
            return
        stack, call, span = self._open.pop(run_id)
        with stack:
            call.hear(_headers(response))
            used = _used(response)
            if used is not None:
                call.used(**used)
                span.used(**used, cost_micros=call.cost_micros, price_version=call.price_version, **_kinds_of(response))
            span.output = [_said(one) for row in response.generations for one in row]

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """It failed; whether it is charged, the error says."""
        if run_id in self._open:
            stack = self._open.pop(run_id)[0]
            stack.__exit__(type(error), error, error.__traceback__)

    def close(self, error: BaseException | None) -> None:
        """Settle calls that nobody told the end of, as those that a cancelled node leaves behind."""
        while self._open:
            _, (unended, *_) = self._open.popitem()
            unended.__exit__(type(error) if error else None, error, None)

    def _begin(self, run_id: UUID, serialized: dict[str, Any] | None, text: str, more: dict[str, Any]) -> None:
        known = {**(more.get("invocation_params") or {}), **(more.get("metadata") or {})}
        provider, model = _named(serialized or {}, known)
        most = next((int(known[name]) for name in (*_MAX_TOKENS, "ls_max_tokens") if known.get(name)), MAX_TOKENS)
        described = known.get("tools") or known.get("functions") or ""
        stack = ExitStack()
        try:
            span = stack.enter_context(self._ctx.trace("model", model, input=text, provider=provider, max_tokens=most))
            tokens = estimate_tokens(f"{text}{described}")
            call = stack.enter_context(
                self._ctx.spend(model=model, provider=provider, input_tokens=tokens, max_tokens=most)
            )
        except BaseException as error:
            stack.__exit__(type(error), error, error.__traceback__)
            raise
        self._open[run_id] = (stack, call, span)


def _named(serialized: dict[str, Any], known: dict[str, Any]) -> tuple[str, str]:
    """Provider and model as prices know them; models of LangChain's for tests cost nothing."""
    path = serialized.get("id") or []
    if any(str(part).startswith("fake") for part in path):
        return "test", str(path[-1])
    provider = str(known.get("ls_provider") or known.get("_type") or "unknown").lower()
    model = known.get("ls_model_name") or known.get("model") or known.get("model_name") or "unknown"
    return _PROVIDERS.get(provider, provider), str(model)


def _headers(response: LLMResult) -> dict[str, Any]:
    """The answer's headers, where the model was made with `include_response_headers`."""
    for row in response.generations:
        for one in row:
            told = getattr(getattr(one, "message", None), "response_metadata", None) or {}
            if isinstance(told.get("headers"), dict):
                return dict(told["headers"])
    return {}


def _said(one: Any) -> Any:
    """What a model said and wants called."""
    calls = getattr(getattr(one, "message", None), "tool_calls", None)
    return {"text": one.text} | ({"calls": calls} if calls else {})


def _kinds_of(response: LLMResult) -> dict[str, int]:
    """The kinds of tokens that the provider tells apart."""
    found = [
        getattr(getattr(one, "message", None), "usage_metadata", None) for row in response.generations for one in row
    ]
    kinds: dict[str, int] = {}
    for usage in filter(None, found):
        for kind, where, name in (
            ("cached_tokens", "input_token_details", "cache_read"),
            ("cache_write_tokens", "input_token_details", "cache_creation"),
            ("reasoning_tokens", "output_token_details", "reasoning"),
        ):
            if tokens := (usage.get(where) or {}).get(name):
                kinds[kind] = kinds.get(kind, 0) + int(tokens)
    return kinds


def _used(response: LLMResult) -> dict[str, int] | None:
    """What the provider counted, from wherever its integration puts it."""
    found = [
        getattr(getattr(one, "message", None), "usage_metadata", None) for row in response.generations for one in row
    ]
    counted = [usage for usage in found if usage]
    if counted:
        return {name: sum(int(usage[name]) for usage in counted) for name in ("input_tokens", "output_tokens")}
    told = (response.llm_output or {}).get("token_usage") or {}
    if "prompt_tokens" in told:
        return {"input_tokens": int(told["prompt_tokens"]), "output_tokens": int(told.get("completion_tokens") or 0)}
    return None
