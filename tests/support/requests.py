"""What a trace keeps of a session's model requests."""

from __future__ import annotations

from typing import Any

from agentq.payload import decode
from tests.support.hands import Hands


def requests_of(hands: Hands, session: str) -> list[tuple[dict[str, Any], str, str]]:
    """Of each request its facts, and what went in and came out as text, in order."""
    query = (
        "select detail, input, output from agentq.trace where session_id = %s and kind = 'model' order by started_at"
    )
    rows = hands.rows(query, session)
    return [(row["detail"], *(str(decode(bytes(row[name]))) for name in ("input", "output"))) for row in rows]
