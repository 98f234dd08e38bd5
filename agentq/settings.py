"""
Settings: one frozen value, read once from `config/agentq.toml` and the environment.

Nothing below `runtime` reads the environment; settings travel as arguments.
Precedence: explicit arguments, then `AGENTQ_*` variables, then the TOML file
(`AGENTQ_CONFIG`, else `config/agentq.toml`), then the address file that a running
`agentq up` leaves in its data folder, then the defaults below.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from agentq.errors import ConfigError

PREFIX = "AGENTQ_"
DEFAULT_CONFIG = Path("config/agentq.toml")
ADDRESS_FILE = "stack.json"

# Keys that hold secrets: no message, log line or table prints their values.
SECRET_KEYS = frozenset(
    {
        "database_url",
        "admin_database_url",
        "broker_url",
        "flower_basic_auth",
        "notify_webhook_url",
        "notify_webhook_secret",
        "notify_smtp_url",
        "encryption_keys",
    }
)
# What the broker speaks: Redis and Valkey, or RabbitMQ.
BROKER_SCHEMES = ("redis", "rediss", "redis+socket", "valkey", "valkeys", "amqp", "amqps", "pyamqp")
TLS_SCHEMES = ("rediss", "amqps")
# Neither kombu nor redis-py knows these names.
_ALIASES = {"valkey": "redis", "valkeys": "rediss"}
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class Approver(BaseModel):
    """Somebody who may decide approvals: of which groups and tenants, and how they prove who they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    groups: tuple[str, ...] = Field(min_length=1)
    tenants: tuple[str, ...] = Field((), description="empty: every tenant")
    token_sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="empty: the login name is believed")
    email: str = ""


