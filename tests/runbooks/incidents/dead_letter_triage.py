"""Letters of two causes: payments was away for some, and one order has an amount that nobody can pay."""

from __future__ import annotations

from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words
from tests.runbooks.refunds import Refunds


def stage(scene: Scene) -> Words:
    refunds = Refunds(scene)
    refunds.start("A0")
    scene.carry()
    refunds.away = True
    away = refunds.start("A1", "A2", "A3", "A4", "A5")
    scene.carry()
    refunds.away = False
    [wrong, test] = refunds.start("B1", "B2", amount_cents=-5)
    scene.carry()
    scene.keep_carrying()
    return {
        "LETTER": refunds.letter(wrong),
        "TESTLETTER": refunds.letter(test),
        "CAUSE": refunds.cause(away[0]),
        "SESSION": str(wrong),
    }
