"""The Redis transport where it differs from kombu's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from kombu.exceptions import OperationalError

from agentq.broker.connection import connect
from agentq.settings import Settings


def test_a_step_that_outlives_its_connection_is_acknowledged_to_nobody(settings: Settings) -> None:
    """
    Its channel is closed and gave back what was open; the late word must not end the worker's loop.
    """
    with connect(settings) as connection:
        channel = connection.channel()
        channel.close()

        channel.qos.ack("a tag of then")
        channel.qos.reject("another", requeue=True)

        assert channel.closed


def test_a_lost_connection_is_asked_for_nothing_when_only_wakes_are_open(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Giving back what was open needs no broker, which is away just then: an error there ended the worker.
    """
    with connect(settings) as connection:
        channel = connection.channel()
        wake = SimpleNamespace(delivery_info={"routing_key": "agentq.t.acme"}, delivery_tag="one")
        channel.qos.append(wake, "one")
        monkeypatch.setattr(channel, "conn_or_acquire", _away)

        channel.qos.restore_unacked()

        assert not channel.qos._delivered


def test_a_lost_connection_makes_no_new_client(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Its pool is gone, and a new one would have to connect; the client of before is enough to close with.
    """
    with connect(settings) as connection:
        channel = connection.channel()
        with channel.conn_or_acquire() as before:
            assert before.ping()
        channel._pool = None
        monkeypatch.setattr(channel, "_create_client", _away)

        with channel.conn_or_acquire() as after:
            assert after is before


def test_a_broker_that_is_back_is_noticed_within_three_seconds(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    However long it was away: the pause between two looks does not grow with the outage.
    """
    pauses: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda seconds: None)
    nowhere = settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    with connect(nowhere) as connection, pytest.raises(OperationalError):
        connection.ensure_connection(lambda error, pause: pauses.append(pause), max_retries=30)
    assert len(pauses) == 30
    assert pauses[0] < 0.5
    assert max(pauses) <= 3.0


def _away(*_: object, **__: object) -> None:
    raise ConnectionError("the broker is away")