class Settings(BaseModel):
    """
    Everything an agentq process can be told.

    Seconds end in `_s`, bytes in `_bytes`. Relations between values are checked, not only ranges.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: str = Field("", description="Postgres as the fleet's role: postgresql://…")
    admin_database_url: str = Field("", description="Postgres as the owner, for migrations; database_url if empty")
    broker_url: str = Field("", description="Redis or Valkey: redis://…; RabbitMQ: amqp://…")
    broker_ca_file: str = Field(
        "", description="certificates of the authority that signed the broker's, for rediss:// and amqps://"
    )
    broker_cert_file: str = Field("", description="certificate that this side shows to a broker that asks for one")
    broker_key_file: str = Field("", description="its key, where that is not in the same file")
    agents: tuple[str, ...] = Field((), description="modules that define agents, imported in order")
    data_dir: Path = Field(Path(".agentq"), description="data and addresses of the embedded servers")
    key_prefix: str = Field("agentq:", description="put before every key in Redis or Valkey")

    heartbeat_s: float = Field(2.0, gt=0, description="how often a worker process renews its lease")
    lease_s: float = Field(15.0, gt=0, description="silence after which a worker process is taken for dead")
    dead_look_s: float = Field(1.0, gt=0, description="pause between the two looks at a missing liveness lock")
    relay_interval_s: float = Field(0.5, gt=0, description="pause between two rounds of the relay in one process")
    fair_shares: bool = Field(
        True, description="divide the threads among tenants by weight while more is wanted than can run"
    )
    relay_batch: int = Field(500, ge=1, description="rows that one round of the relay handles at most")
    watchdog_s: float = Field(
        30.0, ge=0, description="a worker to which due steps do not come for so long restarts its consumer; 0: never"
    )
    queued_stale_s: float = Field(
        2.0, gt=0, description="age of a published step before its message is looked for in the broker"
    )
    visibility_timeout_s: int = Field(
        6 * 3600, gt=0, description="Redis transport: unacknowledged messages return after this; longer than any step"
    )

    worker_threads: int = Field(64, ge=1, description="steps at once in a worker process of the threads group")
    quarantine_processes: int = Field(1, ge=1, description="prefork children of the quarantine group")
    database_pool: int = Field(16, ge=2, description="Postgres connections per process, held only within transactions")
    drain_s: float = Field(20.0, ge=0, description="grace for running steps after SIGTERM; then they are handed back")
    settle_patience_s: float = Field(
        120.0, ge=0, description="how long a finished step keeps trying to settle while Postgres is away"
    )

    step_timeout_s: float = Field(600.0, gt=0, description="wall time of an attempt unless the step says otherwise")
    step_retries: int = Field(3, ge=0, description="retries of a failed step unless the step says otherwise")
    backoff_base_s: float = Field(0.5, gt=0, description="first retry waits up to this, doubled each time")
    backoff_max_s: float = Field(
        300.0, gt=0, description="no retry waits longer than this unless the failure asks for it"
    )
    step_refusals_max: int = Field(
        10_000, ge=1, description="a step that was put off this often, by a breaker or by itself, is dead"
    )

    dependency_window_s: float = Field(30.0, gt=0, description="time over which a dependency's failures are weighed")
    dependency_volume_min: int = Field(10, ge=1, description="calls within the window before its breaker may open")
    dependency_failure_rate: float = Field(
        0.5, gt=0, le=1, description="share of failed calls at which a breaker opens"
    )
    dependency_pause_s: float = Field(
        5.0, gt=0, description="first pause of an open breaker; doubled with each probe that fails"
    )
    dependency_pause_max_s: float = Field(60.0, gt=0, description="longest pause between two probes")
    dependency_probes: int = Field(2, ge=1, description="probes at once in the whole fleet, while half open")
    dependency_probe_s: float = Field(
        120.0, gt=0, description="a probe that has not answered by then gives way to another"
    )
    dependency_good: int = Field(3, ge=1, description="probes that must go well before a breaker closes")
    dependency_report_s: float = Field(
        1.0, ge=0, description="how often a process tells what it saw and asks for the breakers; 0: at each call"
    )

    payload_max_bytes: int = Field(1_048_576, ge=1024, description="largest input, state, argument or result")
    memory_max_bytes: int = Field(65_536, ge=256, le=1_048_576, description="largest memory")
    memory_language: str = Field(
        "simple",
        pattern=NAME_PATTERN,
        description="Postgres text search configuration of memories written from now on; simple: any language",
    )
    memory_embedder: str = Field(
        "", description="module:name of an agentq.Embedder, for finding memories by meaning; needs pgvector"
    )
    memory_keep_days: int = Field(30, ge=1, description="replaced versions of memories are removed after so many")

    unknown_tenant: Literal["refuse", "create"] = Field(
        "refuse", description="what a start for a tenant that is not in the table does"
    )
    new_tenant_like: str = Field(
        "",
        pattern=f"^$|{NAME_PATTERN}",
        description="the tenant whose record, budgets and rates a tenant that a start creates gets; empty: a cap alone",
    )
    own_queues_max: int = Field(
        200, ge=0, description="tenants of a worker group that get a queue of their own by themselves; others share"
    )
    queue_shards: int = Field(
        32, ge=1, le=1024, description="shared queues of each worker group, for tenants placed from now on"
    )
    worker_group: str = Field("default", pattern=NAME_PATTERN, description="the tenants that a worker process serves")
    tenant_concurrency: int = Field(64, ge=1, description="concurrency cap of a tenant added without one")
    submit_tokens: Literal["required", "optional"] = Field(
        "optional", description="tokens of submissions; optional: only for tenants for which there is one"
    )
    unpriced: Literal["refuse", "tokens"] = Field(
        "refuse", description="a model call whose price nobody knows: not made, or counted in tokens alone"
    )
    task_events: bool = Field(
        True, description="workers tell Flower of each task; a fifth of a worker's time per empty step"
    )
    approval_group: str = Field(
        "operators", pattern=NAME_PATTERN, description="who is asked where neither the step nor the effect says it"
    )
    approval_within_s: float = Field(
        3 * 86400.0, gt=0, description="time for an answer where neither the step nor the effect says it"
    )
    approvers: dict[str, Approver] = Field({}, description="who may decide approvals; empty: whoever reaches Postgres")
    notify_webhook_url: str = Field("", description="told of each approval with a signed POST")
    notify_webhook_secret: str = Field("", description="signs what goes to the webhook")
    notify_smtp_url: str = Field("", description="mail server: smtp://user:password@host:587 or smtps://…")
    notify_email_from: str = Field("", description="sender of the mails about approvals")
    notify_email_to: tuple[str, ...] = Field((), description="told by mail where no approver has an address")
    notify_link: str = Field("", description="address of an approval for people; {id} and {tenant} are filled in")
    notify_details: bool = Field(False, description="notices carry the details of a question, not only the question")
    sandbox: Literal["auto", "bubblewrap", "landlock", "docker"] = Field(
        "auto", description="where foreign code runs; auto: bubblewrap, else Landlock, else it is refused"
    )
    sandbox_image: str = Field("python:3.12-slim", description="image of the docker sandbox; it needs python3")
    encryption_key_file: str = Field(
        "", description="payloads are encrypted in Postgres; keys that wrap the tenants' keys, one a line, mode 0600"
    )
    encryption_keys: str = Field("", description="the same from the environment, separated by commas")
    encryption_provider: str = Field("", description="the same from a KMS: module:function that returns a KeyProvider")
    flower_port: int = Field(5555, ge=0, le=65535, description="0: any free port")
    flower_address: str = Field("127.0.0.1", description="the address Flower binds")
    flower_operators: tuple[str, ...] = Field(
        (), description="who may change things in agentq's tabs: names of logins; empty: all who log in"
    )
    flower_basic_auth: str = Field("", description="user:password for Flower; generated by `agentq up` if empty")
    trace: bool = Field(True, description="keep a row of each attempt, and what it did and decided")
    trace_content: Literal["off", "kept", "exported"] = Field(
        "kept", description="inputs and outputs in traces, redacted: not at all, in Postgres alone, in exports too"
    )
    trace_content_max: int = Field(16_384, ge=256, description="characters of an input or output that a trace keeps")
    trace_keep_days: int = Field(30, ge=1, description="traces are dropped by the week once they are older")
    redact: tuple[str, ...] = Field((), description="regular expressions of one's own for what no trace may keep")
    redact_hook: str = Field(
        "", description="module:function(kind, value) that changes what a trace keeps, before it does"
    )
    otlp_endpoint: str = Field("", description="OpenTelemetry spans of ended sessions go here, OTLP over HTTP")
    metrics_port: int = Field(0, ge=0, le=65535, description="first port for a worker's metrics; 0: none")
    metrics_address: str = Field("127.0.0.1", description="the address on which workers serve metrics")
    metrics_tenants: int = Field(
        20, ge=1, le=1000, description="tenants with metrics of their own; the others share one"
    )
    anomalies: bool = Field(True, description="compare sessions with what is normal for their agent; needs trace")
    anomaly_runs_min: int = Field(200, ge=20, description="runs of an agent's version before its baseline is trusted")
    anomaly_runs_few: int = Field(20, ge=2, description="runs before a session far beyond all of them is told")
    anomaly_tail_steps: float = Field(1.5, ge=0, description="steps: so many times the 99th percentile; 0: never")
    anomaly_tail: float = Field(
        2.0, ge=0, description="tokens, cost, time, failures: so many times the 99th percentile; 0: never"
    )
    anomaly_mad_z: float = Field(3.5, ge=0, description="deviations of the logarithm from its median; 0: never")
    anomaly_multiple: float = Field(10.0, ge=0, description="times the median, while a baseline is young; 0: never")
    anomaly_ewma_sigma: float = Field(
        3.5, ge=0, description="deviations of the cost by hour, smoothed over hours; 0: never"
    )
    anomaly_ewma_hours: int = Field(24, ge=2, description="hours with runs before the cost by hour is judged")
    anomaly_tool_mix: float = Field(
        0.02, ge=0, description="distance of the mix of tools, in bits; at least 1.7 / window; 0: never"
    )
    anomaly_window: int = Field(50, ge=10, description="runs whose tools and failures are judged together")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    sentry_dsn: str = Field("", description="reports to Sentry when set")

    @field_validator("broker_url")
    @classmethod
    def _name_the_protocol(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        return f"{_ALIASES.get(scheme, scheme)}{separator}{rest}"

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if not 3 * self.heartbeat_s <= self.lease_s:
            raise ValueError("want 3 * heartbeat_s <= lease_s, or one lost heartbeat kills a healthy worker")
        if not self.lease_s < self.visibility_timeout_s:
            raise ValueError("want lease_s < visibility_timeout_s, or the broker repeats what the lease protects")
        if not self.step_timeout_s < self.visibility_timeout_s:
            raise ValueError("want step_timeout_s < visibility_timeout_s, or long steps are delivered twice")
        if self.broker_url and self.broker_url.partition(":")[0] not in BROKER_SCHEMES:
            raise ValueError(f"want a broker_url that begins with one of {', '.join(BROKER_SCHEMES)}, then ://")
        self._check_tls()
        if not self.dependency_pause_s <= self.dependency_pause_max_s:
            raise ValueError("want dependency_pause_s <= dependency_pause_max_s")
        if not self.backoff_base_s <= self.backoff_max_s:
            raise ValueError("want backoff_base_s <= backoff_max_s")
        if sum(map(bool, (self.encryption_key_file, self.encryption_keys, self.encryption_provider))) > 1:
            raise ValueError("want one of encryption_key_file, encryption_keys and encryption_provider")
        if self.notify_webhook_url and not self.notify_webhook_secret:
            raise ValueError("want notify_webhook_secret beside notify_webhook_url, or anybody could forge a notice")
        if self.notify_smtp_url and not self.notify_email_from:
            raise ValueError("want notify_email_from beside notify_smtp_url")
        if self.new_tenant_like and self.unknown_tenant != "create":
            raise ValueError("want unknown_tenant = create beside new_tenant_like, or it makes nothing")
        for name in self.approvers:
            if not name.strip():
                raise ValueError("an approver needs a name")
        return self

    def _check_tls(self) -> None:
        scheme, _, rest = self.broker_url.partition("://")
        if scheme and scheme not in TLS_SCHEMES and (self.broker_ca_file or self.broker_cert_file):
            raise ValueError(f"want rediss:// or amqps:// in broker_url beside broker_ca_file: {scheme}:// is plain")
        if self.broker_key_file and not self.broker_cert_file:
            raise ValueError("want broker_cert_file beside broker_key_file")
        if scheme == "amqps" and "?" in rest.rpartition("@")[2]:
            raise ValueError("want broker_ca_file and its like instead of options in an amqps:// URL")

    def require_servers(self) -> Self:
        """
        These settings, when they name both servers.

        Raises:
            ConfigError: no database or no broker is named, and no `agentq up` is running here.
        """
        for name in ("database_url", "broker_url"):
            if not getattr(self, name):
                raise ConfigError(
                    f"{name} is not set: export {PREFIX}{name.upper()}, or start the embedded servers "
                    f"with `agentq up` (none are running in {self.data_dir.resolve()})"
                )
        return self

    @property
    def notify_channels(self) -> tuple[str, ...]:
        """How people are told that they are asked."""
        return (*(("webhook",) if self.notify_webhook_url else ()), *(("email",) if self.notify_smtp_url else ()))

    @property
    def migration_url(self) -> str:
        """The URL that migrations and `tenant erase` use."""
        return self.admin_database_url or self.database_url


def load(environ: Mapping[str, str] | None = None, **explicit: Any) -> Settings:
    """
    Settings from arguments, environment, file and address file, in that order of precedence.

    Raises:
        ConfigError: a value is unknown, malformed or contradicts another. Values are never printed.
    """
    environ = os.environ if environ is None else environ
    values = _from_file(environ) | _from_environment(environ) | explicit
    data_dir = Path(values.get("data_dir", Settings.model_fields["data_dir"].default))
    values = _from_address_file(data_dir, values) | values
    try:
        return Settings(**values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("settings are wrong: " + "; ".join(lines)) from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        text = environ.get(PREFIX + name.upper())
        if not text:
            continue
        if name == "approvers":
            try:
                found[name] = json.loads(text)
            except ValueError:
                raise ConfigError(PREFIX + 'APPROVERS is not JSON such as {"ada": {"groups": ["finance"]}}') from None
            continue
        is_list = field.annotation == tuple[str, ...]
        found[name] = tuple(part.strip() for part in text.split(",") if part.strip()) if is_list else text
    return found


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    named = environ.get(PREFIX + "CONFIG")
    path = Path(named) if named else DEFAULT_CONFIG
    if not path.is_file():
        if named:
            raise ConfigError(f"{PREFIX}CONFIG names {named}, which is not a file")
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _from_address_file(data_dir: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Addresses of a running `agentq up`. A server that is named elsewhere is not looked up here, nor its owner."""
    named = {name for name in ("database_url", "broker_url") if known.get(name)}
    if len(named) == 2:
        return {}
    path = data_dir / ADDRESS_FILE
    try:
        addresses = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): stop `agentq up`, remove it, start again") from None
    wanted = {"database_url", "admin_database_url", "broker_url", "flower_port", "flower_basic_auth"} - named
    if "database_url" in named:
        wanted.discard("admin_database_url")
    return {name: addresses[name] for name in wanted if name in addresses and name not in known}
