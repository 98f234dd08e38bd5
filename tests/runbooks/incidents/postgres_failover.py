"""Postgres died while steps ran; it comes back at the same address, as a promoted replica does."""

from __future__ import annotations

from tests.runbooks.conftest import Scene
from tests.runbooks.own_servers import move, on_command
from tests.runbooks.reading import Words
from tests.support.until import until


def stage(scene: Scene) -> Words:
    postgres = move(scene).postgres
    scene.fleet.worker()
    scene.fleet.worker(group="quarantine")
    sessions = [
        scene.client.start("count", tenant=scene.tenant, input={"until": 400}, key=f"order-{n}") for n in range(3)
    ]
    until(lambda: all(len(session.steps()) > 3 for session in sessions), 20, "sessions that run")
    postgres.kill()
    return {"START_POSTGRES": on_command(scene, "postgres", lambda: postgres.start(same_port=True))}
