"""
The producer: reads the mailboxes and submits each mail as a ticket, as a mail server's hook would.

Run it twice with the same `--run`: a key that was used before starts nothing new.
"""

from __future__ import annotations

import argparse
import base64
import json
from pathlib import Path

from agentq import Client

TICKETS = Path(__file__).with_name("tickets")


def mails(tenant: str) -> list[tuple[str, bytes]]:
    """The mails in the tenant's mailbox. The folder tells the tenant: a mail's own words must not."""
    paths = sorted(path for path in (TICKETS / tenant).iterdir() if path.suffix in (".eml", ".txt"))
    return [(f"{tenant}/{path.name}", path.read_bytes()) for path in paths]


def tenants() -> list[str]:
    """The tenants that have a mailbox."""
    return sorted(path.name for path in TICKETS.iterdir() if path.is_dir())


def ticket(source: str, raw: bytes) -> dict[str, str]:
    """A mail as the agent's input. Base64, because what arrives need not be text."""
    return {"source": source, "encoding": "base64", "ticket": base64.b64encode(raw).decode()}


def main() -> None:
    """Submit every mail of every mailbox."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="mailbox/", help="put before each key")
    parser.add_argument("--tenant", action="append", help="only these mailboxes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    submitted = 0
    with Client.from_env() as client:
        for tenant in options.tenant or tenants():
            keys = [(options.run + source, raw) for source, raw in mails(tenant)]
            items = [(ticket(key, raw), key) for key, raw in keys]
            sessions = client.start_many("support-desk", tenant=tenant, items=items)
            submitted += len(sessions)
            if not options.json:
                print(f"{tenant}: {len(sessions)} tickets")
    if options.json:
        print(json.dumps({"submitted": submitted}))


if __name__ == "__main__":
    main()
