"""
Redaction: what must not be kept is taken out before a trace, an export or an error is written.

A checkpoint is never redacted, because a replay needs it; see `agentq.store.schema`. Rules know forms,
not meanings: a password that nothing announces stays, and so does a number whose parts stand in several texts.
Names of fields help where forms do not. Look-alike letters, escaped quotes, Base64 and hexadecimal digits are seen
through, once.
"""

from __future__ import annotations

import base64
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
# What is longer, or more in one value, is shown up to here: looking through it must not hold up a worker.
_TEXT_MAX = 262_144
_TEXTS_MAX = 4_000_000
_NODES_MAX = 20_000
_DEPTH_MAX = 40
_MESSAGE_MAX = 4000
_RUNS_MAX = 200


@dataclass(frozen=True, slots=True)
class Rule:
    """A form to look for, and what stands in its place."""

    name: str
    pattern: re.Pattern[str]
    # Where the form alone would catch too much: how many characters of this text really are one; 0: none.
    part: Callable[[str], int] | None = None
    # Cheap to look for: without one of these the text, in small letters, cannot hold the form.
    hints: tuple[str, ...] = ()

    def apply(self, text: str, small: str) -> str:
        """The text without this form; `small`: what it was at first, in small letters."""
        if self.hints and not any(hint in small for hint in self.hints):
            return text
        return self.pattern.sub(self._replace, text)

    def _replace(self, found: re.Match[str]) -> str:
        end = len(found[0])
        if self.part is not None:
            end = self.part(found[0])
            if not end:
                return found[0]
        kept = found.groupdict().get("kept") or ""
        return f"{kept}[{self.name}]{found[0][end:]}"


def passes_luhn(text: str) -> bool:
    """Whether these digits have the check digit of a payment card."""
    digits = [int(mark) for mark in text if mark.isdecimal()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 14 <= len(digits) <= 19 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def passes_mod_97(text: str) -> bool:
    """Whether this is an account number with the check digits of an IBAN."""
    plain = re.sub(r"[\s-]", "", text)
    moved = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(mark, 36)) for mark in moved)) % 97 == 1


# What follows a number in the same line may look like more of it, so both are measured by what their issuers say.
_CARD_LENGTHS = (
    (re.compile(r"4"), (16, 19)),
    (re.compile(r"5|2[2-7]|35"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"3[0689]"), (14, 16, 19)),
    (re.compile(r"6"), (16, 17, 18, 19)),
)
_IBAN_LENGTHS = {
    pair[:2]: int(pair[2:])
    for pair in (  # noqa: SIM905 - a table
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 "
        "EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 "
        "JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 "
        "NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 "
        "TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
    ).split()
}


def _card_in(text: str) -> int:
    lengths = next((lengths for form, lengths in _CARD_LENGTHS if form.match(text)), ())
    for wanted in lengths:
        end = _end_of(text, wanted)
        if end and not text[end : end + 1].isdecimal() and passes_luhn(text[:end]):
            return end
    return 0


def _iban_in(text: str) -> int:
    end = _end_of(text, _IBAN_LENGTHS.get(text[:2].upper(), 0))
    return end if end and not text[end : end + 1].isalnum() and passes_mod_97(text[:end]) else 0


def _end_of(text: str, wanted: int) -> int:
    """Where so many letters and digits end; 0: there are fewer."""
    for at, mark in enumerate(text):
        wanted -= mark.isalnum()
        if wanted == 0:
            return at + 1
    return 0


_KEYS = (
    r"sk-[A-Za-z0-9_-]{16,200}",
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{10,200}",
    r"whsec_[A-Za-z0-9+/=]{16,200}",
    r"gh[pousr]_[A-Za-z0-9]{20,255}",
    r"github_pat_[A-Za-z0-9_]{20,255}",
    r"glpat-[A-Za-z0-9_-]{20,100}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",
    r"xapp-[A-Za-z0-9-]{10,250}",
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,500}",
    r"GOCSPX-[A-Za-z0-9_-]{20,100}",
    r"SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}",
    r"npm_[A-Za-z0-9]{36}",
    r"(?:hf|gsk|r8)_[A-Za-z0-9]{30,100}",
    r"xai-[A-Za-z0-9]{30,200}",
    r"dop_v1_[a-f0-9]{64}",
    r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
    r"pypi-[A-Za-z0-9_-]{50,500}",
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",
)
# How each of them begins, in small letters.
_KEY_HINTS = (
    "sk-", "sk_", "rk_", "whsec_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "xapp-",
    "akia", "asia", "aiza", "ya29.", "gocspx-", "sg.", "npm_", "hf_", "gsk_", "r8_", "xai-", "dop_v1_", "shp", "pypi-",
    ":aa",
)  # fmt: skip
_WORD_HINTS = ("pass", "pwd", "secret", "token", "key", "credential")
_HIDDEN_WORD = (
    r"(?:(?<![A-Za-z])pass|pass(?:words?|wd|phrase|code)|pwd|secret|token|api[_-]?key|"
    r"(?:access|account|auth|private|signing|encryption)[_-]?key|credentials?)"
)
# As it is, in JSON that is a text in JSON, or in HTML.
_QUOTE = r"(?:\\{0,15}[\"']|&quot;|&#3[49];)"
# What ends a name, also one in quotes, and begins its value.
_IS = rf"{_QUOTE}?\s{{0,4}}(?:[=:]|%3[AD])\s{{0,4}}"
_DOMAIN = r"[\w-]{1,63}(?:\.[\w-]{1,63}){1,6}"

