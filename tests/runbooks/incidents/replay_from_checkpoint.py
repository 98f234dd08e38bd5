"""A session that ended well, and wrongly: it paid an amount that was entered wrongly."""

from __future__ import annotations

from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words
from tests.runbooks.refunds import Refunds


def stage(scene: Scene) -> Words:
    refunds = Refunds(scene)
    [session] = refunds.start("A1", amount_cents=120_000)
    scene.carry()
    scene.keep_carrying()
    return {"SESSION": str(session)}
