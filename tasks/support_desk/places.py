"""Where the desk's own servers and files are: read from the environment once per process."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from agentq import Permanent

PREFIX = "DESK_"


@dataclass(frozen=True)
class Places:
    """Addresses and their passwords. `repr` shows no password."""

    orders: Path
    payments_url: str
    smtp: str
    mail_url: str
    payments_token: str = field(default="", repr=False)
    mail_token: str = field(default="", repr=False)

    def as_environment(self) -> dict[str, str]:
        """The variables from which `places` reads these values in another process."""
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in self.__dataclass_fields__}


@cache
def places() -> Places:
    """
    The places that the environment names.

    Raises:
        Permanent: one is missing; no retry finds it.
    """
    found = {name: os.environ.get(PREFIX + name.upper(), "") for name in Places.__dataclass_fields__}
    missing = [PREFIX + name.upper() for name, value in found.items() if not value]
    if missing:
        raise Permanent(f"the support desk has no servers: set {', '.join(missing)}, or start them with `agentq demo`")
    return Places(orders=Path(found.pop("orders")), **found)
