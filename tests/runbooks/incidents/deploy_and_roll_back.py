"""A session in flight under version 1, and two releases that follow: one would strand it, the other does not."""

from __future__ import annotations

import os
import textwrap

from tests.runbooks.conftest import Scene
from tests.runbooks.own_servers import on_command
from tests.runbooks.reading import Words
from tests.support.fleet import ROOT, Worker
from tests.support.until import until

VERSION_1 = """
    from pydantic import BaseModel

    from agentq import Agent, Ask, Context, Done


    class Refund(BaseModel):
        order: str
        amount: float = 12.0


    refunds = Agent("refunds", state=Refund, version=1)


    @refunds.step(start=True)
    def look(state: Refund) -> Ask:
        return Ask(f"Refund {state.order}?", to="finance", within="3d", then=pay)


    @refunds.step
    def pay(state: Refund, ctx: Context) -> Done:
        return Done(f"{ctx.answer.outcome}, {state.order}: {state.amount:.2f}")
"""
CARELESS = (
    VERSION_1.replace("version=1", "version=2")
    .replace("amount: float = 12.0", "amount_cents: int")
    .replace("{state.amount:.2f}", "{state.amount_cents} cents")
)
CAREFUL = (
    CARELESS
    + """

    @refunds.migrate(from_version=1)
    def cents(old: dict) -> dict:
        return {"order": old["order"], "amount_cents": round(old["amount"] * 100)}
"""
)


def stage(scene: Scene) -> Words:
    for name, code in {"release_1": VERSION_1, "careless_release_2": CARELESS, "release_2": CAREFUL}.items():
        (scene.folder / f"{name}.py").write_text(textwrap.dedent(code), "utf-8")
    old = worker(scene, "release_1")
    session = start(scene)
    [approval] = scene.client.approvals.ls(tenant=scene.tenant)
    new: list[Worker] = []
    return {
        "SESSION": session,
        "APPROVAL": str(approval.approval_id),
        "START_NEW_WORKER": on_command(scene, "new", lambda: new.append(worker(scene, "release_2"))),
        "OLD_PID": str(old.pid),
    }


def worker(scene: Scene, agents: str) -> Worker:
    return scene.fleet.worker(agents=agents, PYTHONPATH=os.pathsep.join([str(scene.folder), str(ROOT)]))


def start(scene: Scene) -> str:
    """A session that asked its people under version 1; the answer will come under the next."""
    code, printed = scene.run(
        'AGENTQ_AGENTS=release_1 agentq start refunds --tenant acme --key A1 --input \'{"order": "A1"}\' 2>&1 | head -1'
    )
    assert code == 0, printed
    session = scene.client.get(scene.tenant, printed.strip())
    until(lambda: [step.state for step in session.steps()] == ["done", "waiting"], 30, "it asks")
    return session.id
