"""
Flower: the window on workers, tasks and queues, as stock Flower with arguments that suit a fleet, and
agentq's own tabs inside it (`tabs`).
"""

from __future__ import annotations

import ipaddress
import os

from agentq.errors import ConfigError
from agentq.settings import Settings

# Some 6 kB each: Flower's own default of 100,000 would take 0.6 GB.
TASKS_MAX = 10_000
WORKERS_GONE_S = 60
# What a task's ids mean is in its arguments: tenant, step and session; what came of it, with the class of its failure
# and its agent, is its result. Never a payload.
COLUMNS = "name,uuid,kwargs,state,result,received,runtime,worker"


def serve(settings: Settings, *, read_only: bool = False) -> None:
    """
    Run Flower until SIGINT or SIGTERM.

    Raises:
        ConfigError: it would listen to the network without a login.
    """
    require_login(settings)
    if settings.flower_basic_auth:
        # Not an argument: those are shown to everybody by `ps`.
        os.environ["FLOWER_BASIC_AUTH"] = settings.flower_basic_auth
    from agentq.celery_app import app
    from agentq.flower.tabs import install

    install()
    app.start(arguments(settings, read_only=read_only))


def arguments(settings: Settings, *, read_only: bool = False) -> list[str]:
    """Flower's command line. What is not here can be set by FLOWER_* variables or flowerconfig.py."""
    given = [
        "flower",
        f"--address={settings.flower_address}",
        f"--port={settings.flower_port}",
        f"--max_tasks={TASKS_MAX}",
        f"--purge_offline_workers={WORKERS_GONE_S}",
        f"--tasks_columns={COLUMNS}",
    ]
    return [*given, "--read_only=true"] if read_only else given


def require_login(settings: Settings) -> None:
    """
    Refuse to show a fleet, and buttons that stop it, to whoever can reach the port.

    Raises:
        ConfigError: the address is not loopback and there is no login, or the login is malformed.
    """
    login = settings.flower_basic_auth
    user, _, password = login.partition(":")
    if login and not (user and password):
        raise ConfigError("AGENTQ_FLOWER_BASIC_AUTH must be user:password, neither empty")
    has_login = bool(login or os.environ.get("FLOWER_BASIC_AUTH") or os.environ.get("FLOWER_AUTH"))
    if not has_login and not is_loopback(settings.flower_address):
        raise ConfigError(
            f"Flower on {settings.flower_address or 'every address'} would let anybody who reaches it stop workers: "
            "set AGENTQ_FLOWER_BASIC_AUTH=user:password, or keep AGENTQ_FLOWER_ADDRESS=127.0.0.1"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


__all__ = ["COLUMNS", "TASKS_MAX", "WORKERS_GONE_S", "arguments", "is_loopback", "require_login", "serve"]
