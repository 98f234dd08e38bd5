"""
A bad run on a stage, for docs/diagnosing.md: a model that goes in circles, takes a wrong tool and burns tokens.

`python -m tests.support.staged` plays it on servers of its own, prints what the page's commands print, and makes
the page's picture anew (that needs Chromium). No model is asked: it is offline, and its prices are invented.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from agentq import Limits, ModelAgent, tool
from agentq.agents.registry import Registry
from agentq.client import Client, Session
from agentq.embedded import Stack
from agentq.policies.anomalies import BaselineRules, thresholds_of
from agentq.policies.limits import Price
from agentq.relay.anomalies import Anomaly, AnomalyWatch
from agentq.settings import Settings
from agentq.store.anomalies import Anomalies
from agentq.store.migrate import upgrade
from agentq.testing import LocalFleet

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "diagnosing.md"
PICTURE = ROOT / "docs" / "diagnosing.png"

# Enough ordinary runs for a baseline: as shipped it takes 200, which would only take longer.
RUNS = 30
ANOMALY_SETTINGS = {"anomaly_runs_min": 20, "anomaly_runs_few": 10, "anomaly_window": 10}
PAGES_TURNED = 10
ARCHIVE_READ = 5


@tool(idempotent=True)
def search_invoices(customer: str, page: int) -> dict[str, object]:
    """One page of a customer's invoices.

    Args:
        customer: whose
        page: from 1
    """
    # There is always a next page: the mistake that the run goes round in.
    return {"invoices": [f"{customer}-{page:03d}"], "next_page": page + 1}


@tool(idempotent=True)
def read_policy(about: str) -> str:
    """The shop's rule for something."""
    return f"{about}: refunds within 30 days"


@tool(idempotent=True)
def export_archive(customer: str, part: int) -> str:
    """All mail with a customer. For the lawyers; the desk has no use for it."""
    return f"mail {part} with {customer}: {'Dear shop, where is my invoice? ' * 40}"


def _said(messages: list[ModelMessage]) -> tuple[str, list[ToolReturnPart]]:
    parts = [part for message in messages for part in message.parts]
    asked = " ".join(str(part.content) for part in parts if isinstance(part, UserPromptPart))
    return asked, [part for part in parts if isinstance(part, ToolReturnPart)]


def _calls(name: str, why: str, tokens: int, **arguments: object) -> ModelResponse:
    usage = RequestUsage(input_tokens=tokens, output_tokens=60)
    return ModelResponse([TextPart(why), ToolCallPart(name, arguments)], usage=usage)


def _ends(text: str, tokens: int) -> ModelResponse:
    return ModelResponse([TextPart(text)], usage=RequestUsage(input_tokens=tokens, output_tokens=80))


def _think(messages: list[ModelMessage]) -> ModelResponse:
    asked, seen = _said(messages)
    if "LOST" not in asked:
        # As on every other day: one page, now and then a second, the rule, an answer.
        wanted = 1 + ("again" in asked)
        if len(seen) < wanted:
            return _calls("search_invoices", "I look for the invoice.", 600, customer="C-7", page=len(seen) + 1)
        if len(seen) == wanted:
            return _calls("read_policy", "I read the rule.", 700, about="refund")
        return _ends("You get your money back.", 800)
    if len(seen) < PAGES_TURNED:
        tokens = 600 + 50 * len(seen)
        return _calls("search_invoices", "It may be on the next page.", tokens, customer="C-9", page=len(seen) + 1)
    part = len(seen) - PAGES_TURNED + 1
    if part <= ARCHIVE_READ:
        why = "The invoices do not have it. The archive knows everything."
        return _calls("export_archive", why, 9_000 * 2**part, customer="C-9", part=part)
    return _ends("I could not find the invoice.", 300_000)


@dataclass
class Staged:
    """A desk that has had good days, and then a run that goes wrong; told and judged as a fleet's relay does it."""

    client: Client
    registry: Registry
    tenant: str
    pace_s: float = 0.0
    found_while_running: list[str] = field(default_factory=list)

    def play(self) -> Session:
        """The good days, then the bad run, as far as it comes."""
        self._define()
        settings = self.client.settings.model_copy(update=ANOMALY_SETTINGS)
        rules = BaselineRules(thresholds_of(settings))
        watch = AnomalyWatch(Anomalies(self.client.sessions.store), rules, tell=[self._note])
        with LocalFleet(self.client) as fleet:
            for number in range(RUNS):
                again = " again" if number % 3 == 0 else ""
                fleet.drain(self._start(f"Where is my invoice{again}?"))
            while watch.round():
                pass
            session = self._start("My invoice is LOST. Send it to me.")
            while fleet.carry_next(self.tenant) is not None:
                watch.round()
            while watch.round():
                pass
        return session

    def _note(self, found: Anomaly) -> None:
        if found.tenant == self.tenant and found.running:
            self.found_while_running.append(found.measure)

    def _start(self, prompt: str) -> Session:
        return self.client.start("invoice-desk", tenant=self.tenant, input={"prompt": prompt})

    def _define(self) -> None:
        async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            said = _think(messages)
            if self.pace_s and "LOST" in _said(messages)[0]:
                await asyncio.sleep(self.pace_s * (1 + said.usage.input_tokens / 20_000))
            return said

        ModelAgent(
            "invoice-desk",
            model=FunctionModel(answer, model_name="offline-large"),
            instructions="You find invoices.",
            tools=[search_invoices, read_policy, export_archive],
            limits=Limits(model_calls=60),
            price=Price(2.5, 10.0),
            registry=self.registry,
        )


# ── what the page shows ──────────────────────────────────────────────────────


def commands() -> list[list[str]]:
    """The page's commands, in their order: the words after `$ agentq`, with `SESSION` where it has a session's id."""
    lines = re.findall(r"^\$ agentq (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    return [re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "SESSION", line).split() for line in lines]


def draw(html: Path, target: Path) -> None:
    """The page as a picture."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no Chromium is installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1500",
             f"--user-data-dir={profile}", f"--screenshot={target}", html.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip


def main() -> None:
    """Play, print, draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.staged")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    picture = parser.parse_args().picture.absolute()
    with tempfile.TemporaryDirectory() as folder, Stack(Path(folder) / "data") as stack:
        addresses = stack.addresses
        upgrade(addresses["admin_database_url"], fleet_role="agentq_fleet")
        settings = Settings(database_url=addresses["database_url"], broker_url=addresses["broker_url"])
        registry = Registry()
        with Client(settings, registry) as client:
            client.tenants.add("acme", reason="staged")
            session = Staged(client, registry, "acme", pace_s=0.1).play()
        environment = os.environ | stack.environment | {"PYTHONPATH": str(ROOT)}
        for words in commands():
            arguments = [word.replace("SESSION", session.id) for word in words]
            print(f"\n$ agentq {' '.join(arguments)}", flush=True)
            subprocess.run([sys.executable, "-m", "agentq", *arguments], cwd=folder, env=environment, check=True)
        draw(Path(folder) / "run.html", picture)
    print(f"\n{picture} is made anew")


if __name__ == "__main__":
    main()
