"""Named queries: `sql/*.sql` read once, each block under the name in its first comment."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def load(name: str, package: str = "agentq.store") -> dict[str, str]:
    """The queries of a package's `sql/<name>.sql` by name."""
    text = files(package).joinpath("sql", f"{name}.sql").read_text("utf-8")
    parts = _NAME.split(text)
    return {parts[i]: parts[i + 1].strip().rstrip(";") for i in range(1, len(parts), 2)}
