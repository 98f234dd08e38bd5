"""The order database: real SQL on SQLite, one row per order, the tenant in every query."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tasks.support_desk.cases import Order

SEED = Path(__file__).with_name("orders.sql")
COLUMNS = """number, email, customer, item, total_cents, currency, status, carrier, tracking, address, payment,
    cast(julianday('now') - julianday(delivered_on) as integer) as delivered_days"""


def seed(path: Path, payment_prefix: str) -> None:
    """
    Lay a fresh database at `path`.

    The prefix makes the payments' names those of this run: the provider remembers a refund for good.
    """
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("pragma journal_mode = wal")
        connection.executescript(SEED.read_text("utf-8"))
        connection.execute("update orders set payment = ? || lower(number)", (payment_prefix,))


def find(path: Path, tenant: str, number: str) -> Order | None:
    """The tenant's order of that number."""
    with _reading(path) as connection:
        row = connection.execute(
            f"select {COLUMNS} from orders where tenant = ? and number = ?",  # noqa: S608 - a constant
            (tenant, number),
        ).fetchone()
    return Order(**dict(row)) if row else None


def of_customer(path: Path, tenant: str, email: str) -> list[Order]:
    """The orders that this address placed with this tenant."""
    with _reading(path) as connection:
        rows = connection.execute(
            f"select {COLUMNS} from orders where tenant = ? and email = ? order by number",  # noqa: S608
            (tenant, email),
        ).fetchall()
    return [Order(**dict(row)) for row in rows]


def every(path: Path) -> list[tuple[str, Order]]:
    """All orders with their tenants."""
    with _reading(path) as connection:
        rows = connection.execute(f"select tenant, {COLUMNS} from orders order by 1, 2").fetchall()  # noqa: S608
    return [(row["tenant"], Order(**{name: row[name] for name in Order.model_fields})) for row in rows]


def change_address(path: Path, tenant: str, number: str, address: str) -> bool:
    """Send the order elsewhere, unless it has left the house. Setting the same address again changes nothing."""
    with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
        changed = connection.execute(
            "update orders set address = ? where tenant = ? and number = ? and status = 'packing'",
            (address, tenant, number),
        )
    return changed.rowcount == 1


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection
