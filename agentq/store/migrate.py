"""
Migrations: the schema brought to this release, in the two phases of a deploy.

A revision whose module says `phase = "after"` removes what the previous release still uses, so it
waits until the old workers are gone. Functions and row security are applied after the tables, each
time: they replace themselves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory

from agentq.errors import ConfigError, StoreUnavailable
from agentq.store.schema import SCHEMA, metadata
from agentq.store.traces import WEEKS_AHEAD

Phase = Literal["before", "after"]

# Two programs that migrate at once take turns.
_MIGRATION_LOCK = 0x61676E7471
_VERSION_TABLE = "schema_version"
# The weeks of the traces: made and dropped while the fleet runs, so no migration knows them.
_PARTITION = re.compile(r"(?:trace|decision)_(?:\d{8}|rest)")


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """Where the schema stands, and what would change it."""

    current: str | None
    head: str
    pending: tuple[str, ...]
    differences: tuple[str, ...]
    bypasses_row_security: bool

    @property
    def ready(self) -> bool:
        """Whether this release can run on it: every migration applied, nothing altered by hand."""
        return not self.pending and not self.differences


def upgrade(url: str, *, fleet_role: str | None = None, phase: Phase | None = None) -> list[str]:
    """
    Bring the schema to this release and return the revisions that ran.

    `phase="before"` stops ahead of the first revision that must wait for the old release to be gone.
    Idempotent, and safe to run from several machines at once. `fleet_role` is granted what workers
    and clients need, no more.

    Raises:
        StoreUnavailable: Postgres cannot be reached.
        ConfigError: the server is too old, or the role may not create the schema.
    """
    with _connected(url) as connection:
        _require_server(connection)
        connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(sa.text(f"create schema if not exists {SCHEMA}"))
        _apply(connection, "clock.sql")  # column defaults call agentq.now()
        pending = _pending(connection)
        ran = _runnable(pending, phase)
        if ran:
            command.upgrade(_config(connection), ran[-1].revision)
        if len(ran) == len(pending):
            _replace_functions(connection)
            connection.execute(sa.text(f"select {SCHEMA}.prepare_traces(:ahead)"), {"ahead": WEEKS_AHEAD})
        if fleet_role:
            _grant(connection, fleet_role)
        return [script.revision for script in ran]


def check(url: str) -> SchemaStatus:
    """
    Compare the database with this release; changes nothing.

    Raises:
        StoreUnavailable: Postgres cannot be reached.
    """
    with _connected(url) as connection:
        context = _context(connection)
        exists = sa.inspect(connection).has_table(_VERSION_TABLE, schema=SCHEMA)
        pending = _pending(connection)
        differences = list(compare_metadata(context, metadata)) if exists and not pending else []
        applied = connection.execute(sa.text(f"select obj_description(to_regnamespace('{SCHEMA}'), 'pg_namespace')"))
        if exists and applied.scalar() != _functions_digest():
            differences.append("the functions are those of another release: run `agentq db upgrade`")
        if exists and not pending:
            for name in connection.execute(sa.text(_UNGUARDED), {"schema": SCHEMA}).scalars():
                differences.append(f"row security of {SCHEMA}.{name} is off or has no policy: run `agentq db upgrade`")
        bypass = connection.execute(
            sa.text("select rolsuper or rolbypassrls from pg_roles where rolname = current_user")
        ).scalar_one()
        return SchemaStatus(
            current=context.get_current_revision() if exists else None,
            head=_scripts().get_current_head() or "",
            pending=tuple(script.revision for script in pending),
            differences=tuple(str(difference) for difference in differences),
            bypasses_row_security=bool(bypass),
        )


@contextmanager
def _connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(_sqlalchemy_url(url), poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            yield connection
    except sa.exc.OperationalError as error:
        raise StoreUnavailable(f"Postgres cannot be reached: {str(error.orig).strip()}") from error
    except sa.exc.ProgrammingError as error:
        if "permission denied" in str(error.orig):
            raise ConfigError(
                f"this database role may not change the schema ({str(error.orig).splitlines()[0]}): "
                "set AGENTQ_ADMIN_DATABASE_URL to the owner's URL"
            ) from error
        raise


def _sqlalchemy_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if scheme in ("postgres", "postgresql") else url


def _require_server(connection: sa.Connection) -> None:
    version = connection.execute(sa.text("select current_setting('server_version_num')::int")).scalar_one()
    if version < 150000:
        raise ConfigError(f"PostgreSQL 15 or later is needed, this server is {version // 10000}")


def _context(connection: sa.Connection) -> MigrationContext:
    return MigrationContext.configure(
        connection,
        opts={
            "version_table": _VERSION_TABLE,
            "version_table_schema": SCHEMA,
            "include_schemas": True,
            "include_name": include_name,
            "compare_type": True,
            "compare_server_default": False,
        },
    )


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Whether autogenerate looks at a thing: only at our schema, and not at Alembic's own table."""
    if kind == "schema":
        return name == SCHEMA
    return not (kind == "table" and name is not None and (name == _VERSION_TABLE or _PARTITION.fullmatch(name)))


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _pending(connection: sa.Connection) -> list[Script]:
    scripts = _scripts()
    exists = sa.inspect(connection).has_table(_VERSION_TABLE, schema=SCHEMA)
    current = _context(connection).get_current_revision() if exists else None
    return list(reversed(list(scripts.iterate_revisions("head", current or "base"))))


