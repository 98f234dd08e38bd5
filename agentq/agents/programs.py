"""Tools that run what a model writes: `run_python` and `run_shell`, in the sandbox or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, Field

from agentq import sandbox
from agentq.agents.effects import effect
from agentq.agents.tools import tool
from agentq.errors import InvalidInput
from agentq.sandbox import Ended

_TEXT_MAX = 20_000


class Ran(BaseModel):
    """What sandboxed code came to, for a model to read: what it printed, and how it ended."""

    code: int = Field(description="exit code; 0: it went well")
    ended_by: str = Field(description="itself, or the limit that ended it: wall, memory, processes, disk, output")
    stdout: str
    stderr: str
    files: dict[str, str] = Field(default_factory=dict, description="the files that were asked for, as text")


@tool(idempotent=True)
@effect(idempotent=True)
def run_python(code: str, files: Mapping[str, str] | None = None, collect: Sequence[str] = ()) -> Ran:
    """
    Run a Python program that a model wrote, with nothing but the standard library.

    `files` lie in its working folder; those that match `collect` come back.
    """
    box = sandbox.backend()
    return _ran(
        box.run(
            [box.python(), "-I", "-S", "main.py"], files={"main.py": code.encode()} | _texts(files), collect=collect
        )
    )


@tool(idempotent=True)
@effect(idempotent=True)
def run_shell(command: str, files: Mapping[str, str] | None = None, collect: Sequence[str] = ()) -> Ran:
    """
    Run a shell command that a model wrote, with the programs of the system.

    `files` lie in its working folder; those that match `collect` come back.
    """
    return _ran(sandbox.backend().run(["/bin/sh", "-c", command], files=_texts(files), collect=collect))


def _texts(files: Mapping[str, str] | None) -> dict[str, bytes]:
    given = {name: text.encode() for name, text in (files or {}).items()}
    if "main.py" in given:
        raise InvalidInput("main.py is the program itself: name the file otherwise")
    return given


def _ran(ended: Ended) -> Ran:
    return Ran(
        code=ended.code,
        ended_by=ended.ended_by,
        stdout=_text(ended.stdout),
        stderr=_text(ended.stderr),
        files={name: data.decode("utf-8", "replace") for name, data in ended.files.items()},
    )


def _text(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}… ({len(text):,} characters)"
