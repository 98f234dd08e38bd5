"""The toolbox: functions as a model sees them, checked, called once, and their results cut to size."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import ValidationError
from pydantic_ai import Tool
from pydantic_ai.tools import ToolDefinition

from agentq.agents.effects import effect
from agentq.agents.model.reader import read_result
from agentq.agents.sandboxed import boxed, mark_boxed
from agentq.agents.tools import ToolContext, ToolOptions, options_of
from agentq.errors import ConfigError, Semantic
from agentq.payload import canonical, encode, fingerprint

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,57}\Z")

READER = read_result.__name__

# The context of the tool call that is being made; a variable, so that one function serves all calls.
_current: contextvars.ContextVar[ToolContext] = contextvars.ContextVar("agentq_tool_context")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tool."""

    name: str
    options: ToolOptions
    definition: ToolDefinition
    is_async: bool
    perform: Callable[..., Any]
    _validate: Callable[[Any], dict[str, Any]]
    # Asked before the call is claimed, and before a person is.
    ready: Callable[[], Awaitable[None]] | None = None

    @property
    def step(self) -> str:
        """The name of the step that calls it."""
        return f"tool-{self.name.lower()}"

    @property
    def version(self) -> str:
        """Of what a model is told of it: another description or schema is another version."""
        shown = self.definition
        told = [shown.name, shown.description, shown.parameters_json_schema]
        return fingerprint(b"tool", canonical(told)).hex()[:8]

    def check(self, arguments: Any) -> dict[str, Any]:
        """
        The arguments as the function takes them.

        Raises:
            Semantic: they do not fit; the message tells the model how.
        """
        try:
            return self._validate(arguments)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors())
            raise Semantic(f"the arguments of {self.name} do not fit: {wrong[:2000]}") from None


class Toolbox:
    """The tools of one agent by name."""

    def __init__(self, functions: Iterable[Callable[..., Any] | Tool[Any] | Entry]) -> None:
        self._entries: dict[str, Entry] = {}
        for function in [*functions, read_result]:
            entry = _entry(function)
            if entry.step in (other.step for other in self):
                raise ConfigError(f"two tools are named {entry.name!r}")
            self._entries[entry.name] = entry

    def __iter__(self) -> Any:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str) -> Entry | None:
        """The tool of that name."""
        return self._entries.get(name)

    @property
    def names(self) -> list[str]:
        return sorted(name for name in self._entries if name != READER)

    def definitions(self, *, reader: bool) -> list[ToolDefinition]:
        """The tools as they are shown to a model, in one order; the reader only where there is something to read."""
        return [entry.definition for entry in self if reader or entry.name != READER]


