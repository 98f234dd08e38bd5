"""
`python -m benchmarks.memory`: what it costs to remember and to recall, with many memories there already.

One tenant holds N memories, in namespaces of a hundred and all below one; a second one holds as many, so that
the index is not one tenant's alone. Each is a sentence of twenty words out of 20,000, the frequent ones frequent as in
languages. With an embedder of 384 numbers, so that a search by meaning compares the vectors of its namespace.
Times are those of single calls, one after another; writes wait for the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from agentq import Embedder
from agentq.agents.memory import Remembering
from agentq.payload import encode
from agentq.store.memory import Memories
from agentq.store.operators import Operators
from agentq.store.pool import Store, name_tenant, run
from agentq.store.queries import load
from benchmarks.fleet import servers

SIZE = 384
WORDS = [hashlib.sha256(str(n).encode()).hexdigest()[:7].translate(str.maketrans("0123456789", "ghijklmnop"))
         for n in range(20_000)]  # fmt: skip
WEIGHTS = [1 / (n + 1) for n in range(len(WORDS))]


def main() -> None:
    """Fill, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--vectors", type=int, default=20_000, help="so many of them have one")
    parser.add_argument("--json", type=Path, default=Path("artifacts/bench-memory.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentq-bench-") as folder, servers(Path(folder) / "data") as env:
        store = Store(env["AGENTQ_DATABASE_URL"], size=2, name="agentq benchmark")
        figures = measure(store, arguments)
        store.close()
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2), "utf-8")
    show(figures, arguments)


def measure(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure by its name, in milliseconds, as median and 99th of a hundred."""
    random.seed(7)
    for name in ("bench", "other"):
        Operators(store).add_tenant(name, concurrency=1, weight=1.0, operator="bench", reason="measured")
    filling = time.perf_counter()
    for tenant in ("other", "bench"):
        fill(store, tenant, arguments.memories, arguments.vectors if tenant == "bench" else 0)
    filled_s = time.perf_counter() - filling
    memories = Memories(store)
    plain = Remembering(memories)
    knowing = Remembering(memories, embedder=Embedder("bench", vectors))
    hundred, few = iter(range(10**9)), arguments.memories // 100

    def put() -> None:
        number = next(hundred)
        memories.put("bench", plain.write(f"all/n{number % few}", f"new{number}", sentence()), by="bench")

    def again() -> None:
        memories.put("bench", plain.write("all/n1", "k101", sentence()), by="bench")

    def search(place: str, question: Callable[[], str], *, meaning: bool = False) -> Callable[[], object]:
        def ask() -> object:
            text = question()
            meant = knowing.meaning(text) if meaning else None
            return memories.search("bench", place, text, language="simple", meaning=meant, limit=10)

        return ask

    def rare() -> str:
        return " ".join(random.sample(WORDS[200:], 3))

    def common() -> str:
        return " ".join(WORDS[:3])

    cases: dict[str, Callable[[], object]] = {
        "put, a new key": put,
        "put, a new version": again,
        "get": lambda: memories.get("bench", "all/n1", "k101"),
        "list of a namespace of 100": lambda: memories.below("bench", "all/n1", limit=20),
        "search a namespace of 100, a sentence": search("all/n1", sentence),
        "search all, three rare words": search("all", rare),
        "search all, a sentence": search("all", sentence),
        "search all, common words alone": search("all", common),
        "search a namespace of 100, by meaning too": search("all/n1", sentence, meaning=True),
        f"search all, by meaning too ({arguments.vectors:,} vectors)": search("all", sentence, meaning=True),
    }
    timed = {name: clock(call, arguments.calls) for name, call in cases.items()}
    return {"memories": arguments.memories, "filled_s": filled_s, "ms": timed}


def fill(store: Store, tenant: str, count: int, with_vector: int) -> None:
    """So many memories, in batches, by the function that settlements call."""
    for first in range(0, count, 1000):
        writes = []
        for number in range(first, min(first + 1000, count)):
            text = sentence()
            facts = {"kind": "put", "ns": f"all/n{number // 100}", "key": f"k{number}", "digest": "aGFzaA==",
                     "value": to_base64(text), "text": text}  # fmt: skip
            if number < with_vector:
                facts |= {"embedding": vectors([text])[0], "embedded_by": f"bench@{SIZE}"}
            writes.append(facts)
        with store.transaction(tenant) as connection:
            name_tenant(connection, tenant)
            run(
                connection,
                load("memory")["put"],
                {"tenant": tenant, "by": "bench", "writes": Jsonb(writes), "sealed": False},
            )


def sentence() -> str:
    """Twenty words."""
    return " ".join(random.choices(WORDS, WEIGHTS, k=20))


def to_base64(text: str) -> str:
    import base64

    return base64.b64encode(encode(text)).decode()


def vectors(texts: Any, kind: str = "document") -> list[list[float]]:
    """As large as a small model's, and as quickly made as can be."""
    made = []
    for text in texts:
        source = random.Random(text)
        made.append([round(source.gauss(0, 1), 4) for _ in range(SIZE)])
    return made


def clock(call: Callable[[], object], times: int) -> dict[str, float]:
    """The calls' times in milliseconds, after a few that warm up."""
    for _ in range(5):
        call()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1000)
    took.sort()
    return {"p50": statistics.median(took), "p99": took[min(len(took) - 1, int(len(took) * 0.99))]}


def show(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """For people."""
    table = Table("call", "p50 ms", "p99 ms", title=f"{arguments.memories:,} memories of a tenant, as many of another")
    for name, took in figures["ms"].items():
        table.add_row(name, f"{took['p50']:.2f}", f"{took['p99']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
