"""The layers of ARCHITECTURE.md hold: imports go down, siblings do not import each other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src" / "educe"
LAYERS = {
    "imports": 0,
    "errors": 0,
    "limits": 0,
    "machine": 0,
    "pages": 0,
    "settings": 0,
    "store": 0,
    "files": 0,
    "model": 1,
    "media": 1,
    "formats": 2,
    "graph": 2,
    "cards": 2,
    "text": 2,
    "compiler": 3,
    "engines": 4,
    "generate": 6,
    "tasks": 7,
    "api": 8,
    "bench": 9,
    "serve": 9,
    "cli": 10,
}
# The modules of the lowest layer are one family, in this order.
LOWEST = ("imports", "errors", "limits", "machine", "pages", "settings", "store", "files")
MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 80
# A function that writes a kernel is as long as the loop nest that it writes.
MAX_GENERATOR_LINES = 120
FORBIDDEN_NAMES = re.compile(r"(^|_)(utils?|helpers?|manager|handler|misc|common|info|wrapper)(_|$)", re.I)
FILES = sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("educe"):
            rest = node.module.split(".")[1:]
            yield from ([rest[0]] if rest else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("educe."))


def test_every_package_has_a_layer() -> None:
    packages = {package_of(path) for path in FILES} - {"__init__", "__main__"}
    assert packages == LAYERS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    package = package_of(path)
    if package in ("__init__", "__main__"):
        return
    for imported in set(imports_of(path)) - {"__version__", package}:
        lower = LAYERS[imported] < LAYERS[package]
        in_order = imported in LOWEST and package in LOWEST and LOWEST.index(imported) < LOWEST.index(package)
        assert lower or in_order, f"{path.name} of {package} imports {imported}"


def test_the_table_in_the_architecture_is_this_one() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| *(\d+) *\| *([^|]+?) *\|", text, re.M)
    written = {name: int(layer) for layer, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert {name: written.get(name) for name in LAYERS} == LAYERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_sizes_and_names(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert not FORBIDDEN_NAMES.search(path.stem)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            assert not FORBIDDEN_NAMES.search(node.name), node.name
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            most = MAX_GENERATOR_LINES if "kernels" in path.parts else MAX_FUNCTION_LINES
            assert node.end_lineno - node.lineno < most, node.name
