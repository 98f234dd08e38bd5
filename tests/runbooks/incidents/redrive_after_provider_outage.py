"""Payments was away long enough for six sessions to die; it comes back after one more canary has died of it."""

from __future__ import annotations

from tests.runbooks.conftest import Scene
from tests.runbooks.reading import Words
from tests.runbooks.refunds import Refunds


def stage(scene: Scene) -> Words:
    refunds = Refunds(scene)
    refunds.start("A0")
    scene.carry()
    refunds.away = True
    sessions = refunds.start("A1", "A2", "A3", "A4", "A5", "A6")
    scene.carry()
    refunds.away = False
    refunds.fails_more = 2  # both attempts of the first canary
    scene.keep_carrying()
    return {"CAUSE": refunds.cause(sessions[0])}
