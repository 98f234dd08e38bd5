"""The root of the command line: every command by name, and the help that explains exit codes."""

from __future__ import annotations

import click

from agentq.cli import (
    anomaly,
    approval,
    audit,
    budget,
    chaos,
    db,
    dependency,
    dlq,
    effect,
    fleet,
    init,
    keys,
    memory,
    queue,
    rate,
    run,
    session,
    start,
    submission,
    tenant,
)
from agentq.cli import doctor as doctor_module
from agentq.cli import trace as trace_module
from agentq.cli.exits import HELP, Guarded

_ABOUT = f"""Runs AI agents as a fleet of Celery workers, every step durable in Postgres.

Servers and agents are found through AGENTQ_* variables and config/agentq.toml, or through a running
`agentq up` in this folder.

{HELP}"""


def _version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            known = version("agentq")
        except PackageNotFoundError:
            known = "0+unknown (not installed)"
        click.echo(f"agentq {known}")
        ctx.exit()


@click.group(
    cls=Guarded, help=_ABOUT, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def main() -> None:
    """The command `agentq`."""


for _command in (
    run.up,
    run.demo,
    run.worker,
    run.flower,
    start.start,
    session.session,
    approval.approval,
    dlq.dlq,
    effect.effect,
    anomaly.anomaly,
    dependency.dependency,
    tenant.tenant,
    memory.memory,
    budget.budget,
    audit.audit,
    rate.rate,
    queue.queue,
    fleet.fleet,
    submission.submission,
    keys.token,
    keys.keys,
    chaos.chaos,
    trace_module.cost_group,
    db.db,
    init.init,
    doctor_module.doctor,
):
    main.add_command(_command)
