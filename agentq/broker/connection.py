"""The broker's connection: one set of options for workers, producers and the relay."""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from agentq.broker.transport import BrokerConnection
from agentq.errors import ConfigError
from agentq.settings import TLS_SCHEMES, Settings


def is_redis(url: str) -> bool:
    """Whether the broker speaks the Redis protocol."""
    return url.partition(":")[0] in ("redis", "rediss", "redis+socket")


def is_amqp(url: str) -> bool:
    """Whether the broker is RabbitMQ."""
    return url.partition(":")[0] in ("amqp", "amqps", "pyamqp")


def transport_options(settings: Settings) -> dict[str, Any]:
    """Options of the transport, each with its reason."""
    if not is_redis(settings.broker_url):
        # Not `confirm_publish`: it would wait for the disk at each of Celery's events. The publisher asks for
        # confirms itself, many at once.
        return {}
    return {
        # One list per queue instead of four: a quarter of the keys in each BRPOP.
        "priority_steps": [0],
        # Longer than any step, or a second copy runs beside it. Recovery does not wait for it.
        "visibility_timeout": settings.visibility_timeout_s,
        "unacked_restore_interval": 60,
        "unacked_restore_throttle": 1,
        # Tenants take turns.
        "queue_order_strategy": "round_robin",
        "global_keyprefix": settings.key_prefix,
        # A half-open connection is noticed within a minute instead of never. No retry options beside
        # these: they would switch off batched publishing.
        "socket_timeout": 10,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }


def tls(settings: Settings) -> dict[str, Any] | None:
    """
    How the broker proves who it is, as kombu and Celery want to be told; None: its URL is a plain one.

    By an authority's certificate and by its name in the URL. py-amqp by itself checks the first alone, and would talk
    to whoever has a certificate of that authority.

    Raises:
        ConfigError: a file that the settings name cannot be used.
    """
    if urlsplit(settings.broker_url).scheme not in TLS_SCHEMES:
        return None
    _check_files(settings.broker_ca_file, settings.broker_cert_file, settings.broker_key_file)
    facts = {
        "cert_reqs": ssl.CERT_REQUIRED,
        "ca_certs": settings.broker_ca_file or None,
        "certfile": settings.broker_cert_file or None,
        "keyfile": settings.broker_key_file or None,
    }
    if is_redis(settings.broker_url):
        return {f"ssl_{name}": value for name, value in facts.items()} | {"ssl_check_hostname": True}
    return facts | {"server_hostname": urlsplit(settings.broker_url).hostname}


def redis_options(settings: Settings) -> dict[str, Any]:
    """The same for `redis.Redis.from_url`."""
    return tls(settings) or {}


@lru_cache(maxsize=8)
def _check_files(ca_file: str, cert_file: str, key_file: str) -> None:
    """Once, and by name: from within a connection, a missing file looks like a broker that is away."""
    for name, path in (("broker_ca_file", ca_file), ("broker_cert_file", cert_file), ("broker_key_file", key_file)):
        try:
            if path:
                with open(path, "rb"):
                    pass
        except OSError as error:
            raise ConfigError(f"{name} names {path}, which cannot be read: {error.strerror}") from None
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None)
    except ssl.SSLError as error:
        names = "broker_cert_file and broker_key_file are" if cert_file else "broker_ca_file is"
        raise ConfigError(f"{names} no certificate that can be used: {error.reason}") from None


def connect(settings: Settings) -> BrokerConnection:
    """A connection for publishing; nothing is opened until it is used."""
    return BrokerConnection(
        settings.broker_url,
        transport_options=transport_options(settings),
        connect_timeout=5,
        ssl=tls(settings) or False,
    )


def explain(error: BaseException) -> str:
    """What a broker that cannot be used said, and where it is the address that is wrong, which part of it."""
    if (untrusted := _untrusted(error)) is not None:
        return (
            f"the broker's certificate is not trusted: {untrusted}; broker_ca_file names the authority that signed it, "
            "and the host in AGENTQ_BROKER_URL must be one of its names"
        )
    code = str(getattr(error, "reply_code", ""))
    if code == "403":
        return f"the broker refuses the user or password of AGENTQ_BROKER_URL ({error})"
    if code == "530":
        return f"the broker has no such vhost, or not for this user: see the path of AGENTQ_BROKER_URL ({error})"
    if code == "406":
        return f"the broker has a queue of this name that is of another kind, and not agentq's ({error})"
    return f"the broker did not answer: {error}"


def _untrusted(error: BaseException | None) -> str | None:
    """Why a certificate was refused, where that was the reason, however often it was wrapped since."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return None
