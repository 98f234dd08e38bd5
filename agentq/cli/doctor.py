"""The doctor: looks at everything a fleet stands on, and says what to do about what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from agentq.cli.exits import FAILED, UNAVAILABLE
from agentq.cli.output import json_option, print_json, span, when
from agentq.cli.reach import import_agents, knock, where
from agentq.errors import AgentqError, ConfigError, StoreUnavailable
from agentq.settings import Settings, load

if TYPE_CHECKING:
    from agentq.store.pool import Store


# Quorum queues are costly where there are many: the default of own_queues_max, made for Redis, is the most.
_OWN_QUEUES_ADVISED = 200


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `todo` says what to do; a warning does not fail the whole."""

    check: str
    ok: bool
    found: str
    todo: str = ""
    warning: bool = False
    unreachable: bool = False


@click.command(short_help="Check all that a fleet stands on; say what to do.")
@json_option
def doctor(as_json: bool) -> None:
    """Check settings, Postgres, schema, broker, agents and workers; say what to do about what is wrong.

    Exit code 0: all is well (or only warnings). 3: a server cannot be reached. 1: something else is wrong.
    """
    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            _tell(finding)
    wrong = [finding for finding in findings if not finding.ok and not finding.warning]
    if as_json:
        print_json({"ok": not wrong, "findings": findings})
    if wrong:
        raise click.exceptions.Exit(UNAVAILABLE if any(finding.unreachable for finding in wrong) else FAILED)


def examine() -> Iterator[Finding]:
    """Each finding as it is made."""
    try:
        settings = load()
    except ConfigError as error:
        yield Finding("settings", False, str(error), "mend config/agentq.toml or the AGENTQ_* variable it names")
        return
    yield Finding("settings", True, "read without contradiction")
    yield from _agents(settings)
    if not settings.database_url:
        yield Finding(
            "postgres", False, "no database is named", "set AGENTQ_DATABASE_URL, or run `agentq up`", unreachable=True
        )
    else:
        yield from _guarded("postgres", settings, _postgres)
    if not settings.broker_url:
        yield Finding(
            "broker", False, "no broker is named", "set AGENTQ_BROKER_URL, or run `agentq up`", unreachable=True
        )
    else:
        yield from _guarded("broker", settings, _broker)


