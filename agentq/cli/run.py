"""What runs in the foreground: the whole fleet, the demo, one worker, Flower."""

from __future__ import annotations

import os
from typing import Any

import click

from agentq.cli.reach import import_agents, servers
from agentq.settings import load

_LEVELS = click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False)


@click.command()
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--no-flower", is_flag=True, help="Leave Flower out.")
def up(workers: int, no_flower: bool) -> None:
    """Run the whole fleet here until Ctrl-C.

    PostgreSQL and Valkey (unless AGENTQ_DATABASE_URL and AGENTQ_BROKER_URL name yours), the schema, workers, the
    quarantine worker and Flower. Data stay in .agentq and survive a restart.
    """
    settings = load()
    import_agents(settings)  # a mistake in them is told here, not in a worker's log
    from agentq import embedded

    embedded.up(settings, workers=workers, flower=not no_flower)


@click.command(short_help="A support desk on a real fleet, a worker killed in the middle.")
@click.option("--stay/--no-stay", default=None, help="Leave it running until Ctrl-C  [default: in a terminal]")
def demo(stay: bool | None) -> None:
    """Play a support desk for three shops on a real fleet, kill a worker in the middle, and check the books.

    Needs a checkout of agentq: its agents and tickets are in tasks/.
    """
    from agentq import demo as play

    raise click.exceptions.Exit(play.run(stay=stay))


@click.command(short_help="Run one worker process here until SIGTERM.")
@click.option(
    "--group",
    metavar="NAME",
    help="The tenants to serve: those placed in this group, and no others (agentq tenant set --group). quarantine: "
    "prefork, steps whose worker died twice.  [default: worker_group]",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 2000),
    help="Steps at once  [default: worker_threads or quarantine_processes]",
)
@click.option("--loglevel", "-l", type=_LEVELS, help="How much to say  [default: log_level]")
def worker(group: str | None, concurrency: int | None, loglevel: str | None) -> None:
    """Run one worker process (or prefork group) here until SIGTERM, which drains it."""
    from agentq.step import valid_name

    if group is not None:
        os.environ["AGENTQ_WORKER_GROUP"] = valid_name("group", group)  # for the runtime, which reads the settings anew
    settings = servers()
    group = settings.worker_group
    import_agents(settings)  # before Celery, so that a mistake in them is one line
    from celery.signals import worker_shutting_down
    from celery.utils.nodenames import host_format

    from agentq.broker.queues import QUARANTINE
    from agentq.celery_app import app

    slots = settings.quarantine_processes if group == "quarantine" else settings.worker_threads
    if group == "quarantine":
        app.amqp.queues.select([QUARANTINE])
    _quiet_root_warning()
    # Not through Celery's own command: that loads every plugin it finds, Flower among them, into the worker.
    running = app.Worker(
        # Two workers on one host must not share a name: Flower and remote control would take them for one.
        hostname=host_format(f"{group}-{os.getpid()}@%h"),
        pool_cls="prefork" if group == "quarantine" else "threads",
        concurrency=concurrency or slots,
        loglevel=(loglevel or settings.log_level).upper(),
        without_gossip=True,
        without_mingle=True,
    )
    told: list[str] = []

    def note(how: str = "", **_: Any) -> None:
        told.append(how)

    worker_shutting_down.connect(note)
    running.start()
    # Celery calls Ctrl-C a failure; a worker that drained because it was told to did what it should.
    raise click.exceptions.Exit(0 if told == ["Warm"] else running.exitcode or 0)


@click.command(short_help="Run Flower here.")
@click.option("--port", type=click.IntRange(0, 65535), help="0: any free port  [default: flower_port]")
@click.option("--address", help="Where to listen  [default: flower_address]")
@click.option("--read-only", is_flag=True, help="No button changes anything.")
def flower(port: int | None, address: str | None, read_only: bool) -> None:
    """Run Flower here: workers, tasks and queues in a browser.

    Away from loopback it wants a login: AGENTQ_FLOWER_BASIC_AUTH=user:password. Further options of Flower's own are
    read from FLOWER_* variables and flowerconfig.py.
    """
    given: dict[str, Any] = {"flower_port": port, "flower_address": address}
    settings = load(None, **{name: value for name, value in given.items() if value is not None})
    if not settings.broker_url:
        settings = servers()
    from agentq.flower import serve

    serve(settings, read_only=read_only)


def _quiet_root_warning() -> None:
    """Celery warns of root because pickle could run as root; here nothing but JSON is accepted."""
    import warnings

    from celery.exceptions import SecurityWarning

    warnings.filterwarnings("ignore", category=SecurityWarning)
