"""Redaction: what the rules find, and what they leave alone."""

from __future__ import annotations

import base64
import json
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
    "pgp key": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQdGBGJ\n-----END PGP PRIVATE KEY BLOCK-----",
    "key on one line": "-----BEGIN EC PRIVATE KEY-----\\nMHcCAQEE\\n-----END EC PRIVATE KEY-----",
    "jwe": f"eyJ{'a' * 20}.{'b' * 40}.{'c' * 20}.{'d' * 50}.{'e' * 22}",
    "slack app": "xapp-" + "1-A012-123456-abcdefabcdef",
    "telegram": "123456789" + ":AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0",
    "google client": "GOCSPX-" + "abcdefghijklmnopqrstuvwxyz12",
    "card with dots": "4111.1111.1111.1111",
    "card in wide digits": "４１１１ １１１１ １１１１ １１１１",
    "card with thin spaces": "4111\u20091111\u20091111\u20091111",
    "card with long hyphens": "4111\u20111111\u20111111\u20111111",
    "iban small": "de89 3704 0044 0532 0130 00",
    "iban with hyphens": "DE89-3704-0044-0532-0130-00",
    "iban with fixed spaces": "AT61\u00a01904\u00a03002\u00a03457\u00a03201",
    "e-mail quoted": '"jane doe"@example.com',
    "e-mail in a link": "jane%40example.com",
    "e-mail with a wide at": "jane＠example.com",
    "e-mail with nothing in it": "jane\u200b@example.com",
    "key with nothing in it": "sk-proj-ab\u200bcdefghijklmnopqrstuvwx",
    "base64": base64.b64encode(b'{"password": "hunter22", "user": "bob"}').decode(),
    "base64 of a key": base64.urlsafe_b64encode(b"sk-" + b"proj-abcdefghijklmnopqrstuvwx").decode().rstrip("="),
    "hexadecimal": (b"sk-" + b"proj-abcdefghijklmnopqrstuvwx").hex(),
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
        "a password is required",
        "risk-assessment-of-everything",
        "compass: north-east",
        "public key -----BEGIN PUBLIC KEY-----",
        "cookie: chocolate",
        "Zürich\u202f→\u202fGenève, 12\u00a0000 CHF \U0001f468\u200d\U0001f469\u200d\U0001f467",  # as it was written
        "order 123456789012345678901234567890",
        "aGVsbG8gd29ybGQsIHRoaXMgaXMgZmluZQ==",
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


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (json.dumps(json.dumps(json.dumps({"api_key": "hunter 22, or not"}))), "hunter 22, or not"),
        ('{"password": "correct horse; battery, staple"}', "staple"),
        ('{"dbPassword":"hunter22","accessToken": "hunter33"}', "hunter22"),
        ('{"dbPassword":"hunter22","accessToken": "hunter33"}', "hunter33"),
        ('{"SecretAccessKey":"wJalrXUtnFEMI/K7MDENG"}', "K7MDENG"),
        ("AccountName=x;AccountKey=abcdEFGH1234567890+/==;", "EFGH1234"),
        ("Authorization: 8f7d6c5b4a39281706", "8f7d6c5b"),
        ("Authorization: Token 8f7d6c5b4a39281706", "8f7d6c5b"),
        ("Cookie: sid=8f7d6c5b4a39; csrf=ab12", "ab12"),
        ("postgres://me:hun@ter22@db/x", "ter22"),
        ("curl -u bob:hunter22 https://x.example", "hunter22"),
        ("mysql --password hunter22", "hunter22"),
        ("my password is hunter22, thanks", "hunter22"),
        ("password:\n  hunter22", "hunter22"),
        ("?token%3Dhunter22%26x", "hunter22"),
        ("&quot;password&quot;:&quot;hunter22&quot;", "hunter22"),
        ("https://hooks.slack.com/services/T000/B000/abcdXXXX1234", "abcdXXXX"),
        ("IBAN AT61 1904 3002 3457 3201 BANK PAYS", "1904 3002"),
        ("card 4111 1111 1111 1111 12/27 123", "1111 1111"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIB and then the text was cut", "MIIE"),
    ],
)
def test_what_is_announced_or_wrapped_is_found(text: str, hidden: str) -> None:
    """
    In JSON within JSON, in headers, on command lines, with more behind it.
    """
    assert hidden not in REDACTOR.text(text)


@pytest.mark.parametrize(
    "value",
    [
        {"sk-" + "proj-abcdefghijklmnopqrstuvwx": 1},
        {"jane@example.com": {"n": 1}},
        {"passwords": ["hunter22"]},
        {"api_keys": {"openai": "hunter22"}},
        {"access_tokens": ["hunter22"]},
        {"ｐassword": "hunter22"},
        {"headers": [["X-Api-Key", "hunter22"], ["Accept", "text/html"]]},
        [{"name": "Authorization", "value": "hunter22"}],
        {"card": 4111111111111111.0},
        json.loads("[" * 30 + '"hunter22 sk-' + 'proj-abcdefghijklmnopqrstuvwx"' + "]" * 30),
    ],
)
def test_structure_hides_nothing(value: Any) -> None:
    """
    Names of fields, lists of secrets, headers as pairs, numbers, depth.
    """
    kept = str(REDACTOR.value("input", value))
    for hidden in ("hunter22']", "'hunter22'", "abcdefghijkl", "jane@", "4111111111111111"):
        assert hidden not in kept


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


@pytest.mark.parametrize(
    "piece",
    ["a", "4", "password=\"", "-----BEGIN PRIVATE KEY-----", "a.b@c.d ", " 3704", "a_", "x://a:b", "eyJaaaaaaaaa.",
     "bearer ", "authorization: ", "cookie: a", "--password ", "QUJD", "\\\"", "é@", "&quot;token"],
)  # fmt: skip
def test_very_large_texts_take_a_bounded_time(piece: str) -> None:
    """
    Ten megabytes of whatever a model or a tool says.
    """
    large = piece * (10_000_000 // len(piece))
    began = time.process_time()
    assert len(REDACTOR.text(large)) < 300_000
    assert time.process_time() - began < 2.0


def test_a_value_of_many_large_texts_takes_a_bounded_time() -> None:
    began = time.process_time()
    kept = REDACTOR.value("input", ['password="' * 10_000] * 100)
    assert time.process_time() - began < 10.0
    assert [text == "…" for text in kept] == [False] * 40 + [True] * 60, "four million characters are read"


def test_a_deep_or_endless_value_ends() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    assert "…" in str(REDACTOR.value("input", deep))
    assert len(REDACTOR.value("input", list(range(50_000)))) == 50_000
