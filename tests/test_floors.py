"""The floors: no module imports a higher one."""

from __future__ import annotations

import graphlib
import os
import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]


def test_no_module_imports_a_higher_floor(tmp_path: Path) -> None:
    """
    The folders show the architecture, and the linter holds it.
    """
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "--cache-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def imports(*, types: bool) -> graphlib.TopologicalSorter[str]:
    """What each module imports, also within its functions; with `types` also what it names in annotations alone."""
    graph = grimp.build_graph("agentq", exclude_type_checking_imports=not types, cache_dir=None)
    return graphlib.TopologicalSorter({one: graph.find_modules_directly_imported_by(one) for one in graph.modules})


def circle(*, types: bool) -> list[str]:
    """Modules of which each imports the one before it, the first and the last the same; none: there is no circle."""
    try:
        imports(types=types).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_needs_one_that_needs_it() -> None:
    """
    Nor by an import that waits within a function: each module can be read, and loaded, after what it stands on.
    """
    assert circle(types=False) == []


def test_a_circle_is_noticed() -> None:
    """
    There are some of types alone, such as a registry's of agents: where those count, the test above would fail.
    """
    first, *_, last = circle(types=True)
    assert first == last


def test_importing_agentq_needs_no_server_and_no_environment() -> None:
    """
    A producer's import reads no settings and opens nothing; what it needs is loaded when it is used.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGENTQ_")}
    code = "import agentq, sys; assert 'flower' not in sys.modules and 'celery' not in sys.modules, 'too much'"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