class Calling:
    """Sets the context of the tool calls within the block."""

    def __init__(self, context: ToolContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = _current.set(self._context)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def current() -> ToolContext:
    """The context of the tool call that is being made."""
    return _current.get()


def _entry(function: Callable[..., Any] | Tool[Any] | Entry) -> Entry:
    if isinstance(function, Entry):
        return function
    if isinstance(function, Tool):
        if function.takes_ctx:
            raise ConfigError(f"tool {function.name!r} wants a RunContext: use agentq.adapters.pydantic_ai.durable")
        function = function.function
    options = options_of(function)
    if not callable(function) or not hasattr(function, "__name__"):
        raise ConfigError(f"a tool is a function, not {function!r}")
    name = options.name or function.__name__
    if not _NAME.match(name):
        raise ConfigError(f"the tool name {name!r} is not allowed: a letter, then up to 57 of a-z, 0-9, '_' and '-'")
    bare, takes_context = _without_context(function)
    try:
        shown = Tool(bare, name=name, takes_ctx=False)
    except Exception as error:
        raise ConfigError(f"tool {name!r} cannot be shown to a model: {error}") from error
    schema = shown.function_schema
    if schema.positional_fields or schema.var_positional_field:
        raise ConfigError(f"tool {name!r} takes positional arguments; models name theirs")

    def validate(arguments: Any) -> dict[str, Any]:
        if isinstance(arguments, str):
            found = schema.validator.validate_json(arguments or "{}")
        else:
            found = schema.validator.validate_python({} if arguments is None else arguments)
        return dict(found)

    is_async = inspect.iscoroutinefunction(function) and options.sandbox is None
    perform = _performer(function, bare, name=name, options=options, takes_context=takes_context, is_async=is_async)
    return Entry(name, options, shown.tool_def, is_async, perform, validate)


def _without_context(function: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """A stand-in with the function's signature and docstring, without a first parameter of `ToolContext`."""
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    takes_context = bool(parameters) and hints.get(parameters[0].name) is ToolContext
    if takes_context:
        hints.pop(parameters[0].name)
        parameters = parameters[1:]

    def bare(**_: Any) -> None:
        raise AssertionError("only shown, never called")

    bare.__name__ = bare.__qualname__ = function.__name__
    bare.__doc__ = function.__doc__
    bare.__module__ = function.__module__
    # Annotations as types already: the names in them belong to the function's module.
    hints.pop("return", None)
    bare.__annotations__ = hints
    bare.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[p.replace(annotation=hints.get(p.name, p.annotation)) for p in parameters],
        return_annotation=inspect.Signature.empty,
    )
    return bare, takes_context


def _performer(
    function: Callable[..., Any],
    bare: Callable[..., Any],
    *,
    name: str,
    options: ToolOptions,
    takes_context: bool,
    is_async: bool,
) -> Callable[..., Any]:
    """The function as `ctx.call` takes it: bounded in time, its result in a form that can be stored."""
    if options.sandbox is not None:
        if takes_context:
            raise ConfigError(f"tool {name!r} runs in a sandbox, where there is no ToolContext")
        function = boxed(function, options.sandbox)
    signature = inspect.signature(bare)
    first = (lambda: (_current.get(),)) if takes_context else tuple

    async def perform_async(*args: Any, **kwargs: Any) -> Any:
        named = signature.bind(*args, **kwargs).arguments
        async with asyncio.timeout(options.timeout_s):
            value = await function(*first(), **named)
        return storable_result(value, _current.get().payload_max_bytes)

    def perform_sync(*args: Any, **kwargs: Any) -> Any:
        named = signature.bind(*args, **kwargs).arguments
        value = _within(options.timeout_s, name, lambda: function(*first(), **named))
        return storable_result(value, _current.get().payload_max_bytes)

    perform: Callable[..., Any] = perform_async if is_async else perform_sync
    if options.sandbox is not None:
        mark_boxed(perform)
    perform.__name__ = perform.__qualname__ = name
    # As the function itself, so that what people change of an approval's arguments is read by their types.
    perform.__signature__ = signature  # type: ignore[attr-defined]
    perform.__annotations__ = dict(bare.__annotations__)
    declared: dict[str, Any] = {
        "idempotent": options.idempotent or options.sandbox is not None,
        "check": options.check,
        "key": options.key,
    }
    if options.irreversible:
        declared |= {"irreversible": True, "to": options.to, "within": options.within, "question": options.question}
        declared |= {"auto": options.auto}
    if options.needs is not None:
        declared["needs"] = options.needs
    try:
        return effect(**declared)(perform)
    except TypeError as error:
        raise ConfigError(f"tool {name!r}: {error}") from None


def _within(timeout_s: float, name: str, call: Callable[[], Any]) -> Any:
    """
    The call's result, in a thread of its own.

    A thread cannot be ended: one that does not answer in time is left behind, and whether it acted is open.
    """
    answer: list[Any] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            answer.append((True, context.run(call)))
        except BaseException as error:
            answer.append((False, error))

    thread = threading.Thread(target=run, name=f"agentq-tool-{name}", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answer:
        raise TimeoutError(f"tool {name} did not answer within {timeout_s:g} s")
    ok, value = answer[0]
    if not ok:
        raise value
    return value


def storable_result(value: Any, max_bytes: int) -> Any:
    """The result in a form that can be stored: what has no JSON form as text, what is too large cut off."""
    try:
        size = len(encode(value))
    except TypeError:
        value = str(value)
        size = len(encode(value))
    if size <= max_bytes:
        return value
    text = value if isinstance(value, str) else encode(value).decode()
    kept = text.encode()[: max_bytes // 2].decode("utf-8", "ignore")
    return f"{kept}\n[cut off: the result had {size:,} bytes, {max_bytes // 2:,} were kept]"
