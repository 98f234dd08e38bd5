"""The format of runbooks: read strictly, compared line by line. `runbooks/README.md` describes it for people."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SECTIONS = (
    "Symptoms",
    "What to look at",
    "What to do",
    "How to know that it worked",
    "What not to do",
)

Words = Mapping[str, str | Callable[[], str]]

_FENCE = re.compile(r"^```(\S*)\s*$")
_EXIT = re.compile(r"^\[exit (\d+)\]$")
_WAIT = re.compile(r"\s+# wait$")
_WORD = re.compile(r"\b[A-Z][A-Z_]{2,}\b")


class BadRunbook(AssertionError):
    """A runbook breaks its format."""


@dataclass
class Command:
    """One command, and what it must print."""

    line: int
    text: str
    expected: list[str] = field(default_factory=list)
    exit_code: int = 0
    wait: bool = False

    def filled(self, words: Words) -> str:
        """The command with the incident's values."""
        return fill(self.text, words)


def commands_of(path: Path) -> list[Command]:
    """
    The commands of a runbook, in order.

    Raises:
        BadRunbook: a `console` block does not begin with a command, or is not closed.
    """
    found: list[Command] = []
    inside: str | None = None
    current: Command | None = None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if fence := _FENCE.match(line):
            inside = None if inside is not None else fence[1]
            current = None
        elif inside == "console":
            current = _read(path, number, line, current, found)
    if inside is not None:
        raise BadRunbook(f"{path.name}: a block is not closed")
    return found


def _read(path: Path, number: int, line: str, current: Command | None, found: list[Command]) -> Command:
    if line.startswith("$ "):
        text = line[2:].rstrip()
        current = Command(number, _WAIT.sub("", text), wait=bool(_WAIT.search(text)))
        found.append(current)
    elif current is None:
        raise BadRunbook(f"{path.name}:{number}: a console block begins with a command: '$ …'")
    elif line.startswith("> ") and not current.expected:
        text = line[2:].rstrip()
        current.wait = bool(_WAIT.search(text))
        current.text = f"{current.text}\n{_WAIT.sub('', text)}"
    elif match := _EXIT.match(line):
        current.exit_code = int(match[1])
    else:
        current.expected.append(line.rstrip())
    return current


def sections_of(path: Path) -> list[str]:
    """The titles of its sections."""
    return re.findall(r"^## (.+?)\s*$", path.read_text("utf-8"), re.MULTILINE)


def fill(text: str, words: Words) -> str:
    """Put the incident's values for its words."""

    def value(match: re.Match[str]) -> str:
        found = words.get(match[0], match[0])
        return found() if callable(found) else found

    return _WORD.sub(value, text)


def difference(expected: list[str], printed: str, words: Words | None = None) -> str | None:
    """
    The first line that is not as expected; None when all are.

    `…` matches anything within a line; a line of `…` alone any number of lines. Runs of blanks count as one.
    A word in capitals is its value, or itself: tables have such headings.
    """
    known = {name: value() if callable(value) else value for name, value in (words or {}).items()}
    wanted = [_plain(line) for line in expected]
    while wanted and not wanted[-1]:
        wanted.pop()
    lines = [_plain(line) for line in printed.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if _match(wanted, lines, known):
        return None
    reached = max((n for n in range(len(wanted) + 1) if _match([*wanted[:n], "…"], lines, known)), default=0)
    missing = wanted[reached] if reached < len(wanted) else "(nothing more)"
    return f"expected: {missing}\nprinted:\n{printed}"


def _match(wanted: list[str], lines: list[str], known: Mapping[str, str]) -> bool:
    if not wanted:
        return not lines
    if wanted[0] == "…":
        return any(_match(wanted[1:], lines[n:], known) for n in range(len(lines) + 1))
    if not lines:
        return False
    pattern = ".*".join(_pattern(part, known) for part in wanted[0].split("…"))
    return re.fullmatch(pattern, lines[0]) is not None and _match(wanted[1:], lines[1:], known)


def _pattern(text: str, known: Mapping[str, str]) -> str:
    parts = _WORD.split(text)
    words = [f"(?:{word}|{re.escape(known[word])})" if word in known else word for word in _WORD.findall(text)]
    return "".join(re.escape(part) + word for part, word in zip(parts, [*words, ""], strict=True))


def _plain(line: str) -> str:
    return " ".join(line.split())
