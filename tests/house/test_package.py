"""The public surface, the import, the zoo's size and licences, and what files may say."""

from __future__ import annotations

import ast
import hashlib
import re
import textwrap
import typing

import pytest

import educe
from educe import tasks
from educe.cards import check
from educe.cli.app import SUBCOMMANDS, subcommand
from educe.model import card
from tests.conftest import ROOT, run_python

HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "PIL", "av", "typer", "rich", "msgspec")
MAX_IMPORT_SECONDS = 0.150


def test_public_names_exist_and_are_all() -> None:
    for name in educe.__all__:
        assert getattr(educe, name).__doc__, name
    assert set(educe.__all__) <= set(dir(educe))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        educe.lode  # noqa: B018


def test_importing_educe_imports_nothing_heavy() -> None:
    loaded = run_python("import educe, sys; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


def test_what_is_rarely_used_is_loaded_when_it_is_used() -> None:
    code = """
        import sys, educe, onnx_ir
        model = educe.load("zoo/mobilenet_v2/model.onnx")
        educe.predictor(model)
        print("mpmath" in sys.modules, onnx_ir.SymbolicDim("n") + 1, "mpmath" in sys.modules)
    """
    assert run_python(textwrap.dedent(code)) == "False n + 1 True"


def test_import_time_is_bounded() -> None:
    code = "import time; t = time.perf_counter(); import educe; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < MAX_IMPORT_SECONDS


def test_every_task_is_known_in_each_place() -> None:
    names = set(typing.get_args(card.TaskName))
    assert names == set(tasks.NAMES) == set(check._SECTIONS)


def modules_of_command(*arguments: str) -> set[str]:
    """Return what a command has imported when it ends well."""
    code = f"""
        import atexit, sys
        atexit.register(lambda: print(*sys.modules))
        sys.argv = {["educe", *arguments]}
        from educe.cli.main import run
        run()
    """
    return set(run_python(textwrap.dedent(code)).splitlines()[-1].split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_line_is_shown_without_what_runs_models(option: str) -> None:
    loaded = modules_of_command(option)
    assert "educe.cli.app" in loaded
    assert not {"numpy", "onnx", "msgspec", "educe.api"} & loaded


def test_a_text_is_written_without_what_other_commands_need() -> None:
    loaded = modules_of_command("generate", "zoo/stories260K", "Once", "--max-tokens", "1")
    others = {"PIL", "onnxruntime", "onnx.reference", "educe.tasks", "educe.generate.transcription"}
    assert "educe.generate.generator" in loaded
    assert not others & loaded


def test_the_overview_says_of_each_command_what_its_help_says() -> None:
    assert {name: subcommand(name).help.split("\n\n")[0] for name in SUBCOMMANDS} == SUBCOMMANDS
    modules = {path.stem: path.read_text() for path in (ROOT / "src" / "educe" / "cli").glob("*.py")}
    commands = {name for name, text in modules.items() if re.search(r"^(def command\(|app = )", text, re.M)}
    assert commands == {*SUBCOMMANDS, "app"}


def test_every_public_name_has_a_docstring() -> None:
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                docstring = ast.get_docstring(node)
                assert docstring, f"{path}: {node.name}"
                assert docstring.splitlines()[0].endswith((".", ":")), f"{path}: {node.name}"


def test_the_zoo_is_small_and_every_file_is_accounted_for() -> None:
    zoo = ROOT / "zoo"
    table = (zoo / "PROVENANCE.md").read_text()
    files = [path for path in zoo.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 30e6
    for path in files:
        if path.suffix in {".onnx", ".jpg", ".jpeg", ".png", ".bmp", ".wav", ".mp4"}:
            assert hashlib.sha256(path.read_bytes()).hexdigest() in table, path
    assert not re.search(r"CC BY-(SA|NC)|GPL", re.sub(r"no (share-alike|GPL).*", "", table))
    for folder in {path.parent for path in zoo.glob("*/model.onnx")}:
        assert (folder / "LICENSE").is_file(), folder
        assert (folder / "educe.toml").is_file(), folder


def test_the_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
