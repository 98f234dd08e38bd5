"""The stage: the run's folder, the servers of the world outside, and the producer, each a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agentq.demo.checks import Expected, Refund
from agentq.errors import ConfigError

DESK = Path("tasks/support_desk")
KEYS = "demo-"
KEPT_RUNS = 3
START_TIMEOUT_S = 30.0
# Slow enough to see the middle, and bad enough to need retries.
PAYMENTS_TEMPER = ("--latency", "1-4", "--fail", "0.08", "--slow", "0.03", "--slow-s", "8")
MAIL_TEMPER = ("--latency", "1-4", "--fail", "0.06", "--slow", "0.02", "--slow-s", "8")
_PRIVATE = ("AGENTQ_", "DESK_", "OPENAI_")


@dataclass
class Stage:
    """
    One run: its folder, and the payment provider and the mail server that serve it.

    The servers are started with their standard input as a leash: they end when this process does,
    however it ends.
    """

    data_dir: Path
    root: Path = field(default_factory=Path.cwd)
    run: str = field(default_factory=lambda: f"{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """This run's records and databases."""
        return self.data_dir.absolute() / "demo" / self.run

    @property
    def desk(self) -> Path:
        """The support desk's folder in the checkout."""
        return self.root / DESK

    @property
    def key_prefix(self) -> str:
        """How the keys of this run's sessions begin, so that every run is a new one."""
        return f"{KEYS}{self.run}/"

    def start(self) -> dict[str, str]:
        """
        Lay the order database, start both servers; the variables that tell agents where they are.

        Raises:
            ConfigError: this is no checkout, something is not installed, or a server does not start.
        """
        if not (self.desk / "orders.sql").is_file():
            raise ConfigError(f"the demo's agents live in a checkout of agentq: run it in the folder with {DESK}")
        for module in ("httpx", "aiosmtpd"):
            if importlib.util.find_spec(module) is None:
                raise ConfigError(f"{module} is not installed: pip install 'agentq[demo]'")
        if str(self.root) not in sys.path:
            sys.path.insert(0, str(self.root))
        self._make_room()
        self._lay_orders()
        tokens = {"PAYMENTS_TOKEN": secrets.token_urlsafe(24), "MAIL_TOKEN": secrets.token_urlsafe(24)}
        self._serve("payments", tokens, "--payments", str(self.folder / "payments.jsonl"), *PAYMENTS_TEMPER)
        self._serve("mail_sink", tokens, *MAIL_TEMPER)
        payments, mail = self._address("payments"), self._address("mail_sink")
        return {
            "DESK_ORDERS": str(self.orders_path),
            "DESK_PAYMENTS_URL": payments["url"],
            "DESK_PAYMENTS_TOKEN": tokens["PAYMENTS_TOKEN"],
            "DESK_SMTP": mail["smtp"],
            "DESK_MAIL_URL": mail["url"],
            "DESK_MAIL_TOKEN": tokens["MAIL_TOKEN"],
        }

    def stop(self) -> None:
        """End the servers; their records stay."""
        for server in self.servers.values():
            if server.stdin:
                server.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(5)
            if server.poll() is None:
                server.kill()
                server.wait()

    def produce(self, environment: Mapping[str, str]) -> int:
        """
        Let the producer process submit every ticket; how many it submitted.

        Raises:
            ConfigError: it failed; the message holds its last lines.
        """
        command = [sys.executable, "-m", "tasks.support_desk.produce", "--run", self.key_prefix, "--json"]
        ran = subprocess.run(
            command, env=dict(environment), cwd=self.root, capture_output=True, text=True, check=False, timeout=120
        )
        if ran.returncode:
            raise ConfigError(f"the producer failed:\n{ran.stderr.strip()[-2000:]}")
        return int(json.loads(ran.stdout.strip().splitlines()[-1])["submitted"])

    # ── the records, read after the run ──────────────────────────────────────

    @property
    def orders_path(self) -> Path:
        return self.folder / "orders.sqlite"

    def expected(self) -> list[Expected]:
        """What should become of each ticket, as noted beside the tickets."""
        facts = json.loads((self.desk / "tickets" / "expected.json").read_text("utf-8"))
        return [Expected.from_json(ticket, each) for ticket, each in facts.items()]

    def messages(self) -> list[dict[str, Any]]:
        """Every message about this run's tickets that the mail server took."""
        from tasks.support_desk.services.mail_sink import Record

        taken = Record(self.folder / "mail_sink.sqlite").messages()
        ours = [message for message in taken if message["ticket"].startswith(self.key_prefix)]
        return [message | {"ticket": message["ticket"].removeprefix(self.key_prefix)} for message in ours]

    def refunds(self) -> tuple[list[Refund], list[dict[str, Any]]]:
        """Every refund that the provider made, and every request for one."""
        from tasks.support_desk.services.payments import Record

        record = Record(self.folder / "payments.sqlite")
        whose = {order.payment: (tenant, order.number) for tenant, order in self._orders()}
        made = [Refund(*whose[row["payment"]], row["amount_cents"], row["payment"]) for row in record.refunds()]
        return made, [row for row in record.requests() if row["payment"] in whose]

    def addresses(self) -> dict[str, str]:
        """Where each order goes."""
        return {order.number: order.address for _, order in self._orders()}

    # ── how it is done ───────────────────────────────────────────────────────

    def _make_room(self) -> None:
        runs = self.folder.parent
        runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(path for path in runs.iterdir() if path.is_dir())[: -(KEPT_RUNS - 1)]:
            shutil.rmtree(old, ignore_errors=True)
        self.folder.mkdir(mode=0o700)

    def _lay_orders(self) -> None:
        from tasks.support_desk import orders

        orders.seed(self.orders_path, payment_prefix=f"pay_{self.run}_")
        payments = [
            {"payment": order.payment, "paid_cents": order.total_cents, "currency": order.currency}
            for _, order in self._orders()
        ]
        (self.folder / "payments.jsonl").write_text("\n".join(map(json.dumps, payments)), "utf-8")

    def _orders(self) -> list[tuple[str, Any]]:
        from tasks.support_desk import orders

        return orders.every(self.orders_path)

    def _serve(self, name: str, tokens: dict[str, str], *options: str) -> None:
        # Run from the desk's folder as `services.<name>`: the servers must not even import agentq.
        command = [sys.executable, "-m", f"services.{name}", "--with-starter", "--record"]
        command += [str(self.folder / f"{name}.sqlite"), "--address-file", str(self.folder / f"{name}.json"), *options]
        known = {variable: value for variable, value in os.environ.items() if not variable.startswith(_PRIVATE)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.servers[name] = subprocess.Popen(
                command,
                cwd=self.desk,
                env=known | tokens,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; they end when we let go of the leash
            )

    def _address(self, name: str) -> dict[str, str]:
        path, server = self.folder / f"{name}.json", self.servers[name]
        deadline = time.monotonic() + START_TIMEOUT_S
        while not path.is_file():
            if server.poll() is not None or time.monotonic() > deadline:
                words = (self.folder / f"{name}.log").read_text("utf-8", "replace").strip()[-2000:]
                raise ConfigError(f"the demo's {name} server does not start:\n{words}")
            time.sleep(0.05)
        return dict(json.loads(path.read_text("utf-8")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
