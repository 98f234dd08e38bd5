"""
Causes: which failures are the same trouble, whatever ids, amounts and customers they name.

A cause is a short digest over the failure's kind, the exception's type, the place in the user's code,
and the message without everything that varies from one session to the next. It is stored with each
dead letter, so a rule that changes here begins a new cause for the old trouble: change them rarely.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

# Longer than any rule needs, short enough that a message made of a whole document costs nothing.
_READ_MAX = 1500
_KEPT_MAX = 400
_SHOWN_MAX = 160

# What these quote is code: the name of an argument, an attribute, a module. Others quote somebody's data.
_QUOTES_CODE = frozenset(
    {"AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "TypeError", "UnboundLocalError"}
)

# A status says what went wrong, unlike other numbers. Its digits become letters until the end.
_STATUS = re.compile(
    r"(?i)(?P<before>\b(?:status|code|error|http|http/\d(?:\.\d)?|smtp)(?:[ _-]?(?:code|status|error))?[ :=('\"\[]{0,3}"
    r"|['\"(])(?P<status>[1-5]\d\d)\b(?![-:.]\d)(?P<after> [A-Za-z][A-Za-z -]{2,30}['\")])?"
    r"|^(?P<first>[45]\d\d)(?=:? [A-Za-z])"
)
_LETTERS = str.maketrans("0123456789", "abcdefghij")

_TIME = r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?|\b\d\d:\d\d:\d\d(?:[.,]\d+)?"

# In this order: each rule sees what those before it have left.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), mark)
    for pattern, mark in (
        (r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>)\]}]+", "<url>"),
        (r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", "<email>"),
        (r"(?i)\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<id>"),
        (_TIME, "<time>"),
        # Quoted text: not the apostrophe within a word.
        (r'"(?:[^"\\\n]|\\.)*"', "<text>"),
        (r"(?<!\w)'(?:[^'\\\n]|\\.|(?<=\w)'(?=\w))*'(?!\w)", "<text>"),
        (r"`[^`\n]*`|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|‘[^’\n]*’", "<text>"),
        (r"(?<![\w<])(?:[A-Za-z]:\\|\\\\)[^\s:;,'\")]+", "<path>"),
        (r"(?<![\w<])(?:~|\.{1,2})?/[\w.@%+~-]+(?:/[\w.@%+~-]*)*", "<path>"),
        (r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b", "<address>"),
        (r"(?i)(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}(?![\w:])", "<address>"),
        (r"(?i)\b0x[0-9a-f]+\b", "<hex>"),
        # A digest may, by chance, be all letters; a long run of hexadecimal digits is no word.
        (r"(?i)\b[0-9a-f]{16,}\b", "<hex>"),
        # Keys, tokens, signatures: long and without a space.
        (r"(?<![\w<])(?=[\w+/=.-]*\d)[\w+/=-]{24,}(?:\.[\w+/=-]{8,})*", "<id>"),
        # Numbers, with their unit: 12, 1,024.50, 30s, 15ms, 40%, $3.10
        (r"(?<![\w<-])[$€£]?[-+]?\d[\d,._]*(?:[eE][-+]?\d+)?(?:%|[a-zA-Z]{1,3}\b)?(?![\w-])", "<n>"),
        # Any other word with a digit in it names something: ch_3NkX, ORD-1188, req-7, host-12.internal
        (r"(?<![\w<])(?=[\w.#:-]*\d)[\w#][\w.#:-]*\w|\b\d\b", "<id>"),
        (r"\{[^{}]*\}", "<data>"),
        (r"\{[^{}]*\}", "<data>"),
        # However many there are, they are one thing. Ids and numbers look alike by chance.
        (r"<(?:n|id|hex)>(?:(?:[\s,;/|&:-]|\band\b)*<(?:n|id|hex)>)*", "<id>"),
        (r"(<\w+>)(?:[\s,;/|]*\1)+", r"\1"),
        (r"\s+", " "),
    )
)
# What a database or an API names in its errors is its own, not somebody's data.
_NAMED = re.compile(
    r'(?i)\b(constraint|relation|column|table|function|index|role|database|schema)\s+"([A-Za-z_][\w.]{0,62})"'
)
_CODE = re.compile(r"""["'](?:code|type|error_code|error_type)["']\s*:\s*["']([A-Za-z][A-Za-z_.-]{2,60})["']""")
_CODE_NAME = re.compile(r"(?<!\w)['\"`]([A-Za-z_][A-Za-z_.]{0,60})(?:\(\))?['\"`](?!\w)")
_LINE = re.compile(r":\d+\b")


@dataclass(frozen=True, slots=True)
class Cause:
    """A group of failures: `fingerprint` names it, `text` says what it is about."""

    fingerprint: str
    text: str


def cause_of(*, kind: str, type: str, message: str, place: str) -> Cause:
    """
    The cause of a failure.

    `place` is where in the user's code it came from, else the agent's step; line numbers in it do not
    count, because an unrelated edit above would begin a new cause.
    """
    where = _LINE.sub("", place).strip()
    plain = normal(message, type=type)
    digest = hashlib.blake2b(digest_size=6)
    for part in (kind, type, where, plain):
        digest.update(part.encode("utf-8", "replace") + b"\0")
    shown = plain if len(plain) <= _SHOWN_MAX else f"{plain[:_SHOWN_MAX]}…"
    return Cause(digest.hexdigest(), f"{type}{f' in {where}' if where else ''}{f': {shown}' if shown else ''}")


def normal(message: str, *, type: str = "") -> str:
    """The message without what varies: ids, numbers, times, addresses, paths, quoted text, URLs, e-mails."""
    text = message[:_READ_MAX]
    codes = " ".join(sorted(set(_CODE.findall(text))))
    text = _STATUS.sub(_keep_status, f"{codes}: {text}" if codes else text)
    text = _NAMED.sub(r"\1 \2", text)
    if type in _QUOTES_CODE:
        text = _CODE_NAME.sub(r"\1", text)
    for pattern, mark in _RULES:
        text = pattern.sub(mark, text)
    return _RESTORE.sub(lambda found: found[1].translate(_DIGITS), text).strip().lower()[:_KEPT_MAX]


# Marks of private use: no message has them, and no rule sees a word in them.
_OPEN, _CLOSE = "\ue000", "\ue001"
_RESTORE = re.compile(f"{_OPEN}([a-j]+){_CLOSE}")
_DIGITS = str.maketrans("abcdefghij", "0123456789")


def _keep_status(found: re.Match[str]) -> str:
    status = found["status"] or found["first"]
    kept = f"{_OPEN}{status.translate(_LETTERS)}{_CLOSE}"
    if found["first"]:
        return kept
    before, after = found["before"], found["after"]
    if before in _QUOTES and not after:
        return found[0]  # just a quoted number
    # Quoted with its words, as HTTP clients write it: kept, without the quotes.
    return f"{before.rstrip(_QUOTES)} {kept}{(after or '').rstrip(_QUOTES)} "


_QUOTES = "'\"([)"
