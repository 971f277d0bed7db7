"""Each client in a process of its own, with the packages that it wants."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

HERE = Path(__file__).parent
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
NODE = ROOT / "out" / "clients"
SECONDS = 300


def run(command: list[str | Path], environment: dict[str, str], folder: Path = ROOT) -> str:
    """Return what a program says, which has to end well."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout


def test_openai_for_javascript(environment: dict[str, str]) -> None:
    run([NODE / "node_modules" / ".bin" / "node", "--test", HERE / "openai.mjs"], environment, NODE)


@pytest.mark.parametrize("script", ["use_openai.py", "use_kserve.py", "use_triton.py"])
def test_clients_for_python(environment: dict[str, str], script: str) -> None:
    run([PYTHON, "-W", "ignore", HERE / script], environment)
