"""
Ports on loopback: which are free, and one that will still be free after a restart.
"""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"

# Below the range from which Linux and macOS take the local ports of outgoing connections: a server that is
# down for a moment must find its port free again.
LOWEST, HIGHEST = 20_000, 32_000


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As the servers do, so that connections of a former run, still fading, do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except (OSError, OverflowError):
            return False
    return True


def pick(preferred: int = 0) -> int:
    """The preferred port if it is free, else some free one."""
    if preferred and is_free(preferred):
        return preferred
    for _ in range(200):
        port = random.randint(LOWEST, HIGHEST)
        if is_free(port):
            return port
    with socket.socket() as probe:  # a very crowded machine: whatever the kernel finds
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
