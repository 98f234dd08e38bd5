"""The agents that are measured: a chain of empty steps, and a chain of steps that wait on HTTP."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from agentq import Agent, Done, Next


class Chain(BaseModel):
    """How many steps are left, and a payload of some size."""

    left: int
    pad: str = ""


chain = Agent("bench-chain", state=Chain)


@chain.step(start=True)
def hop(state: Chain) -> Next | Done:
    """Do nothing, then go on."""
    state.left -= 1
    return Next(hop, state) if state.left > 0 else Done()


waiting = Agent("bench-wait", state=Chain)


async def fetch(url: str) -> bytes:
    """
    One GET on a connection of its own.

    By hand, because what is measured is the fleet: httpx takes time quadratic in its open connections,
    and with 250 of them in a process it would be most of the figure.
    """
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        return await reader.readexactly(2)
    finally:
        writer.close()


@waiting.step(start=True)
async def wait(state: Chain) -> Next | Done:
    """Wait on a server, then go on."""
    await fetch(state.pad)
    state.left -= 1
    return Next(wait, state) if state.left > 0 else Done()
