"""The Redis transport where it differs from kombu's."""

from __future__ import annotations

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
