"""What the README and the docs say runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from agentq import Next
from agentq.cli import main
from agentq.settings import PREFIX, Settings
from tests.conftest import Servers
from tests.support.fleet import Fleet

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in PAGES}


def block(language: str, containing: str) -> str:
    """The code block of that language with that text in it."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in text]
    assert len(found) == 1, containing
    return str(found[0])


def test_the_first_agent_runs(
    settings: Settings, servers: Servers, tenant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The agent of the README, on a real worker, started by the README's own lines, gives what it promises.
    """
    (tmp_path / "readme_refunds.py").write_text(block("python", 'Agent("refunds"'), "utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    own = settings.model_copy(update={"agents": ("readme_refunds",)})
    with Fleet(own, tmp_path) as fleet:
        # Slots enough for what hundreds of tests before this one have left due.
        fleet.worker(concurrency=32, PYTHONPATH=path)
        client = block("python", "Client.from_env()").replace("acme", tenant)
        ran = subprocess.run(
            [sys.executable, "-c", client],
            env=fleet.environment(PYTHONPATH=path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert (ran.returncode, ran.stdout) == (0, "A1: 12.50 paid back\n"), ran.stderr
        [line] = [line for line in block("sh", "agentq start refunds").splitlines() if "start refunds" in line]
        words = shlex.split(line.replace("acme", tenant))
        again = subprocess.run(
            [sys.executable, "-m", *words],
            env=fleet.environment(PYTHONPATH=path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        # The same key: the session that the client had started.
        assert (again.returncode, again.stdout) == (0, "A1: 12.50 paid back\n"), again.stderr


def test_its_steps_are_functions() -> None:
    """
    As the text says, a step returns what happens next.
    """
    names: dict[str, object] = {"__name__": "readme_steps"}
    exec(block("python", 'Agent("refunds"'), names)
    assert names["Next"] is Next


OPERATING = TEXTS["docs/operating.md"].partition("\n## The command")[2].split("```")[1].strip().splitlines()
NAMED = sorted({name for text in TEXTS.values() for name in re.findall(r"\bAGENTQ_([A-Z_]+)", text)})
LINKS = sorted({(page, link) for page, text in TEXTS.items() for link in re.findall(r"\]\(([^)#:]+)\)", text)})


@pytest.mark.parametrize("line", OPERATING)
def test_every_command_that_the_list_names_exists(line: str) -> None:
    for command in line.split("   ", maxsplit=1)[0].split(","):
        if not command.strip().startswith("agentq "):
            continue
        noun, *rest = command.strip().removeprefix("agentq ").split()
        found = main.commands[noun]
        for verb in rest[0].split("|") if rest and hasattr(found, "commands") else ():
            assert verb in found.commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMED)
def test_every_variable_that_they_name_exists(name: str) -> None:
    known = {field.upper() for field in Settings.model_fields} | {"OPERATOR", "CONFIG", ""}
    assert name in known, PREFIX + name


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_file_that_they_name_exists(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize("page", sorted(TEXTS.keys() - {"README.md"}))
def test_every_page_is_found_from_the_readme(page: str) -> None:
    assert f"]({page})" in README


def test_the_model_agent_runs(settings: Settings, tenant: str) -> None:
    """
    The README's model agent, with a model that needs no provider in place of the one it names.
    """
    from pydantic_ai.models.test import TestModel

    from agentq.agents.registry import Registry
    from agentq.client import Client
    from agentq.testing import LocalFleet

    text = block("python", "ModelAgent(").replace('"openai:gpt-5-mini"', "stand_in").replace('cost_usd="0.05", ', "")
    scope: dict[str, object] = {"stand_in": TestModel()}
    exec(compile(text, "README.md", "exec", dont_inherit=True), scope)
    registry = Registry()
    registry.add(scope["desk"])  # type: ignore[arg-type]
    with Client(settings, registry) as client, LocalFleet(client) as fleet:
        session = client.start("parcels", tenant=tenant, input={"prompt": "Where is AB-1001?"})
        assert "shipped" in fleet.drain(session).result
