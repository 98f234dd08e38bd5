"""
Redaction: what must not be kept is taken out before a trace, an export or an error is written.

A checkpoint is never redacted, because a replay needs it; see `agentq.store.schema`. Rules know forms,
not meanings: a password in the middle of a sentence stays. Names of fields help where forms do not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agentq.errors import ConfigError
from agentq.verdicts import Failure

log = logging.getLogger("agentq.redaction")

Hook = Callable[[str, Any], Any]

# A text is searched up to its limit and this much further, so that what the cut halves is still whole.
_SLACK = 4096
_NODES_MAX = 20_000
_DEPTH_MAX = 40
_MESSAGE_MAX = 4000


@dataclass(frozen=True, slots=True)
class Rule:
    """A form to look for, and what stands in its place."""

    name: str
    pattern: re.Pattern[str]
    # Where the form alone would catch too much: whether this text really is one.
    is_one: Callable[[str], bool] | None = None
    # Cheap to look for: without one of these the text cannot hold the form.
    hints: tuple[str, ...] = ()

    def apply(self, text: str) -> str:
        if self.hints and not any(hint in text for hint in self.hints):
            return text
        return self.pattern.sub(self._replace, text)

    def _replace(self, found: re.Match[str]) -> str:
        if self.is_one is not None and not self.is_one(found[0]):
            return found[0]
        kept = found.groupdict().get("kept") or ""
        return f"{kept}[{self.name}]"


def passes_luhn(text: str) -> bool:
    """Whether these digits have the check digit of a payment card."""
    digits = [int(mark) for mark in text if mark.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 14 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def passes_mod_97(text: str) -> bool:
    """Whether this is an account number with the check digits of an IBAN."""
    plain = re.sub(r"\s", "", text)
    moved = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(mark, 36)) for mark in moved)) % 97 == 1


_KEYS = (
    r"sk-[A-Za-z0-9_-]{16,200}",
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{10,200}",
    r"whsec_[A-Za-z0-9+/=]{16,200}",
    r"gh[pousr]_[A-Za-z0-9]{20,255}",
    r"github_pat_[A-Za-z0-9_]{20,255}",
    r"glpat-[A-Za-z0-9_-]{20,100}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,500}",
    r"SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}",
    r"npm_[A-Za-z0-9]{36}",
    r"hf_[A-Za-z0-9]{30,100}",
    r"pypi-[A-Za-z0-9_-]{50,500}",
)
_HIDDEN_WORD = (
    r"(?:pass(?:word|wd|phrase)|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|client[_-]?secret)"
)

PACK: tuple[Rule, ...] = (
    Rule(
        "private key",
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,20000}?(?:-----END [A-Z ]{0,40}KEY-----|\Z)", re.S),
        hints=("PRIVATE KEY",),
    ),
    Rule("token", re.compile(r"\beyJ[\w-]{8,4000}\.[\w-]{8,8000}\.[\w-]{0,2000}"), hints=("eyJ",)),
    Rule("key", re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(_KEYS) + ")")),
    Rule("token", re.compile(r"(?i)(?P<kept>\b(?:bearer|basic) )[A-Za-z0-9._~+/=-]{8,4000}")),
    Rule("password", re.compile(r"(?P<kept>://[^\s:/@]{0,200}:)[^\s@/]{1,500}(?=@)"), hints=("://",)),
    Rule(
        "secret",
        re.compile(
            rf"(?i)(?P<kept>(?<![A-Za-z0-9])(?:[A-Za-z0-9]{{1,30}}[_-]){{0,4}}{_HIDDEN_WORD}[\"']?\s{{0,4}}[=:]\s{{0,4}}"
            r"[\"']?)[^\s\"',;&\[][^\s\"',;&]{3,500}"
        ),
        hints=("=", ":"),
    ),
    Rule("email", re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,6}"), hints=("@",)),
    Rule(
        "iban", re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"),
        passes_mod_97,
    ),
    Rule("card", re.compile(r"(?<![\d.])(?:[2-6]\d{3})(?:[ -]?\d){10,15}(?![\d])"), passes_luhn),
)  # fmt: skip

# A field of this name holds a secret, whatever it looks like. `max_tokens` and `tokens` are none.
_SECRET_FIELD = re.compile(
    r"(?:^|[_\-. ])(?:password|passwd|passphrase|pwd|secret|secrets|token|apikey|api[_-]key|authorization|cookie|"
    r"set-cookie|credential|credentials|private[_-]key|access[_-]key|client[_-]secret|cvc|cvv|pin)$"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Redactor:
    """The pack, an operator's own rules, and a hook of the fleet's own code."""

    rules: tuple[Rule, ...] = PACK
    hook: Hook | None = field(default=None)

    def text(self, text: str, limit: int | None = None) -> str:
        """The text without what the rules find; cut at `limit` characters, never in the middle of a find."""
        cut = limit is not None and len(text) > limit + _SLACK
        if cut:
            assert limit is not None
            text = text[: limit + _SLACK]
        for rule in self.rules:
            text = rule.apply(text)
        if cut:
            # What the first cut halved stands in the slack, which goes whole.
            text = text[:-_SLACK]
        return text if limit is None or len(text) <= limit else f"{text[:limit]}…"

    def value(self, kind: str, value: Any, *, text_max: int | None = None) -> Any:
        """
        A JSON value without what the rules find, in texts, names and fields named as secrets.

        `kind` tells the hook what it looks at: input, output, decision, failure. A hook that fails hides all.
        """
        if self.hook is not None:
            try:
                value = self.hook(kind, value)
            except Exception as error:
                log.warning("the redaction hook failed with %s; nothing of this %s is kept", type(error).__name__, kind)
                return "[redaction failed]"
        budget = [_NODES_MAX]
        return self._walk(value, text_max, budget, 0)

    def _walk(self, value: Any, text_max: int | None, budget: list[int], depth: int) -> Any:
        budget[0] -= 1
        if budget[0] < 0 or depth > _DEPTH_MAX:
            return "…"
        match value:
            case str():
                return self.text(value, text_max)
            case Mapping():
                return {
                    self.text(str(name), 200): (
                        "[secret]" if item and is_secret_field(name) else self._walk(item, text_max, budget, depth + 1)
                    )
                    for name, item in value.items()
                }
            case list() | tuple() | set() | frozenset():
                return [self._walk(item, text_max, budget, depth + 1) for item in value]
            case int() if not isinstance(value, bool) and abs(value) >= 10**13:
                redacted = self.text(str(value))
                return value if redacted == str(value) else redacted
            case _:
                return value


def is_secret_field(name: object) -> bool:
    """Whether a field of this name holds a secret."""
    return isinstance(name, str) and _SECRET_FIELD.search(_CAMEL.sub("_", name).lower()) is not None


def own_rules(patterns: Iterable[str]) -> tuple[Rule, ...]:
    """
    An operator's own forms, each a regular expression; what follows `name=` in `(?P<name>…)` is not needed.

    Raises:
        ConfigError: one is no regular expression, or would match everywhere.
    """
    rules = []
    for number, pattern in enumerate(patterns, 1):
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"redact: rule {number} is no regular expression: {error}") from None
        if compiled.search("") is not None:
            raise ConfigError(f"redact: rule {number} matches an empty text, so it would match everywhere")
        rules.append(Rule("redacted", compiled))
    return tuple(rules)


def safe_failures(
    classify: Callable[[BaseException], Failure], redactor: Redactor
) -> Callable[[BaseException], Failure]:
    """The same judgement of errors, with what their messages quote taken out."""

    def classify_safely(error: BaseException) -> Failure:
        failure = classify(error)
        return replace(failure, message=redactor.text(failure.message, _MESSAGE_MAX))

    return classify_safely


__all__ = [
    "PACK",
    "Hook",
    "Redactor",
    "Rule",
    "is_secret_field",
    "own_rules",
    "passes_luhn",
    "passes_mod_97",
    "safe_failures",
]