PACK: tuple[Rule, ...] = (
    Rule(
        "private key",
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[^-]{0,20000}(?:-(?!----)[^-]{0,20000}){0,50}"
            r"(?:-----END [A-Z0-9 ]{0,60}-----)?"
        ),
        hints=("private key",),
    ),
    Rule(
        "token",
        re.compile(r"(?<![A-Za-z0-9])eyJ[\w-]{8,4000}\.[\w-]{8,8000}\.[\w-]{0,2000}(?:\.[\w-]{0,8000}){0,2}"),
        hints=("eyj",),
    ),
    Rule("key", re.compile(r"(?<![A-Za-z0-9])(?:" + "|".join(_KEYS) + ")"), hints=_KEY_HINTS),
    Rule("key", re.compile(r"(?P<kept>hooks\.slack\.com/services/)[A-Za-z0-9/]{10,200}"), hints=("hooks.slack",)),
    Rule(
        "token",
        re.compile(r"(?i)(?P<kept>\b(?:bearer|basic) )[A-Za-z0-9._~+/=-]{8,4000}"),
        hints=("bearer ", "basic "),
    ),
    Rule(
        "token",
        re.compile(
            rf"(?i)(?P<kept>authorization{_IS}{_QUOTE}?(?:[a-z]{{1,20}} )?)"
            r"(?!bearer |basic )[^\s\"'\[\\,;]{6,4000}"
        ),
        hints=("authorization",),
    ),
    Rule(
        "cookie",
        re.compile(rf"(?i)(?P<kept>cookie{_IS}{_QUOTE}?)[^\s=;\"'\\]{{1,100}}=[^\r\n\"'\\]{{1,4000}}"),
        hints=("cookie",),
    ),
    Rule("password", re.compile(r"(?P<kept>://[^\s:/@]{0,200}:)[^\s/?#]{1,500}(?=@)"), hints=("://",)),
    Rule(
        "secret",
        re.compile(
            rf"(?i)(?P<kept>{_HIDDEN_WORD}{_IS}(?P<quote>{_QUOTE}))(?!\[secret\])[^\r\n]{{1,1000}}?(?=(?P=quote))"
        ),
        hints=_WORD_HINTS,
    ),
    Rule(
        "secret",
        re.compile(rf"(?i)(?P<kept>{_HIDDEN_WORD}{_IS}{_QUOTE}?)[^\s\"',;&\[\\][^\s\"',;&\\]{{3,500}}"),
        hints=_WORD_HINTS,
    ),
    Rule(
        "secret",
        re.compile(rf"(?i)(?P<kept>--[a-z0-9-]{{0,30}}{_HIDDEN_WORD} {{1,4}})[^\s-][^\s]{{2,500}}"),
        hints=("--",),
    ),
    Rule(
        "password", re.compile(r"(?P<kept>\s(?:-u|--user)[ =][\"']?[^\s:\"'/]{1,100}:)[^\s\"'/]{3,500}"), hints=("-u",)
    ),
    Rule(
        "password",
        re.compile(
            r"(?i)(?P<kept>\b(?:password|passphrase|passcode|pwd) (?:is|was) [\"'“]?)"
            r"(?=[^\s\"']{0,200}\d)[^\s\"'”,;]{4,200}"
        ),
        hints=("pass", "pwd"),
    ),
    Rule(
        "email",
        re.compile(rf"(?:(?<![\w.+'-])[\w.+'-]{{1,64}}|\"[^\"\n@]{{1,64}}\")(?:@|%40){_DOMAIN}"),
        hints=("@", "%40"),
    ),
    Rule(
        "iban",
        re.compile(
            r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[A-Za-z0-9]{1,3})?(?![A-Za-z0-9])"
        ),
        _iban_in,
    ),
    Rule("card", re.compile(r"(?<![\d.])(?:[2-6]\d{3})(?:[ -]?\d){10,15}(?!\d)"), _card_in),
    Rule("card", re.compile(r"(?<![\d.])[2-6]\d{3}\.\d{4}\.\d{4}\.\d{4}(?![\d])"), _card_in),
)

