"""A step that killed its worker three times, the last time alone in quarantine; and a message that is no message."""

from __future__ import annotations

from pydantic import BaseModel

from agentq import Agent, Done
from agentq.client import Selection
from agentq.store.dead_letters import DeadLetterStore
from agentq.store.pool import Store
from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words
from tests.support.hands import Hands


class Picture(BaseModel):
    n: int = 0


def stage(scene: Scene) -> Words:
    agent = Agent("thumbnails", state=Picture, registry=scene.registry)

    @agent.step(start=True)
    def shrink(state: Picture) -> Done:
        return Done("small")  # mended, by the time it runs again

    store = Store(scene.settings.database_url, size=2, name="poison step")
    hands = Hands(store, scene.tenant)
    try:
        ref = hands.start(agent="thumbnails", name="shrink")
        hands.admit()
        for time in range(3):
            doomed = hands.registration()
            hands.claim(ref, worker=doomed.worker_id, quarantine=time >= 2, serves=["thumbnails@1"])
            doomed.stop()
            hands.ledger.take_back(10)
        DeadLetterStore(store).keep_poison(
            queue="agentq.t.acme", tenant=scene.tenant, reason="an entry is no message", body=b"\xff\xfegarbage"
        )
    finally:
        hands.close()
        store.close()
    scene.keep_carrying(quarantine=True)
    [letter] = scene.client.dead_letters.ls(Selection(tenant=scene.tenant))
    return {"LETTER": letter.letter_id.hex[:8], "SESSION": str(letter.session_id)}
