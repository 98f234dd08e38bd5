"""Memories as rows: versions, races, time, words, meaning, and whose they are."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from agentq.agents.embedding import Embedder
from agentq.agents.memory import Remembering
from agentq.errors import ConfigError, FenceLost, MemoryConflict
from agentq.store import migrate
from agentq.store.memory import Meaning, Memories, Memory
from agentq.store.operators import Operators
from agentq.store.pool import Store
from agentq.testing import Clock
from agentq.verdicts import Extras, MemoryWrite
from tests.store.test_schema import scratch  # noqa: F401
from tests.support.embedders import senses
from tests.support.hands import Hands, at_once

WHO = {"operator": "test", "reason": "a test"}


@pytest.fixture
def memories(store: Store) -> Memories:
    return Memories(store)


@pytest.fixture
def made(memories: Memories) -> Remembering:
    return Remembering(memories)


def keys(found: list[Any]) -> list[str]:
    return [hit.key if isinstance(hit, Memory) else hit.memory.key for hit in found]


def search(memories: Memories, tenant: str, query: str, namespace: str = "", **more: Any) -> list[str]:
    return keys(memories.search(tenant, namespace, query, **{"language": "simple", "limit": 10} | more))


def test_each_put_is_a_version(memories: Memories, made: Remembering, tenant: str) -> None:
    """
    The newest is read; older ones are kept, with who wrote them and since when they are read no more.
    """
    for price in (1, 2, 3):
        assert memories.put(tenant, made.write("shop", "tea", {"price": price}), by="ada") == (price, True)
    now = memories.get(tenant, "shop", "tea")
    assert now is not None
    assert (now.version, now.value, now.written_by, now.session_id) == (3, {"price": 3}, "ada", None)
    versions = memories.versions(tenant, "shop", "tea")
    assert [(row.version, row.value["price"], row.gone_at is None) for row in versions] == [
        (3, 3, True),
        (2, 2, False),
        (1, 1, False),
    ]


def test_twenty_versions_are_kept(memories: Memories, made: Remembering, tenant: str) -> None:
    """
    A key that is written again and again does not grow without end.
    """
    for number in range(25):
        memories.put(tenant, made.write("shop", "tea", number), by="ada")
    assert [row.version for row in memories.versions(tenant, "shop", "tea")] == list(range(25, 5, -1))


def test_of_many_who_saw_one_version_one_writes(memories: Memories, made: Remembering, tenant: str) -> None:
    """
    Eight at once, each with the version that all of them read: one new version, seven conflicts that say what is there.
    """
    memories.put(tenant, made.write("shop", "tea", 0), by="ada")
    for seen in range(1, 4):
        puts = [
            lambda n=n, seen=seen: memories.put(tenant, made.write("shop", "tea", n, if_version=seen), by="x")  # type: ignore[misc]
            for n in range(8)
        ]
        answers = at_once(*puts)
        assert answers.count((seen + 1, True)) == 1
        conflicts = [answer for answer in answers if isinstance(answer, MemoryConflict)]
        assert [(c.expected, c.found) for c in conflicts] == [(seen, seen + 1)] * 7


def test_writers_of_a_new_key_take_turns(memories: Memories, made: Remembering, tenant: str) -> None:
    """
    Nobody's first version collides with another's, and none is lost.
    """
    puts = [lambda n=n: memories.put(tenant, made.write("shop", "new", n), by="x") for n in range(8)]  # type: ignore[misc]
    assert sorted(at_once(*puts)) == [(version, True) for version in range(1, 9)]
    first = [lambda n=n: memories.put(tenant, made.write("shop", "one", n, if_version=0), by="x") for n in range(8)]  # type: ignore[misc]
    answers = at_once(*first)
    assert answers.count((1, True)) == 1
    assert sum(isinstance(answer, MemoryConflict) for answer in answers) == 7


def test_writers_of_the_same_keys_in_other_orders_do_not_block_each_other(hands: Hands, made: Remembering) -> None:
    """
    Each settlement takes its keys in one order, whatever order the step wrote them in.
    """
    names = [f"k{n}" for n in range(20)]
    claims = [hands.begin() for _ in range(6)]

    def settle(number: int) -> None:
        order = names if number % 2 else names[::-1]
        writes = tuple(made.write("shop", name, number) for name in order)
        hands.settle(claims[number], "end", extras=Extras(memories=writes))

    assert at_once(*[lambda n=n: settle(n) for n in range(6)]) == [None] * 6  # type: ignore[misc]
    found = made.memories.below(hands.tenant, "shop", limit=100)
    assert [memory.version for memory in found] == [6] * 20


def test_a_deletion_takes_the_content_of_every_version(memories: Memories, made: Remembering, hands: Hands) -> None:
    """
    What is forgotten is forgotten at once; its number is not given again, so nobody's `if_version` fits by chance.
    """
    tenant = hands.tenant
    for value in ("secret tea", "secret coffee"):
        memories.put(tenant, made.write("shop", "drink", value), by="ada")
    assert memories.put(tenant, made.deletion("shop", "drink", if_version=2), by="ada") == (3, True)
    assert memories.get(tenant, "shop", "drink") is None
    assert search(memories, tenant, "secret") == []
    assert [(row["version"], row["value"]) for row in hands.rows("select * from agentq.memory")] == [(3, None)]
    assert memories.put(tenant, made.deletion("shop", "drink"), by="ada") == (0, False)
    with pytest.raises(MemoryConflict, match="there is none now"):
        memories.put(tenant, made.write("shop", "drink", "x", if_version=2), by="ada")
    assert memories.put(tenant, made.write("shop", "drink", "x", if_version=0), by="ada") == (4, True)


def test_what_a_step_wrote_is_committed_with_its_settlement(hands: Hands, made: Remembering) -> None:
    """
    With who wrote it; an attempt that failed leaves nothing.
    """
    claim = hands.begin()
    wrote = Extras(memories=(made.write("shop", "tea", 1),))
    assert wrote.of_failed().memories == ()
    hands.settle(claim, "retry", delay_s=0.0, extras=wrote)
    assert made.memories.get(hands.tenant, "shop", "tea") is None
    hands.admit()
    again = hands.claim(claim.ref)
    hands.settle(again, "end", extras=Extras(memories=(made.write("shop", "tea", 1),)))
    found = made.memories.get(hands.tenant, "shop", "tea")
    assert found is not None
    assert (found.session_id, found.step_id, found.agent, found.attempt, found.written_by) == (
        claim.ref.session_id,
        claim.ref.step_id,
        "robot",
        2,
        "first",
    )


def test_a_superseded_attempt_writes_nothing(hands: Hands, made: Remembering, admin: psycopg.Connection[Any]) -> None:
    """
    I3: neither with its settlement nor at once, from within an effect.
    """
    late = hands.begin()
    assert made.memories.put_in_effect(late, made.write("shop", "early", 1)) == (1, True)
    hands.ledger.disown(late.ref, late.token)
    fresh = hands.claim(late.ref)
    with pytest.raises(FenceLost):
        made.memories.put_in_effect(late, made.write("shop", "late", 1))
    with pytest.raises(FenceLost):
        hands.settle(late, "end", extras=Extras(memories=(made.write("shop", "late", 1),)))
    assert made.memories.get(hands.tenant, "shop", "late") is None
    hands.settle(fresh, "end", extras=Extras(memories=(made.write("shop", "tea", 2),)))
    assert keys(made.memories.below(hands.tenant, "shop", limit=10)) == ["tea", "early"]


def test_a_conflict_undoes_the_whole_settlement(hands: Hands, made: Remembering) -> None:
    """
    I2: the state and what it was made from are written together, or not at all; a step may then run again.
    """
    claim = hands.begin()
    made.memories.put(hands.tenant, made.write("shop", "tea", "changed"), by="ada")
    writes = (made.write("shop", "other", 1), made.write("shop", "tea", 2, if_version=0))
    before = hands.everything()
    with pytest.raises(MemoryConflict) as raised:
        hands.settle(claim, "end", extras=Extras(memories=writes))
    assert (raised.value.key, raised.value.expected, raised.value.found) == ("tea", 0, 1)
    assert hands.everything() == before


def test_a_write_from_the_same_place_is_made_once(hands: Hands, made: Remembering) -> None:
    """
    A replay commits the step again: the same content from the same place is recognised, other content is news.
    """

    def write(value: int) -> MemoryWrite:
        from dataclasses import replace

        return replace(made.write("shop", "tea", value, if_version=0 if value == 1 else None), op="s:place:m1")

    hands.settle(hands.begin(), "end", extras=Extras(memories=(write(1),)))
    hands.settle(hands.begin(), "end", extras=Extras(memories=(write(1),)))
    assert [row.version for row in made.memories.versions(hands.tenant, "shop", "tea")] == [1]
    made.memories.put(hands.tenant, made.write("shop", "tea", "newer"), by="ada")
    hands.settle(hands.begin(), "end", extras=Extras(memories=(write(1),)))
    assert made.memories.get(hands.tenant, "shop", "tea").value == "newer"  # type: ignore[union-attr]
    hands.settle(hands.begin(), "end", extras=Extras(memories=(write(2),)))
    assert made.memories.get(hands.tenant, "shop", "tea").value == 2  # type: ignore[union-attr]


# ── time ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def later(settings: Any) -> Any:
    """A store whose clock is moved."""
    store = Store(settings.database_url, size=2, name="agentq later")
    clock = Clock(store)
    yield Memories(store), clock
    clock.reset()
    store.close()


def test_a_memory_past_its_time_is_not_read_and_then_gone(
    memories: Memories, made: Remembering, hands: Hands, later: Any
) -> None:
    """
    From the very moment on; the relay takes its content, of older versions too, in small batches.
    """
    moved, clock = later
    tenant = hands.tenant
    for number in range(5):
        memories.put(tenant, made.write("shop", f"offer{number}", "old tea"), by="ada")
        memories.put(tenant, made.write("shop", f"offer{number}", "cheap tea", ttl="1h"), by="ada")
    memories.put(tenant, made.write("shop", "stays", "tea"), by="ada")
    clock.advance("59m")
    assert len(search(moved, tenant, "tea")) == 6
    clock.advance("2m")
    assert search(moved, tenant, "tea") == ["stays"]
    assert moved.get(tenant, "shop", "offer1") is None
    assert keys(moved.below(tenant, "shop", limit=10)) == ["stays"]
    assert moved.namespaces(tenant, "", limit=10) == [("shop", 1)]
    # As if it were not there: who wants a new one says so, and gets a number that was never given.
    assert moved.put(tenant, made.write("shop", "offer0", "new", if_version=0), by="ada") == (3, True)
    moved.expire(2, 30)
    assert len(hands.rows("select from agentq.memory where value is not null and gone_at is null")) == 4
    while moved.expire(2, 30):
        pass
    left = hands.rows("select key, value, version from agentq.memory where key like 'offer%%' and key <> 'offer0'")
    assert {(row["value"], row["version"]) for row in left} == {(None, 2)}
    clock.advance("31d")
    while moved.expire(100, 30) or hands.rows("select from agentq.memory where gone_at is not null"):
        pass
    assert [row["key"] for row in hands.rows("select key from agentq.memory order by 1")] == ["offer0", "stays"]


def test_a_tenants_retention_covers_memories(
    memories: Memories, made: Remembering, hands: Hands, store: Store, later: Any
) -> None:
    """
    Counted from the last write. As for sessions, unless the tenant keeps its memories longer, or for ever.
    """
    moved, clock = later
    operators = Operators(store)
    memories.put(hands.tenant, made.write("shop", "old", 1), by="ada")
    clock.advance("9d")
    moved.put(hands.tenant, made.write("shop", "young", 1), by="ada")
    moved.expire(100, 30)
    assert len(memories.below(hands.tenant, "shop", limit=10)) == 2
    operators.change_tenant(hands.tenant, retention_days=5, memory_days=0, **WHO)
    moved.expire(100, 30)
    assert len(memories.below(hands.tenant, "shop", limit=10)) == 2
    operators.change_tenant(hands.tenant, memory_days=10, **WHO)
    moved.expire(100, 30)
    assert len(memories.below(hands.tenant, "shop", limit=10)) == 2
    operators.change_tenant(hands.tenant, memory_days=-1, **WHO)  # as its sessions
    moved.expire(100, 30)
    assert keys(memories.below(hands.tenant, "shop", limit=10)) == ["young"]


# ── words ────────────────────────────────────────────────────────────────────


def test_a_namespace_is_searched_with_all_below_it(memories: Memories, made: Remembering, tenant: str) -> None:
    """
    And nothing beside it, however its name begins.
    """
    for place in ("shop", "shop/a", "shop/a/b", "shop-b", "shop0", "other"):
        memories.put(tenant, made.write(place, place.replace("/", "."), "tea"), by="ada")
    assert sorted(search(memories, tenant, "tea", "shop")) == ["shop", "shop.a", "shop.a.b"]
    assert sorted(search(memories, tenant, "tea", "shop/a")) == ["shop.a", "shop.a.b"]
    assert len(search(memories, tenant, "tea")) == 6
    assert sorted(keys(memories.below(tenant, "shop", limit=10))) == ["shop", "shop.a", "shop.a.b"]
    assert memories.namespaces(tenant, "shop", limit=10) == [("shop", 1), ("shop/a", 1), ("shop/a/b", 1)]


def test_rare_words_count_more(memories: Memories, made: Remembering, tenant: str) -> None:
    """
    Of a question's words the one that few memories have decides; words in every memory find nothing by themselves,
    unless there are no others.
    """
    for number in range(30):
        memories.put(tenant, made.write("c", f"k{number}", f"The customer is number {number} of the list."), by="ada")
    memories.put(tenant, made.write("c", "tea", "The customer drinks oolong."), by="ada")
    assert search(memories, tenant, "what does the customer like to drink: oolong?")[0] == "tea"
    assert search(memories, tenant, "the customer with the oolong") == ["tea"]
    assert len(search(memories, tenant, "the customer")) == 10
    assert search(memories, tenant, "nothing of that") == []


@pytest.mark.parametrize(
    "query", ["", "  ", "!!!", "'", "\\", "a & b | !c <-> d", "x'); drop", "\u0001", "’“”", "日本語"]
)
def test_any_text_may_be_asked(memories: Memories, made: Remembering, tenant: str, query: str) -> None:
    """
    Whatever a model or a person asks, it is words; none of it is syntax.
    """
    memories.put(tenant, made.write("c", "quotes", r"it's a back\slash & an a'b, 日本語"), by="ada")
    assert search(memories, tenant, query) in ([], ["quotes"])
    assert search(memories, tenant, r"back\slash it's") == ["quotes"]


def test_only_the_named_fields_are_found(memories: Memories, made: Remembering, tenant: str) -> None:
    value = {"title": "oolong", "body": "rooibos"}
    memories.put(tenant, made.write("c", "a", value, index=["title"]), by="ada")
    memories.put(tenant, made.write("c", "b", value, index=False), by="ada")
    assert search(memories, tenant, "oolong") == ["a"]
    assert search(memories, tenant, "rooibos") == []


def test_the_fleet_cannot_read_the_index_of_words(store: Store, tenant: str) -> None:
    """
    I8: it is the one table without row security, so nothing but its three functions reaches it.
    """
    for statement in ("select", "delete from agentq.memory_words", "update agentq.memory_words set memory_id = 0"):
        text = "select words from agentq.memory_words" if statement == "select" else statement
        with store.transaction(tenant) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(text)


def test_a_search_finds_nothing_of_another_tenant(
    memories: Memories, made: Remembering, tenant: str, other_tenant: str, store: Store
) -> None:
    """
    I8: neither by words nor by meaning, nor by the numbers that the index gives out.
    """
    mine = made_by_meaning(memories)
    memories.put(tenant, mine.embedded(mine.write("c", "tea", "oolong")), by="ada")
    meaning = mine.meaning("oolong")
    assert search(memories, tenant, "oolong", meaning=meaning) == ["tea"]
    assert search(memories, other_tenant, "oolong", meaning=meaning) == []
    with store.transaction(other_tenant) as connection:
        words = "select * from agentq.matching_memories('', array['oolong'], array[1]::real[], array[false], true, 9)"
        assert connection.execute(words).fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select * from agentq.memory_words")
    assert memories.put(other_tenant, made.deletion("c", "tea"), by="x") == (0, False)
    assert memories.get(tenant, "c", "tea") is not None


def test_an_erased_tenant_leaves_no_memory(
    memories: Memories, made: Remembering, hands: Hands, admin: psycopg.Connection[Any]
) -> None:
    """
    Nor a word in the index.
    """
    for number in range(3):
        memories.put(hands.tenant, made.write("c", str(number), "tea"), by="ada")
    words = [row["memory_id"] for row in hands.rows("select memory_id from agentq.memory")]
    operators = Operators(hands.store)
    operators.change_tenant(hands.tenant, state="paused", **WHO)
    found = operators.erase_tenant(hands.tenant, **WHO)
    assert (found["memories_removed"], found["memories"]) == (3, 0)
    count = admin.execute("select count(*) from agentq.memory_words where memory_id = any (%s)", (words,)).fetchone()
    assert count == (0,)


# ── meaning ──────────────────────────────────────────────────────────────────


def made_by_meaning(memories: Memories) -> Remembering:
    return Remembering(memories, embedder=Embedder("senses", senses))


@pytest.fixture
def knowing(stack: Any, memories: Memories) -> Remembering:
    """With an embedder, on the embedded PostgreSQL, which carries pgvector."""
    assert memories.has_vectors()
    return made_by_meaning(memories)


def test_memories_are_found_by_meaning(memories: Memories, knowing: Remembering, tenant: str) -> None:
    """
    A question that shares no word with it finds it; what fits in words and in meaning comes first.
    """
    for key, text in (
        ("a", "prefers oolong"),
        ("b", "owns a vehicle"),
        ("c", "afraid of a storm"),
        ("d", "tea at four"),
    ):
        memories.put(tenant, knowing.embedded(knowing.write("c", key, text)), by="ada")
    question = "which tea?"
    found = memories.search(tenant, "c", question, language="simple", meaning=knowing.meaning(question), limit=2)
    assert [(hit.memory.key, hit.found_by) for hit in found if hit.memory] == [("d", "both"), ("a", "meaning")]
    assert search(memories, tenant, "drive", meaning=knowing.meaning("drive"))[0] == "b"


def test_vectors_of_another_embedder_are_not_compared(memories: Memories, knowing: Remembering, tenant: str) -> None:
    """
    Another model, or another size, means other numbers: found by words alone, without an error.
    """
    memories.put(tenant, knowing.embedded(knowing.write("c", "a", "prefers oolong")), by="ada")
    for other in (Embedder("other", senses), Embedder("senses", lambda texts, kind: [[1.0, 2.0]])):
        meaning = Remembering(memories, embedder=other).meaning("tea")
        assert search(memories, tenant, "tea", meaning=meaning) == []
        assert search(memories, tenant, "oolong", meaning=meaning) == ["a"]


def test_what_is_not_committed_is_found_too(memories: Memories, knowing: Remembering, tenant: str) -> None:
    """
    Read your writes: a pending write is ranked like the others, hides the version below it, and a pending deletion
    hides it altogether.
    """
    memories.put(tenant, knowing.embedded(knowing.write("c", "a", "prefers oolong")), by="ada")
    memories.put(tenant, knowing.embedded(knowing.write("c", "b", "hates oolong")), by="ada")
    pending = [
        knowing.embedded(knowing.write("c", "a", "prefers rooibos, a drink")),
        knowing.embedded(knowing.write("c", "z", "a drink of rooibos at night, or two")),
        knowing.deletion("c", "b"),
        knowing.embedded(knowing.write("elsewhere", "y", "rooibos")),
    ]

    def numbers(query: str, **more: Any) -> list[int | None]:
        found = memories.search(tenant, "c", query, language="simple", limit=9, pending=pending, **more)
        assert all(hit.memory is None for hit in found)
        return [hit.pending for hit in found]

    assert numbers("oolong") == []
    assert sorted(n or 0 for n in numbers("rooibos")) == [1, 2]
    assert sorted(n or 0 for n in numbers("tea", meaning=knowing.meaning("tea"))) == [1, 2]
    assert memories.search(tenant, "c", "oolong", language="simple", limit=9, meaning=Meaning((1.0,), "no@1"))


def test_a_server_without_pgvector_finds_by_words(stack: Any, scratch: str) -> None:  # noqa: F811
    """
    It is upgraded like any other, and no embedder is asked; where the extension comes later, it is used from then on.
    """
    asked: list[str] = []

    def embed(texts: Any, kind: str) -> Any:
        asked.append(kind)
        return senses(texts, kind)

    migrate.upgrade(scratch)
    assert migrate.check(scratch).ready
    store = Store(scratch, size=2, name="agentq test without vectors")
    try:
        memories = Memories(store)
        Operators(store).add_tenant("acme", concurrency=1, weight=1, **WHO)
        made = Remembering(memories, embedder=Embedder("senses", embed))
        memories.put("acme", made.embedded(made.write("c", "a", "prefers oolong")), by="ada")
        assert search(memories, "acme", "oolong", meaning=made.meaning("oolong")) == ["a"]
        meaning = Meaning((0.1, 1.0, 0.0, 0.0), "senses@4")
        assert search(memories, "acme", "tea", meaning=meaning) == []
        assert asked == []
        with stack.postgres._connect(scratch.rpartition("/")[2]) as superuser:
            superuser.execute("create extension vector")
        memories.put("acme", made.embedded(made.write("c", "b", "a vehicle")), by="ada")
        assert search(memories, "acme", "drive", meaning=made.meaning("drive")) == ["b"]
        assert asked == ["document", "query"]
    finally:
        store.close()


# ── encrypted ────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("no_keys_left")
def test_encrypted_memories_are_found_by_whole_words(
    settings: Any, hands: Hands, admin: psycopg.Connection[Any]
) -> None:
    """
    With data keys, neither the value nor a word of it is in the database, and no vector; a settlement's memories are
    sealed as well, a key that is rotated finds what the one before it hid, and another tenant's words look otherwise.
    """
    from agentq.store.keyring import Keyring
    from agentq.store.ledger import Ledger
    from agentq.store.providers import LocalKeys
    from agentq.verdicts import Settlement

    claim = hands.begin()
    store = Store(settings.database_url, size=4, name="agentq test keys", keys=LocalKeys([bytes(range(32))]))
    try:
        memories = Memories(store)
        made = made_by_meaning(memories)
        assert made.meaning("oolong") is None
        memories.put(hands.tenant, made.embedded(made.write("c", "tea", "Prefers Oolong")), by="ada")
        told = Extras(memories=(made.write("c", "cake", "likes walnuts"),))
        end = Settlement("end", kind="full", state=b'{"n":1}', state_from=claim.ref.step_id, result=b"1", extras=told)
        Ledger(store).settle(claim, end)
        Keyring(store).rotate(hands.tenant, operator="test", reason="a test")
        memories.put(hands.tenant, made.write("c", "more", "oolong again"), by="ada")
        assert sorted(search(memories, hands.tenant, "oolong")) == ["more", "tea"]
        assert search(memories, hands.tenant, "walnuts?") == ["cake"]
        assert memories.get(hands.tenant, "c", "cake").value == "likes walnuts"  # type: ignore[union-attr]
        assert {row.value for row in memories.below(hands.tenant, "c", limit=9)} == {
            "Prefers Oolong",
            "likes walnuts",
            "oolong again",
        }
        pending = [made.write("c", "new", "rooibos now")]
        [hit] = memories.search(hands.tenant, "", "rooibos", language="simple", limit=9, pending=pending)
        assert hit.pending == 1
        kept = hands.rows("select memory_id, value, embedding from agentq.memory")
        assert all(bytes(row["value"])[0] == 1 and row["embedding"] is None for row in kept)
        words = admin.execute(
            "select words::text from agentq.memory_words where memory_id = any (%s)",
            ([row["memory_id"] for row in kept],),
        ).fetchall()
        assert len(words) == 3
        assert not any(word in text for (text,) in words for word in ("oolong", "walnut", "prefers"))
        with pytest.raises(ConfigError, match="no key provider"):
            Memories(hands.store).put(hands.tenant, made.write("c", "plain", "in the clear"), by="ada")
    finally:
        store.close()