# A field of this name holds a secret, whatever it looks like. `max_tokens` and `tokens` are none.
_SECRET_FIELD = re.compile(
    r"(?:^|[_\-. ])(?:password|passwd|passphrase|passcode|pwd|secret|token|apikey|api[_-]key|authorization|cookie|"
    r"set-cookie|credential|private[_-]key|access[_-]key|account[_-]key|signing[_-]key|encryption[_-]key|client[_-]secret|"
    r"cvc|cvv|pin|(?:passwords|secrets|credentials|cookies|api[_-]?keys|private[_-]keys|"
    r"(?:access|refresh|auth|bearer|session|csrf|api|id)[_-]tokens))$"
)
_HEADER = re.compile(r"(?i)(?:proxy-)?authorization|(?:set-)?cookie|x-[a-z0-9-]{0,40}(?:key|token|secret)")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# Letters that look like others, so that the rules see what a reader sees. What has no width goes.
_PLAIN_FORMS = (
    {0xFF01 + n: 0x21 + n for n in range(94)}
    | dict.fromkeys([0xA0, 0x1680, 0x202F, 0x205F, 0x3000, *range(0x2000, 0x200B)], 0x20)
    | dict.fromkeys([*range(0x2010, 0x2016), 0x2212, 0xFE58, 0xFE63], 0x2D)
    | {0xFE6B: 0x40}
    | dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0x180E, 0xFEFF])
)
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{20,}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{2}){16,}(?![0-9A-Za-z])")


@dataclass(frozen=True, slots=True)
class Redactor:
    """The pack, an operator's own rules, and a hook of the fleet's own code."""

    rules: tuple[Rule, ...] = PACK
    hook: Hook | None = field(default=None)

    def text(self, text: str, limit: int | None = None) -> str:
        """The text without what the rules find; cut at `limit` characters, never in the middle of a find."""
        limit = _TEXT_MAX if limit is None else min(limit, _TEXT_MAX)
        cut = len(text) > limit + _SLACK
        if cut:
            text = text[: limit + _SLACK]
        text = self._searched(text)
        if cut:
            # What the first cut halved stands in the slack, which goes whole.
            text = text[:-_SLACK]
        return text if len(text) <= limit else f"{text[:limit]}…"

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
        return self._walk(value, text_max, _Budget(), 0)

    def _searched(self, text: str) -> str:
        plain = text if text.isascii() else text.translate(_PLAIN_FORMS)
        found = self._decoded(self._ruled(plain))
        # Only where something was found: who reads it has the text as it was written.
        return text if found == plain else found

    def _ruled(self, text: str) -> str:
        small = text.lower()
        for rule in self.rules:
            text = rule.apply(text, small)
        return text

    def _decoded(self, text: str) -> str:
        """The text without runs of Base64 or hexadecimal digits in which the rules find something."""
        return _HEX.sub(self._unless_hiding, _BASE64.sub(self._unless_hiding, text, count=_RUNS_MAX), count=_RUNS_MAX)

    def _unless_hiding(self, run: re.Match[str]) -> str:
        said = _readable(run[0], run.re is _HEX)
        return run[0] if said is None or self._ruled(said) == said else "[encoded secret]"

    def _walk(self, value: Any, text_max: int | None, budget: _Budget, depth: int) -> Any:
        if depth > _DEPTH_MAX or not budget.allows(value):
            return "…"
        match value:
            case str():
                return self.text(value, text_max)
            case Mapping():
                # `{"name": "Authorization", "value": …}`, as headers are often listed.
                listed = any(is_secret_field(value.get(name)) for name in ("name", "key", "header"))
                return {
                    self.text(str(name), 200): (
                        "[secret]"
                        if item and (is_secret_field(name) or (listed and name == "value"))
                        else self._walk(item, text_max, budget, depth + 1)
                    )
                    for name, item in value.items()
                }
            case [str(name), str(item)] if item and _HEADER.fullmatch(name):
                return [name, "[secret]"]
            case list() | tuple() | set() | frozenset():
                return [self._walk(item, text_max, budget, depth + 1) for item in value]
            case int() | float() if not isinstance(value, bool) and 10**13 <= abs(value) < 10**19:
                digits = str(int(value))
                redacted = self.text(digits)
                return value if redacted == digits else redacted
            case _:
                return value


class _Budget:
    """How much of one value is still looked through."""

    def __init__(self) -> None:
        self._nodes = _NODES_MAX
        self._characters = _TEXTS_MAX

    def allows(self, value: Any) -> bool:
        """Whether there is room for this too."""
        self._nodes -= 1
        if isinstance(value, str):
            self._characters -= min(len(value), _TEXT_MAX)
        return self._nodes >= 0 and self._characters >= 0


def _readable(run: str, is_hex: bool) -> str | None:
    """The text that an encoded run stands for; None: it is no text."""
    try:
        if is_hex:
            return bytes.fromhex(run).decode("utf-8")
        body = run.rstrip("=").translate({0x2D: "+", 0x5F: "/"})
        return base64.b64decode(body + "=" * (-len(body) % 4)).decode("utf-8")
    except ValueError:
        return None


def is_secret_field(name: object) -> bool:
    """Whether a field of this name holds a secret."""
    if not isinstance(name, str) or len(name) > 200:
        return False
    plain = name if name.isascii() else name.translate(_PLAIN_FORMS)
    return _SECRET_FIELD.search(_CAMEL.sub("_", plain).lower()) is not None


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