def _runnable(pending: list[Script], phase: Phase | None) -> list[Script]:
    if phase != "before":
        return pending
    runnable = []
    for script in pending:
        if getattr(script.module, "phase", "before") == "after":
            break
        runnable.append(script)
    return runnable


def _apply(connection: sa.Connection, name: str) -> None:
    statement = files("agentq.store").joinpath("sql", name).read_text("utf-8")
    # The driver's own cursor: these files hold many statements, and percent signs of their own.
    connection.connection.cursor().execute(statement)


def _replace_functions(connection: sa.Connection) -> None:
    """
    Put this release's functions and policies in place.

    A function whose result has another shape cannot be replaced, only dropped. A release gives such a
    function a new name, so that the one before it runs on; this serves whoever follows the branch.
    """
    for name in _applied_each_time():
        try:
            with connection.begin_nested():
                _apply(connection, name)
        except psycopg.errors.InvalidFunctionDefinition:
            _replace_all_functions(connection)
            break
    connection.execute(sa.text(f"comment on schema {SCHEMA} is '{_functions_digest()}'"))


def _replace_all_functions(connection: sa.Connection) -> None:
    for signature in connection.execute(sa.text(_OUR_FUNCTIONS), {"schema": SCHEMA}).scalars().all():
        connection.execute(sa.text(f"drop function {signature}"))
    for name in _applied_each_time():
        _apply(connection, name)


def _applied_each_time() -> list[str]:
    """The files of functions by name, and row security after them."""
    functions = files("agentq.store").joinpath("sql", "functions").iterdir()
    return [*sorted(f"functions/{file.name}" for file in functions if file.name.endswith(".sql")), "security.sql"]


# All but agentq.now(), on which column defaults stand.
_OUR_FUNCTIONS = """
    select oid::regprocedure::text from pg_proc
     where pronamespace = to_regnamespace(:schema) and proname <> 'now'
"""


# Whatever has a tenant in it, partitions too.
_UNGUARDED = """
    select c.relname from pg_class c
      join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant' and not a.attisdropped
     where c.relnamespace = to_regnamespace(:schema) and c.relkind in ('r', 'p')
       and not (c.relrowsecurity and c.relforcerowsecurity
                and exists (select from pg_policy p where p.polrelid = c.oid))
     order by c.relname
"""


def _functions_digest() -> str:
    """Tells one release's functions from another's."""
    texts = "".join(files("agentq.store").joinpath("sql", name).read_text("utf-8") for name in _applied_each_time())
    return f"functions {hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()}"


def _grant(connection: sa.Connection, role: str) -> None:
    quoted = connection.dialect.identifier_preparer.quote(role)
    for statement in (
        f"grant usage on schema {SCHEMA} to {quoted}",
        f"grant select, insert, update, delete on all tables in schema {SCHEMA} to {quoted}",
        # The record of what operators did is written and read, never altered.
        f"revoke update, delete on {SCHEMA}.operator_action from {quoted}",
        f"revoke insert, update, delete on {SCHEMA}.{_VERSION_TABLE} from {quoted}",
        # It has no row security: see `store/schema/memory.py`.
        f"revoke all on {SCHEMA}.memory_words from {quoted}",
        f"grant usage on all sequences in schema {SCHEMA} to {quoted}",
        f"grant execute on all functions in schema {SCHEMA} to {quoted}",
    ):
        connection.execute(sa.text(statement))
