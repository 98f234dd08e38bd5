"""Functions of one's own in the sandbox: imported there by name, and only the result comes back."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from agentq import sandbox
from agentq.errors import ConfigError, SandboxFailed
from agentq.payload import decode, encode
from agentq.sandbox import Ended, Limits

_RESULT = ".result.json"

# Inside: the function is imported by name, and its arguments are read as its annotations say.
_CALL = """
import sys, json
given = json.load(open(".call.json"))
sys.path[:] = given["path"] + sys.path
def answer(**facts):
    open(".result.json", "w").write(json.dumps(facts))
try:
    from importlib import import_module
    from pydantic import TypeAdapter
    from pydantic_core import to_json
    import asyncio, inspect, typing
    found = import_module(given["module"])
    for part in given["name"].split("."):
        found = getattr(found, part)
    hints = typing.get_type_hints(found)
    signature = inspect.signature(found)
    bound = signature.bind_partial()
    for name, value in given["arguments"].items():
        bound.arguments[name] = TypeAdapter(hints.get(name, typing.Any)).validate_python(value)
    value = found(*bound.args, **bound.kwargs)
    if inspect.isawaitable(value):
        async def wait():
            return await value
        value = asyncio.run(wait())
    answer(value=json.loads(to_json(value)))
except BaseException as error:
    answer(kind=type(error).__name__, message=str(error)[:2000])
"""


class _Home(NamedTuple):
    """Where a function is imported from, inside."""

    module: str
    name: str
    shown: str
    path: str


def boxed(function: Callable[..., Any], limits: Limits) -> Callable[..., Any]:
    """
    The function as a call into a sandbox.

    Raises:
        ConfigError: it cannot be imported by name there.
    """
    home = _home(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(function).bind(*args, **kwargs)
        libraries = _libraries()
        facts = {
            "module": home.module,
            "name": home.name,
            "arguments": decode(encode(dict(bound.arguments))),
            "path": [home.path, *libraries],
        }
        box = sandbox.backend()
        if box.name == "docker":
            raise ConfigError("functions of this fleet run in bubblewrap or Landlock; docker has not their libraries")
        ended = box.run(
            [box.python(), "-I", "-S", "-c", _CALL],
            files={".call.json": encode(facts)},
            collect=[_RESULT],
            readable=[home.shown, *_shown(libraries)],
            limits=limits,
        )
        return _value(home, ended)

    call.__dict__.pop("__wrapped__", None)
    mark_boxed(call)
    call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return call


def mark_boxed(function: Callable[..., Any]) -> None:
    """Remember of a callable that what it does is done in the sandbox."""
    function.__agentq_boxed__ = True  # type: ignore[attr-defined]


def is_boxed(function: Callable[..., Any]) -> bool:
    """Whether it is."""
    return getattr(function, "__agentq_boxed__", False) is True


def _value(home: _Home, ended: Ended) -> Any:
    """What the function returned, or the error that it raised in there."""
    if _RESULT not in ended.files:
        said = ended.stderr.decode("utf-8", "replace").strip().splitlines()
        raise SandboxFailed(home.name, "NoResult", said[-1][:500] if said else "it said nothing", ended.ended_by)
    try:
        answer = decode(ended.files[_RESULT])
    except ValueError:
        raise SandboxFailed(home.name, "NoResult", "its result is not JSON", ended.ended_by) from None
    if not isinstance(answer, dict) or "value" not in answer:
        facts = answer if isinstance(answer, dict) else {}
        raise SandboxFailed(home.name, str(facts.get("kind", "?")), str(facts.get("message", "")), ended.ended_by)
    return answer["value"]


def _home(function: Callable[..., Any]) -> _Home:
    inner = inspect.unwrap(function)
    module, name = inner.__module__, inner.__qualname__
    spec = importlib.util.find_spec(module) if module != "__main__" else None
    if "<" in name or spec is None or spec.origin is None:
        raise ConfigError(
            f"{name} of {module} cannot run in a sandbox: it must stand at the top of a module that can be imported"
        )
    # Of a package, all of it is shown, and nothing beside it.
    origin = Path(spec.origin).resolve()
    depth = module.count(".") + (1 if origin.name == "__init__.py" else 0)
    top = origin.parents[depth - 1] if depth else origin
    return _Home(module, name, str(top), str(top.parent))


def _libraries() -> list[str]:
    """Where this process finds what is installed: not the fleet's own folder, and not its settings."""
    found = []
    for entry in sys.path:
        path = os.path.realpath(entry)
        if os.path.basename(path) in ("site-packages", "dist-packages", "lib-dynload") and os.path.isdir(path):
            found.append(path)
    own = str(Path(__file__).resolve().parents[2])
    return found if own in found else [*found, own]


def _shown(libraries: list[str]) -> list[str]:
    """Installed libraries as a whole; of a checkout of agentq, agentq alone."""
    own = Path(__file__).resolve().parents[1]
    return [*(path for path in libraries if path != str(own.parent) or own.parent.name.endswith("-packages")), str(own)]
