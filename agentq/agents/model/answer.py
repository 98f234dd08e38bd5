"""Answers: what a model's response comes to, before anything is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import (
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    RetryFeedbackPart,
    RetryInfo,
    TextPart,
    ToolCallPart,
    ToolRetryCause,
    ToolReturnPart,
)
from pydantic_ai.tools import ToolDefinition

from agentq.agents.model.conversation import Call
from agentq.agents.model.toolbox import Toolbox
from agentq.errors import ConfigError, Permanent, Semantic

FINAL = "final_result"


@dataclass(frozen=True, slots=True)
class Final:
    """The session's result."""

    value: Any
    note: ModelRequest | None = None


@dataclass(frozen=True, slots=True)
class Calls:
    """Tools to call; `feedback` answers those calls that cannot be made."""

    calls: tuple[Call, ...]
    feedback: ModelRequest | None = None
    flaw: str | None = None


@dataclass(frozen=True, slots=True)
class Flaw:
    """Nothing usable: what is wrong, for people, and what the model is told."""

    what: str
    feedback: ModelRequest


Answer = Final | Calls | Flaw


class Output:
    """The type of an agent's result: text, or anything Pydantic can check, which the model gives by a final call."""

    def __init__(self, type_: Any) -> None:
        self.is_text = type_ is str
        self.adapter: TypeAdapter[Any] = TypeAdapter(type_)
        self.wrapped = False
        self.tools: list[ToolDefinition] = []
        if not self.is_text:
            self.tools = [self._tool(type_)]

    def _tool(self, type_: Any) -> ToolDefinition:
        try:
            schema = self.adapter.json_schema()
        except Exception as error:
            raise ConfigError(f"the output {type_!r} has no JSON schema: {error}") from error
        described = schema.pop("description", None) or "The final answer, once all is done."
        if schema.get("type") != "object":
            self.wrapped = True
            definitions = schema.pop("$defs", None)
            schema = {"type": "object", "properties": {"answer": schema}, "required": ["answer"]}
            if definitions:
                schema["$defs"] = definitions
        return ToolDefinition(name=FINAL, parameters_json_schema=schema, description=described, kind="output")

    def check(self, call: ToolCallPart) -> Any:
        """
        The result that a final call gives.

        Raises:
            Semantic: it does not fit.
        """
        try:
            given = call.args_as_dict(raise_if_invalid=True)
            if self.wrapped:
                if "answer" not in given:
                    raise Semantic("the final answer does not fit: answer: Field required")
                given = given["answer"]
            return self.adapter.validate_python(given)
        except ValidationError as error:
            raise Semantic(f"the final answer does not fit: {_wrong(error)}") from None
        except (ValueError, AssertionError):
            raise Semantic("the final answer is not valid JSON") from None

    def again(self, value: Any) -> Any:
        """
        A result that was stored, and maybe changed by a person, checked once more.

        Raises:
            Permanent: it does not fit.
        """
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            raise Permanent(f"the approver's answer does not fit: {_wrong(error)}") from None


def read(response: ModelResponse, toolbox: Toolbox, output: Output) -> Answer:
    """What the response comes to. A valid final answer ends the session, whatever else was asked for beside it."""
    calls = [part for part in response.parts if isinstance(part, ToolCallPart)]
    if calls:
        return _final_of(calls, output) or _calls_of(calls, toolbox, output)
    text = "".join(part.content for part in response.parts if isinstance(part, TextPart)).strip()
    if response.finish_reason == "length":
        return _flaw("the answer was cut off at its token limit", "Your answer was cut off. Give a shorter one.")
    if response.finish_reason == "content_filter":
        return _flaw("a content filter stopped the answer", "Your answer was filtered. Answer differently.")
    if not text:
        return _flaw("the answer is empty", "Your answer was empty. Call a tool, or answer.", cause="no_output")
    if output.is_text:
        return Final(text)
    try:
        # Some models write the object as text instead of calling; what fits, fits.
        return Final(output.adapter.validate_json(text))
    except ValidationError:
        return _flaw("the answer is text, not the final call", f"Give your final answer by calling {FINAL}.")


def returned(call: Call, content: Any, **more: Any) -> ModelRequest:
    """A tool's result as a message."""
    return ModelRequest([ToolReturnPart(call.tool, content, tool_call_id=call.id, **more)])


def _final_of(calls: list[ToolCallPart], output: Output) -> Final | None:
    for call in calls:
        if call.tool_name == FINAL and not output.is_text:
            try:
                value = output.check(call)
            except Semantic:
                continue
            notes = [
                ToolReturnPart(
                    other.tool_name,
                    "The final answer was taken." if other is call else "Not called: the final answer came with it.",
                    tool_call_id=other.tool_call_id,
                )
                for other in calls
            ]
            return Final(value, ModelRequest(notes))
    return None


def _calls_of(calls: list[ToolCallPart], toolbox: Toolbox, output: Output) -> Answer:
    good: list[Call] = []
    bad: list[ModelRequestPart] = []
    flaws: list[str] = []
    for part in calls:
        try:
            good.append(_checked(part, toolbox, output, {call.id for call in good}))
        except Semantic as error:
            flaws.append(str(error))
            known = toolbox.find(part.tool_name) is not None or part.tool_name == FINAL
            info: RetryInfo[ToolRetryCause] = RetryInfo(cause="validation_error" if known else "unknown_tool")
            bad.append(
                ToolReturnPart(
                    part.tool_name, str(error), tool_call_id=part.tool_call_id, outcome="retried", retry=info
                )
            )
    feedback = ModelRequest(bad) if bad else None
    if not good and feedback is not None:
        return Flaw("; ".join(flaws), feedback)
    return Calls(tuple(good), feedback, "; ".join(flaws) or None)


def _checked(part: ToolCallPart, toolbox: Toolbox, output: Output, taken: set[str]) -> Call:
    if part.tool_name == FINAL and not output.is_text:
        output.check(part)
        raise AssertionError("a valid final answer has been taken before")
    entry = toolbox.find(part.tool_name)
    if entry is None:
        raise Semantic(f"there is no tool {part.tool_name!r}; there are: {', '.join(toolbox.names) or 'none'}")
    if part.tool_call_id in taken:
        raise Semantic("two calls have the same id")
    entry.check(part.args)
    try:
        arguments = part.args_as_dict(raise_if_invalid=True)
    except (ValueError, AssertionError):
        raise Semantic(f"the arguments of {part.tool_name} are not a JSON object") from None
    return Call(id=part.tool_call_id, tool=part.tool_name, arguments=arguments)


def _flaw(what: str, told: str, cause: Any = "model_retry") -> Flaw:
    return Flaw(what, ModelRequest([RetryFeedbackPart(told, retry=RetryInfo(cause=cause))]))


def _wrong(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in found)[:2000]
