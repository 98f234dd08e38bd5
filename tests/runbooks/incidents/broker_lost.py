"""The broker died with its disk while sessions ran; a worker lives, and a producer goes on."""

from __future__ import annotations

from tests.runbooks.conftest import Scene
from tests.runbooks.own_servers import move, on_command
from tests.runbooks.reading import Words


def stage(scene: Scene) -> Words:
    valkey = move(scene).valkey
    scene.fleet.worker()
    scene.fleet.worker(group="quarantine")
    valkey.kill()
    for path in valkey.folder.rglob("appendonly*"):
        if path.is_file():
            path.unlink()
    for n in range(3):
        scene.client.start("count", tenant=scene.tenant, input={"until": 5}, key=f"order-{n}")
    return {"START_BROKER": on_command(scene, "broker", lambda: valkey.start(same_port=True))}
