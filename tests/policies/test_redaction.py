"""Redaction: what the rules find, and what they leave alone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from agentq.errors import ConfigError
from agentq.policies.redaction import PACK, Redactor, is_secret_field, own_rules, safe_failures
from agentq.verdicts import Failure

REDACTOR = Redactor()

# Made up, in the forms that their makers publish; in halves, so that no scanner takes them for real ones.
SECRETS = {
    "openai": "sk-" + "proj-abcdefghijklmnopqrstuvwx",
    "anthropic": "sk-ant-" + "api03-abcdefghijklmnopqrstu_vwx",
    "stripe": "sk_" + "live_51H8abcdefghijklmnop",
    "github": "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "github fine": "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuv",
    "gitlab": "glpat-" + "abcdefghij_klmnopqrs",
    "slack": "xoxb-" + "123456789012-abcdefghijkl",
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "google": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "jwt": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123_-",
    "card": "4111 1111 1111 1111",
    "card plain": "5500005555555559",
    "amex": "378282246310005",
    "iban": "DE89 3704 0044 0532 0130 00",
    "iban plain": "GB82WEST12345698765432",
    "e-mail": "jane.doe+refunds@mail.example.co.uk",
    "bearer": "Bearer abcdef0123456789abcdef",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("name", SECRETS)
def test_what_must_not_be_kept_is_taken_out(name: str) -> None:
    """
    Wherever it stands in a text, and in the middle of a JSON value.
    """
    secret = SECRETS[name]
    for text in (secret, f"see {secret}, please", f"<{secret}>"):
        found = REDACTOR.text(text)
        assert secret.removeprefix("Bearer ") not in found
        assert "[" in found
    kept = REDACTOR.value("input", {"a": [{"b": f"x {secret} y"}]})
    assert secret.removeprefix("Bearer ") not in str(kept)


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112 of lot 7",  # no check digit of a card
        "at 1732370000000 and 20261123211500",  # times
        "DE89 3704 0044 0532 0130 02",  # no check digits of an account
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "019ab0a0-6d5c-7c3e-a2f4-7c1f8e6d2b11",
        "max_tokens: 4096, tokens=12",
        "the token was fine",
        "sk-learn is a library",
        "$1,234.56 for 3 items @ 4.50",
    ],
)
def test_what_is_harmless_stays(text: str) -> None:
    """
    A trace in which everything is hidden helps nobody.
    """
    assert REDACTOR.text(text) == text


def test_passwords_in_addresses_and_assignments_are_taken_out_and_the_rest_stays() -> None:
    """
    Who reads the trace still sees which server and which name it was.
    """
    assert REDACTOR.text("postgres://me:hunter22@db/x") == "postgres://me:[password]@db/x"
    assert REDACTOR.text("OPENAI_API_KEY=abcd1234efgh next") == "OPENAI_API_KEY=[secret] next"
    assert REDACTOR.text('{"password": "hunter22"}') == '{"password": "[secret]"}'


@pytest.mark.parametrize("name", ["password", "apiKey", "X-Api-Key", "Authorization", "refresh_token", "client_secret"])
def test_a_field_named_as_a_secret_is_hidden(name: str) -> None:
    """
    Whatever its value looks like.
    """
    assert is_secret_field(name)
    assert REDACTOR.value("input", {name: "plain", "n": 1}) == {name: "[secret]", "n": 1}


@pytest.mark.parametrize("name", ["tokens", "max_tokens", "input_tokens", "spin", "keyboard", "secretary"])
def test_a_field_with_a_harmless_name_is_shown(name: str) -> None:
    assert REDACTOR.value("input", {name: "plain"}) == {name: "plain"}


def test_a_number_may_be_a_card() -> None:
    assert REDACTOR.value("input", [4111111111111111, 42, True]) == ["[card]", 42, True]


def test_a_secret_on_the_cut_is_not_kept_by_half() -> None:
    """
    A text is searched beyond its limit, so that what is cut in two is found before it is.
    """
    secret = SECRETS["github"]
    for lead in range(80, 101):
        kept = REDACTOR.text("x " * (lead // 2) + secret + " y" * 9000, limit=100)
        assert secret[:12] not in kept
        assert len(kept) <= 101
    # Where the search itself stops: what comes before has shrunk, so the half would stand within the limit.
    mails = f"{SECRETS['e-mail']} " * ((2000 + 4096) // (len(SECRETS["e-mail"]) + 1))
    for lead in range(0, 40, 2):
        kept = REDACTOR.text(mails + "x " * (lead // 2) + secret + " y" * 9000, limit=2000)
        assert secret[:8] not in kept


def test_own_rules_and_the_hook_are_asked_too() -> None:
    seen: list[tuple[str, Any]] = []

    def hook(kind: str, value: Any) -> Any:
        seen.append((kind, value))
        return {**value, "name": "somebody"}

    redactor = Redactor((*PACK, *own_rules([r"CUST-\d{6}"])), hook)
    kept = redactor.value("output", {"id": "CUST-123456", "name": "Jane"})
    assert kept == {"id": "[redacted]", "name": "somebody"}
    assert seen == [("output", {"id": "CUST-123456", "name": "Jane"})]


def test_a_hook_that_fails_hides_everything() -> None:
    """
    Whoever wrote a hook has something to hide.
    """

    def hook(kind: str, value: Any) -> Any:
        raise KeyError("oops")

    assert Redactor(hook=hook).value("input", {"name": "Jane"}) == "[redaction failed]"


@pytest.mark.parametrize("pattern", ["(", "a*", ""])
def test_a_rule_that_cannot_work_is_refused_at_the_start(pattern: str) -> None:
    with pytest.raises(ConfigError, match="rule 2"):
        own_rules(["fine", pattern])


def test_failures_keep_no_secret_of_their_message() -> None:
    """
    Client libraries quote the request in their errors.
    """
    classify = safe_failures(lambda error: Failure("transient", "E", str(error)), REDACTOR)
    assert SECRETS["openai"] not in classify(RuntimeError(f"bad key {SECRETS['openai']}")).message


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "a@" * 50_000, "4 " * 50_000, "eyJ" * 30_000, "key=" * 25_000, "://a" * 25_000]
)
def test_no_text_takes_long(text: str) -> None:
    """
    No rule goes back and forth over a long text: what a model wrote must not hold up a worker.
    """
    began = time.process_time()
    REDACTOR.text(text)
    assert time.process_time() - began < 1.0


def test_a_deep_or_endless_value_ends() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    assert "…" in str(REDACTOR.value("input", deep))
    assert len(REDACTOR.value("input", list(range(50_000)))) == 50_000