def _guarded(name: str, settings: Settings, look: Callable[[Settings], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look(settings)
    except (AgentqError, OSError) as error:
        yield Finding(name, False, " ".join(str(error).split()), "start it, or mend its address", unreachable=True)


def _agents(settings: Settings) -> Iterator[Finding]:
    try:
        registry = import_agents(settings)
    except ConfigError as error:
        yield Finding("agents", False, " ".join(str(error).split()), "mend the module, or AGENTQ_AGENTS")
        return
    yield Finding("agents", True, ", ".join(registry.pins()))


def _postgres(settings: Settings) -> Iterator[Finding]:
    import psycopg

    knock(settings.database_url)
    with psycopg.connect(settings.database_url, connect_timeout=5) as connection:
        version = connection.info.server_version
        durable = all(connection.info.parameter_status(name) != "off" for name in ("fsync", "synchronous_commit"))
        secret = connection.info.password or not connection.info.host
    number = f"{version // 10_000}.{version % 10_000}"
    yield Finding(
        "postgres",
        version >= 150_000,
        f"PostgreSQL {number} at {where(settings.database_url)}",
        "15 or later is needed",
    )
    if not durable:
        yield Finding(
            "durability", False, "synchronous_commit is off", "a crash may forget what was promised: turn it on"
        )
    if not secret:
        yield Finding(
            "postgres login", False, "no password is used", "set one, unless the network is yours", warning=True
        )
    ready = yield from _schema(settings)
    if ready:
        yield from questions(settings)


def _schema(settings: Settings) -> Generator[Finding, None, bool]:
    from agentq.store import migrate

    status = migrate.check(settings.database_url)
    if status.pending:
        missing = f"{len(status.pending)} migrations have not run"
        yield Finding("schema", False, missing, "agentq db upgrade")
    elif status.differences:
        yield Finding(
            "schema", False, f"{len(status.differences)} things were altered by hand", "agentq db check names them"
        )
    else:
        yield Finding("schema", True, f"of this release ({status.current})")
    yield Finding(
        "row security",
        not status.bypasses_row_security,
        "binds the fleet's role" if not status.bypasses_row_security else "the fleet's role bypasses it",
        "let the fleet connect as a role that is no superuser and has no BYPASSRLS",
    )
    return status.current is not None and not status.pending


def questions(settings: Settings) -> Iterator[Finding]:
    """What the rows say of the fleet."""
    from agentq.store.pool import Store

    store = Store(settings.database_url, size=2, name="agentq doctor")
    try:
        for look in (_workers, _deserted, _unserved, _watchdog, _dependencies):
            yield from look(store)
        yield from _memory(settings, store)
    finally:
        store.close()


def _memory(settings: Settings, store: Store) -> Iterator[Finding]:
    """How memories are found, where the settings want more than words as they stand."""
    from agentq.agents.embedding import load_embedder
    from agentq.store.memory import Memories

    memories = Memories(store)
    if not memories.has_language(settings.memory_language):
        yield Finding(
            "memory words",
            False,
            f"Postgres has no text search configuration {settings.memory_language!r}",
            "set memory_language to one of pg_ts_config in pg_catalog, such as simple or english",
        )
    if not settings.memory_embedder:
        return
    try:
        load_embedder(settings.memory_embedder)
    except ConfigError as error:
        yield Finding("memory embedder", False, str(error), "mend memory_embedder")
        return
    there = memories.has_vectors()
    found = "pgvector is there" if there else "Postgres has no pgvector, so memories are found by words alone"
    yield Finding("memory embedder", there, found, "create extension vector, as a superuser", warning=True)


def _workers(store: Store) -> Iterator[Finding]:
    from agentq.store.workers import Workers

    workers = Workers(store)
    present, tenants = workers.present(), workers.tenants_served()
    groups = {"default", "quarantine"} | {row.group for row in present if row.group != "*"}
    for group in sorted(groups):
        todo = "agentq worker" if group == "default" else f"agentq worker --group {group}"
        some = [row for row in present if row.group == group and row.role == "steps"]
        heard = (
            f"{len(some)} alive, last heard {span(min(row.silent_s for row in some))} ago" if some else "none is alive"
        )
        yield Finding(f"workers, {group}", bool(some), heard, todo, warning=True)
    yield Finding("tenants", bool(tenants), f"{tenants:,} served", "agentq tenant add NAME", warning=True)


def _deserted(store: Store) -> Iterator[Finding]:
    from agentq.store.placement import Placement

    for row in Placement(store).deserted():
        if row.group == "default":
            continue  # said of its workers
        others = f" and {row.tenants - 1} others" if row.tenants > 1 else ""
        wait = "waits" if row.tenants == 1 else "wait"
        yield Finding(
            f"group {row.group}",
            False,
            f"tenant {row.tenant}{others} {wait} for group {row.group}, which no worker serves "
            f"({row.due} steps are due)",
            f"agentq worker --group {row.group}, or agentq tenant set {row.tenant} --group default",
            warning=True,
        )


def _unserved(store: Store) -> Iterator[Finding]:
    from agentq.store.workers import Workers

    rows = Workers(store).unserved()
    for row in rows:
        command = "agentq worker" if row.group == "default" else f"agentq worker --group {row.group}"
        yield Finding(
            f"steps of {row.pin}",
            False,
            f"{row.steps} due, the oldest for {span(row.oldest_s)}, and no live {row.group} worker serves it",
            f"start `{command}` with its code, or newer code that migrates it: `agentq db check --live`",
            warning=True,
        )
    if not rows:
        yield Finding("steps", True, "what is due is served by live workers")


def _watchdog(store: Store) -> Iterator[Finding]:
    from agentq.store.workers import Workers

    rows = Workers(store).restarted()
    if not rows:
        yield Finding("watchdog", True, "no worker restarted its consumer in the last day")
        return
    last = rows[0]
    workers = "1 worker restarted its" if len(rows) == 1 else f"{len(rows)} workers restarted their"
    yield Finding(
        "watchdog",
        False,
        f"{workers} consumer in the last day, the last {span(last.ago_s)} ago: process {last.pid} on {last.host}",
        "steps were due and did not come: look at the network to the broker and at that worker's log",
        warning=True,
    )


def _dependencies(store: Store) -> Iterator[Finding]:
    from agentq.store.dependencies import Breakers

    rows = [row for row in Breakers(store, {}).ls() if row.state in ("open", "half_open", "forced_open")]
    for row in rows:
        whose = f" of {row.tenant}" if row.tenant else ""
        latest = f", latest failure {row.last_failure.get('type')}" if row.last_failure else ""
        since = f"since {when(row.since)}, {row.refused_total} calls held back in all{latest}"
        forced = row.state == "forced_open"
        own = f" --tenant {row.tenant}" if row.tenant else ""
        todo = f"auto {row.name}{own} --reason '…'" if forced else f"show {row.name}"
        yield Finding(
            f"dependency {row.name}{whose}",
            False,
            f"{'held open by an operator' if forced else row.state} {since}",
            f"agentq dependency {todo}",
            warning=True,
        )
    if not rows:
        yield Finding("dependencies", True, "none is held back")


def _broker(settings: Settings) -> Iterator[Finding]:
    from agentq.broker.connection import explain, is_redis, redis_options

    if not is_redis(settings.broker_url):
        yield from _rabbitmq(settings)
        return
    import redis

    address = settings.broker_url
    with redis.Redis.from_url(address, socket_timeout=5, socket_connect_timeout=5, **redis_options(settings)) as server:
        try:
            facts: dict[str, Any] = dict(server.info())
        except redis.RedisError as error:
            raise StoreUnavailable(f"{where(address)}: {explain(error)}") from None
        yield Finding("broker", True, f"{_product(facts)} at {where(address)}")
        yield from _redis_policy(facts)


def _rabbitmq(settings: Settings) -> Iterator[Finding]:
    """RabbitMQ, as far as AMQP tells: its limits and alarms are known to its management interface alone."""
    from agentq.broker.connection import connect, explain

    connection = connect(settings)
    try:
        try:
            connection.ensure_connection(max_retries=1, timeout=5)
            facts = dict(getattr(connection.connection, "server_properties", None) or {})
        except Exception as error:
            raise StoreUnavailable(f"{where(settings.broker_url)}: {explain(error)}") from None
        version = str(facts.get("version", "?"))
        major, minor, *_ = [*(int(part) for part in version.split(".") if part.isdecimal()), 0, 0]
        yield Finding(
            "broker",
            (major, minor) >= (3, 10),
            f"{facts.get('product', 'a broker')} {version} at {where(settings.broker_url)}",
            "agentq is tested with RabbitMQ 3.10: use that or a later one",
            warning=True,
        )
        yield from _kinds_of_queues(connection)
    finally:
        connection.release()
    yield Finding(
        "broker queues",
        settings.own_queues_max <= _OWN_QUEUES_ADVISED,
        f"up to {settings.own_queues_max} tenants of a worker group have a queue of their own",
        f"each is a log of its own on the nodes that have it: own_queues_max of {_OWN_QUEUES_ADVISED} or less, the "
        "others share; then agentq queue place",
        warning=True,
    )


def _kinds_of_queues(connection: Any) -> Iterator[Finding]:
    """Whether queues that are there already are agentq's: workers could not listen to them otherwise."""
    from agentq.broker.queues import QUARANTINE, SUBMIT, declared

    for name in (SUBMIT, QUARANTINE):
        try:
            with connection.channel() as channel:
                channel.queue_declare(queue=name, passive=True)
            with connection.channel() as channel:
                declared(name).bind(channel).queue_declare()
        except connection.channel_errors as error:
            if str(getattr(error, "reply_code", "")) == "404":
                continue  # the first worker makes it
            yield Finding(
                f"queue {name}",
                False,
                f"was declared by somebody else: {' '.join(str(error).split())}",
                f"let it be read empty, delete it (rabbitmqctl delete_queue {name}) and restart the workers; Celery "
                'clients need task_create_missing_queue_type="quorum"',
            )


def _product(facts: dict[str, Any]) -> str:
    name = str(facts.get("server_name", "redis")).capitalize()
    return f"{name} {facts.get('valkey_version') or facts.get('redis_version', '')}"


def _redis_policy(facts: dict[str, Any]) -> Iterator[Finding]:
    policy = str(facts.get("maxmemory_policy", "?"))
    yield Finding(
        "broker memory",
        policy == "noeviction",
        f"maxmemory-policy {policy}",
        "set maxmemory-policy noeviction: it drops messages",
    )
    log = bool(int(facts.get("aof_enabled", 0)))
    yield Finding(
        "broker log",
        log,
        "append-only file on" if log else "append-only file off",
        "set appendonly yes: a restart loses every message, and the relay has to send them again",
        warning=True,
    )
    limit, used = int(facts.get("maxmemory", 0)), int(facts.get("used_memory", 0))
    if limit and used > 0.6 * limit:
        yield Finding(
            "broker room", False, f"{used * 100 // limit} % of maxmemory is used", "raise maxmemory", warning=True
        )


def _tell(finding: Finding) -> None:
    mark, colour = ("✓", "green") if finding.ok else ("!", "yellow") if finding.warning else ("✗", "red")
    with suppress(BrokenPipeError):
        click.echo(f"{click.style(mark, fg=colour)} {finding.check}: {finding.found}")
        if not finding.ok and finding.todo:
            click.echo(f"    → {finding.todo}")
