"""The vault: what is sealed opens in its place and nowhere else."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agentq.errors import ConfigError, KeyUnavailable, PayloadUnreadable
from agentq.settings import Settings
from agentq.store import sealing, vault
from agentq.store.pool import Store
from agentq.store.providers import LocalKeys, new_key, provider_of
from agentq.verdicts import Extras, Failure, NewStep, Settlement
from tests.support.hands import Hands

pytestmark = pytest.mark.usefixtures("no_keys_left")

KEY = bytes(range(32))
PLACE: vault.Place = ("checkpoint.state", "session-1", "step-1")


@pytest.fixture
def keyed(settings: Settings) -> Any:
    """A store whose payloads are encrypted."""
    store = Store(settings.database_url, size=4, name="agentq test keys", keys=LocalKeys([KEY]))
    yield store
    store.close()


def test_what_is_sealed_opens_again(keyed: Store, tenant: str) -> None:
    data = b'{"secret": 1}'
    sealed = keyed.vault.seal(tenant, PLACE, data)
    assert data not in sealed
    assert sealed[0] == 1
    assert keyed.vault.open(tenant, PLACE, sealed) == data
    assert vault.key_of(sealed) == 1
    assert keyed.vault.seal(tenant, PLACE, None) is None


@pytest.mark.parametrize(
    "place",
    [
        ("checkpoint.result", "session-1", "step-1"),
        ("checkpoint.state", "session-2", "step-1"),
        ("checkpoint.state", "session-1", "step-2"),
        ("checkpoint.state", "session-1step-1"),
    ],
)
def test_a_ciphertext_that_was_moved_does_not_open(keyed: Store, tenant: str, place: vault.Place) -> None:
    """
    Table, column and row are bound to it: nothing can be put into another's place.
    """
    sealed = keyed.vault.seal(tenant, PLACE, b'{"n": 1}')
    with pytest.raises(PayloadUnreadable, match="altered, or belongs to another place"):
        keyed.vault.open(tenant, place, sealed)


def test_another_tenant_cannot_open_it(
    keyed: Store, tenant: str, other_tenant: str, admin: psycopg.Connection[Any]
) -> None:
    """
    Not with its own key, and not with a copy of the other's wrapped one either: that is bound to its tenant.
    """
    sealed = keyed.vault.seal(tenant, PLACE, b'{"n": 1}')
    keyed.vault.seal(other_tenant, PLACE, b"{}")
    with pytest.raises(PayloadUnreadable):
        keyed.vault.open(other_tenant, PLACE, sealed)
    admin.execute(
        "update agentq.tenant_key set wrapped = (select wrapped from agentq.tenant_key where tenant = %s)"
        " where tenant = %s",
        (tenant, other_tenant),
    )
    keyed.vault.forget()
    with pytest.raises(PayloadUnreadable, match="not for this tenant"):
        keyed.vault.open(other_tenant, PLACE, sealed)


def test_the_tenant_is_bound_even_under_one_key(tenant: str, other_tenant: str, keyed: Store, monkeypatch: Any) -> None:
    sealed = keyed.vault.seal(tenant, PLACE, b'{"n": 1}')
    ring = keyed.vault._rings[tenant]
    monkeypatch.setitem(keyed.vault._rings, other_tenant, ring)
    with pytest.raises(PayloadUnreadable):
        keyed.vault.open(other_tenant, PLACE, sealed)


def test_an_altered_byte_is_noticed(keyed: Store, tenant: str) -> None:
    sealed = keyed.vault.seal(tenant, PLACE, b'{"n": 1}', row=b"row")
    for at in (7, 12, len(sealed) - 1):
        broken = bytearray(sealed)
        broken[at] ^= 1
        with pytest.raises(PayloadUnreadable):
            keyed.vault.open(tenant, PLACE, bytes(broken))
    for length in (1, 5, 6, 20):
        with pytest.raises(PayloadUnreadable):
            keyed.vault.open(tenant, PLACE, sealed[:length])


def test_the_same_again_is_the_same_bytes(keyed: Store, tenant: str) -> None:
    """
    A repeated write is known as one; another content, or another place, shares nothing with it.
    """
    one = keyed.vault.seal(tenant, PLACE, b'{"n": 1}')
    assert keyed.vault.seal(tenant, PLACE, b'{"n": 1}') == one
    for other in (keyed.vault.seal(tenant, PLACE, b'{"n": 2}'), keyed.vault.seal(tenant, ("x",), b'{"n": 1}')):
        assert other[6:18] != one[6:18]


def test_plain_rows_of_before_are_read(keyed: Store, store: Store, tenant: str) -> None:
    assert keyed.vault.open(tenant, PLACE, b'{"n": 1}') == b'{"n": 1}'
    assert keyed.vault.open_text(tenant, PLACE, "enc:v1: is how my text begins") == "enc:v1: is how my text begins"
    assert keyed.vault.open_failure(tenant, {"kind": "transient", "message": "plain"})["message"] == "plain"


def test_without_a_provider_what_is_sealed_is_refused(keyed: Store, settings: Settings, tenant: str) -> None:
    """
    A process that was configured without the keys neither reads nor starts.
    """
    sealed = keyed.vault.seal(tenant, PLACE, b"{}")
    text = keyed.vault.seal_text(tenant, PLACE, "hello")
    bare = Store(settings.database_url, size=2)
    try:
        with pytest.raises(PayloadUnreadable, match="no key provider"):
            bare.vault.open(tenant, PLACE, sealed)
        assert "no key provider" in (bare.vault.open_text(tenant, PLACE, text) or "")
        with pytest.raises(ConfigError, match="encrypted and no key provider"):
            bare.vault.require_provider()
        keyed.vault.require_provider()
        hands = Hands(bare, tenant)
        with pytest.raises(ConfigError, match="no key provider"):
            hands.start()
        hands.close()
    finally:
        bare.close()


def test_a_claim_is_read_and_a_moved_state_is_not(keyed: Store, tenant: str, admin: psycopg.Connection[Any]) -> None:
    """
    The state of another step, put in place of this one's, buries the step; it is never run on it.
    """
    hands = Hands(keyed, tenant)
    first = hands.begin(input=b'{"n":0}')
    assert first.input == b'{"n":0}'
    follower = NewStep(uuid.uuid4(), "next", 3, 30.0, args=b'{"a":1}')
    hands.ledger.settle(
        first, Settlement("next", kind="full", state=b'{"n":1}', state_from=first.ref.step_id, steps=(follower,))
    )
    second = hands.claim(hands.ref(follower, first.ref.session_id))
    assert (second.states, second.args, second.unreadable) == ((b'{"n":1}',), b'{"a":1}', None)
    change = NewStep(uuid.uuid4(), "next", 3, 30.0)
    hands.ledger.settle(
        second,
        Settlement(
            "next", kind="delta", state=b'{"set":{"n":2}}', parent=second.state_from, state_from=second.ref.step_id,
            steps=(change,),
        ),
    )  # fmt: skip
    admin.execute(
        "update agentq.checkpoint set state = (select state from agentq.checkpoint where step_id = %s)"
        " where step_id = %s",
        (second.ref.step_id, first.ref.step_id),
    )
    third = hands.claim(hands.ref(change, first.ref.session_id))
    assert third.states is None
    assert third.unreadable is not None
    assert "another step" in third.unreadable
    hands.close()


def test_a_history_in_another_order_is_not_read(keyed: Store, tenant: str, admin: psycopg.Connection[Any]) -> None:
    hands = Hands(keyed, tenant)
    claim = hands.begin()
    messages = ((b'"one"', "test"), (b'"two"', "test"))
    hands.settle(claim, "end", extras=Extras(messages=messages))
    assert [body for _, body, _ in hands.ledger.messages(claim.ref)] == [b'"one"', b'"two"']
    admin.execute(
        "update agentq.message m set body = o.body from agentq.message o where o.tenant = m.tenant"
        " and o.session_id = m.session_id and o.seq = 3 - m.seq and m.session_id = %s",
        (claim.ref.session_id,),
    )
    with pytest.raises(PayloadUnreadable):
        hands.ledger.messages(claim.ref)
    hands.close()


def test_failures_keep_their_kind_and_cause_but_not_their_words(keyed: Store, tenant: str) -> None:
    hands = Hands(keyed, tenant)
    claim = hands.begin()
    hands.settle(claim, "dead", failure=Failure("permanent", "ValueError", "zebra 1 is no number", place="shop.pay"))
    [row] = hands.rows("select failure, failures from agentq.ledger_entry")
    assert "zebra" not in json.dumps(row)
    assert row["failure"]["kind"] == "permanent"
    [letter] = hands.rows("select cause, cause_text, failure::text, attempts::text from agentq.dead_letter")
    assert "zebra" not in json.dumps(letter)
    assert letter["cause_text"] == "ValueError in shop.pay"
    [step] = hands.sessions.steps(tenant, claim.ref.session_id)
    assert step.failure is not None
    assert step.failure["message"] == "zebra 1 is no number"
    hands.close()


def test_two_processes_that_make_the_first_key_share_it(settings: Settings, tenant: str) -> None:
    stores = [Store(settings.database_url, size=2, keys=LocalKeys([KEY])) for _ in range(2)]
    try:
        sealed = [each.vault.seal(tenant, PLACE, b"{}") for each in stores]
        assert sealed[0] == sealed[1]
    finally:
        for each in stores:
            each.close()


# ── providers ────────────────────────────────────────────────────────────────


def test_a_key_of_before_still_unwraps(settings: Settings, tenant: str) -> None:
    old, new = os.urandom(32), os.urandom(32)
    before, both, after = LocalKeys([old]), LocalKeys([new, old]), LocalKeys([new])
    assert (both.key_id, after.key_id) == (LocalKeys([new]).key_id, both.key_id)
    wrapped = before.wrap(b"k" * 32, b"context")
    assert both.unwrap(wrapped, before.key_id, b"context") == b"k" * 32
    with pytest.raises(KeyUnavailable, match="not among those configured"):
        after.unwrap(wrapped, before.key_id, b"context")
    with pytest.raises(PayloadUnreadable):
        both.unwrap(wrapped, before.key_id, b"another context")


def test_the_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{new_key()}\n\n{new_key()}\n")
    path.chmod(0o640)
    settings = Settings(encryption_key_file=str(path))
    with pytest.raises(ConfigError, match="open to others"):
        provider_of(settings)
    path.chmod(0o600)
    assert provider_of(settings) is not None
    path.unlink()
    with pytest.raises(ConfigError, match="agentq keys generate"):
        provider_of(settings)


@pytest.mark.parametrize("text", ["", "short", "c2hvcnQ=", "#"])
def test_what_is_no_key_is_refused_and_not_printed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as raised:
        provider_of(Settings(encryption_key_file=str(path)))
    assert not text or text == "#" or text not in str(raised.value)


def test_one_provider_at_most() -> None:
    with pytest.raises(ValueError, match="want one of encryption_key_file"):
        Settings(encryption_keys=new_key(), encryption_key_file="/keys")
    assert provider_of(Settings()) is None
    assert provider_of(Settings(encryption_keys=f"{new_key()},{new_key()}")) is not None


def test_a_provider_without_the_package_refuses_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(ConfigError, match=r"agentq\[encryption\]"):
        provider_of(Settings(encryption_keys=new_key()))


def kms() -> Any:
    """A provider of one's own."""
    return LocalKeys([KEY])


def test_a_provider_of_ones_own() -> None:
    found = provider_of(Settings(encryption_provider="tests.store.test_vault:kms"))
    assert found is not None
    assert found.key_id == LocalKeys([KEY]).key_id
    for name in ("tests.store.test_vault:nothing", "nowhere:kms", "tests.store.test_vault:KEY"):
        with pytest.raises(ConfigError, match="encryption_provider"):
            provider_of(Settings(encryption_provider=name))


def test_places_are_those_of_the_ledger(admin: psycopg.Connection[Any]) -> None:
    """
    Arguments are bound to a step's path, which Postgres and Python must make alike.
    """
    before = uuid.uuid4()
    for as_ in ("next", "join", "0", "12"):
        [made] = admin.execute("select agentq.place(%s, 'pay', %s)", (before, as_)).fetchone() or [None]
        assert vault.place_of_step(before, "pay", as_) == made
    assert sealing.result_of(before) != sealing.result_of(before, 0)
