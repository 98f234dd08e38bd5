"""`python -m agentq.sandbox attack`: which sandboxes work on this machine, and what they withstand."""

from __future__ import annotations

import argparse
import json
import os
import sys

from agentq.errors import SandboxUnavailable
from agentq.sandbox.attacks import ATTACKS, Verdict, bystander, carry_out
from agentq.sandbox.backends import Backend, Bubblewrap, Docker, Landlock


def main() -> int:
    """The exit code is the number of attacks that got out; 3 where no backend works."""
    parser = argparse.ArgumentParser(prog="python -m agentq.sandbox", description=__doc__)
    parser.add_argument("command", choices=["attack", "check"])
    parser.add_argument("--backend", choices=["bubblewrap", "landlock"], help="only this one")
    parser.add_argument("--only", default="", metavar="TEXT", help="only attacks whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    given = parser.parse_args()
    found = [one for one in (Bubblewrap(), Landlock()) if given.backend in (None, one.name)]
    reasons = {one.name: one.unusable() for one in found}
    if given.backend is None:
        reasons["docker"] = Docker().unusable()
    usable = [one for one in found if reasons[one.name] is None]
    table: dict[str, list[Verdict]] = {}
    if given.command == "attack":
        table = {one.name: _attack(one, given.only) for one in usable}
    if given.json:
        rows = {name: [vars_of(verdict) for verdict in verdicts] for name, verdicts in table.items()}
        print(json.dumps({"as_root": os.getuid() == 0, "unusable": reasons, "attacks": rows}, indent=2))
    else:
        _print(table, reasons)
    if not usable:
        return 3
    return min(sum(verdict.escaped is not None for verdicts in table.values() for verdict in verdicts), 99)


def vars_of(verdict: Verdict) -> dict[str, object]:
    """A verdict as JSON has it."""
    facts = {name: getattr(verdict, name) for name in ("attack", "escaped", "ended_by")}
    return facts | {"took_s": round(verdict.took_s, 3)}


def _attack(backend: Backend, only: str) -> list[Verdict]:
    with bystander() as beside:
        return [carry_out(attack, backend, beside) for attack in ATTACKS if only in attack.name]


def _print(table: dict[str, list[Verdict]], reasons: dict[str, str | None]) -> None:
    print(f"as {'root' if os.getuid() == 0 else f'an ordinary user (uid {os.getuid()})'}")
    for name, why in reasons.items():
        print(f"{name:12}{'works' if why is None else f'not here: {why}'}")
    if not table:
        return
    names = list(table)
    print(f"\n{'attack':54}" + "".join(f"{name:28}" for name in names))
    for row in zip(*table.values(), strict=True):
        cells = [f"{'contained' if v.escaped is None else 'ESCAPED'} ({v.ended_by}, {v.took_s:.1f} s)" for v in row]
        print(f"{row[0].attack:54}" + "".join(f"{cell:28}" for cell in cells).rstrip())
    for name, verdicts in table.items():
        for verdict in verdicts:
            if verdict.escaped is not None:
                print(f"{name}: {verdict.attack}: {verdict.escaped}", file=sys.stderr)


try:
    sys.exit(main())
except SandboxUnavailable as error:
    print(error, file=sys.stderr)
    sys.exit(3)
