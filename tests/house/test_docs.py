"""The documents are true: their code runs, their output is the real one, their links lead somewhere.

A comment at the end of a line that prints, and a line below a command, must be in the real output, where
``...`` is anything. Whole numbers are those of the output, others agree to the digits that are shown, or to
one percent. Times and rates are free, as are all numbers of a block that ``<!-- measured -->`` stands before.

A console block may begin with ``$ educe serve ... &``: a server that answers at a free port, in place of the
shown one, until the block ends.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

import educe
from educe import api, errors, settings, tasks
from educe.cli.app import SUBCOMMANDS, subcommand
from educe.engines import engines
from educe.generate.order import OPTIONS
from educe.generate.stream import Completion, Output, Piece
from educe.limits import DEFAULT_LIMITS, Limits, format_bytes
from educe.serve import ServerLimits
from educe.tasks.answer import Answer, Prediction
from tests.conftest import ROOT
from tests.generate.test_embedding import bert, random_arrays
from tests.generate.test_transcription import whisper
from tests.test_cli_readers import write

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = {name: subcommand(name) for name in SUBCOMMANDS}
FENCE = re.compile(
    r"^(?P<measured><!-- measured -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[+-]?\d+)?"
WORD = re.compile(rf"#|{NUMBER}|[^\W\d_]+|\S")
TIME = re.compile(rf"{NUMBER} (?:µs|ms|s)\b|{NUMBER} ?\w*/s\b")
JSON_TIME = re.compile(rf'"(?:start|first_token|total|preprocess|run|postprocess|compile)":{NUMBER}')
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Block:
    """A fenced block of a document: its text, where that begins, whether its numbers are a machine's."""

    path: Path
    text: str
    line: int
    is_measured: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


@dataclass
class Command:
    """A command of a console block, with what the document says it prints and exits with."""

    program: str
    arguments: list[str]
    stdin: str | None
    shown: list[str]
    exit_status: int = 0

    @property
    def is_server(self) -> bool:
        return self.arguments[-1:] == ["&"]

    @property
    def line(self) -> list[str]:
        program = [sys.executable, "-m", "educe"] if self.program == "educe" else [self.program]
        return [*program, *(word for word in self.arguments if word != "&")]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks_of(path: Path, language: str) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(path, match["text"], text[: match.start("text")].count("\n") + 1, match["measured"] is not None)
        for match in FENCE.finditer(text)
        if match["language"] == language
    ]


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


@cache
def chapters(name: str) -> dict[str, str]:
    """Return the text below each heading of a document, as far as the next one."""
    return dict(re.findall(r"^#+ +(.*?) *$(.*?)(?=^#+ |\Z)", prose(ROOT / name), re.M | re.S))


def rows(text: str) -> dict[str, str]:
    """Return the lines of all tables in `text` by every name in backticks in their first cell."""
    found = {}
    for line in re.findall(r"^\|.*\|$", text, re.M):
        for name in re.findall(r"`([^`]+)`", re.split(r"(?<!\\)\|", line)[1]):
            found[re.split(r"[ (=]", name)[0]] = line
    return found


def words(text: str, *, is_measured: bool = False) -> list[str]:
    """Return the words, numbers and signs of `text`, with # for times and rates, or for every number."""
    text = JSON_TIME.sub("#", TIME.sub("#", text))
    return WORD.findall(re.sub(NUMBER, "#", text) if is_measured else text)


def agree(found: str, shown: str) -> bool:
    """Say whether two words are one, or two numbers that differ by no more than what is shown of them."""
    if found == shown or not all(re.fullmatch(NUMBER, word) for word in (found, shown)):
        return found == shown
    if not re.search(r"[.e]", shown):
        return False
    value, mantissa = float(shown.replace(",", "")), shown.partition("e")[0]
    shown_step = 0.0 if "e" in shown else 10.0 ** -len(mantissa.partition(".")[2])
    return abs(float(found.replace(",", "")) - value) <= max(0.501 * shown_step, 0.01 * value)


def holds(output: str, expected: str, *, is_measured: bool = False) -> bool:
    """Say whether `output` holds the parts of `expected` between its dots, in their order."""
    found, start = words(output, is_measured=is_measured), 0
    for part in expected.split("..."):
        shown = words(part, is_measured=is_measured)
        for first in range(start, len(found) - len(shown) + 1):
            if all(map(agree, found[first : first + len(shown)], shown)):
                start = first + len(shown)
                break
        else:
            return False
    return True


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the zoo lacks: models with random weights, under the names of real ones."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("all-MiniLM-L6-v2", "whisper-base"):
        (folder / name).mkdir()
    arrays = random_arrays(np.random.default_rng(3))
    write(bert(arrays, folder / "all-MiniLM-L6-v2"), folder / "all-MiniLM-L6-v2")
    write(whisper(folder / "whisper-base"), folder / "whisper-base")
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "template.jinja").write_text(template)
    (folder / "question.txt").write_text("Once upon a time\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the zoo and the other models in it, in which the test runs."""
    for path in (ROOT / "zoo", *models.iterdir()):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for setting in settings.ALL:
        monkeypatch.delenv(setting.variable, raising=False)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(path: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks_of(path, "python"):
        lines = block.text.splitlines()
        for statement in ast.parse(block.text).body:
            assert statement.end_lineno is not None
            output = io.StringIO()
            code = compile(ast.Module([statement], []), str(block), "exec")
            with contextlib.redirect_stdout(output):
                exec(code, names)
            for line in lines[statement.lineno - 1 : statement.end_lineno]:
                promise = re.search(r"\bprint\(.*\) *# (.*)$", line)
                if promise:
                    shown = holds(output.getvalue(), promise[1], is_measured=block.is_measured)
                    assert shown, (str(block), line, output.getvalue())


def commands_of(block: Block) -> Iterator[Command]:
    command = None
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command
            program, *arguments = shlex.split(line[2:])
            assert program in ("educe", "curl"), f"{block}: {line}"
            stdin = arguments.pop(arguments.index("<") + 1) if "<" in arguments else None
            command = Command(program, [word for word in arguments if word != "<"], stdin, [])
        elif command and (status := re.fullmatch(r"exit status (\d+)", line)):
            command.exit_status = int(status[1])
        elif command:
            command.shown.append(line)
    if command:
        yield command


CONSOLE_BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path, "console")]


def is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


@contextlib.contextmanager
def served(commands: list[Command], folder: Path) -> Iterator[list[Command]]:
    """Serve as the first command says, if it is a server, and give the others, with its real port."""
    if not commands[0].is_server:
        yield commands
        return
    first, *others = commands
    shown = first.arguments[first.arguments.index("--port") + 1] if "--port" in first.arguments else "8000"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for other in others:
        other.arguments = [word.replace(f":{shown}", f":{port}") for word in other.arguments]
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*first.line, "--port", str(port)], cwd=folder, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            end = time.monotonic() + TIMEOUT_SECONDS
            while not is_ready(port) and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            assert is_ready(port), log.read_text()
            yield others
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(TIMEOUT_SECONDS)
    assert status == first.exit_status, log.read_text()
    output = log.read_text().replace(f":{port}", f":{shown}")
    for line in first.shown:
        assert any(holds(real, line) for real in output.splitlines()), (line, output)


@pytest.mark.parametrize("block", CONSOLE_BLOCKS, ids=str)
def test_console_blocks_show_what_is_printed(block: Block, folder: Path) -> None:
    commands = list(commands_of(block))
    if any(command.program == "curl" for command in commands) and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with served(commands, folder) as others:
        for command in others:
            check(command, block, folder)


def check(command: Command, block: Block, folder: Path) -> None:
    """Run a command, and compare what it prints with what the document says."""
    done = subprocess.run(
        command.line,
        input=Path(command.stdin).read_bytes() if command.stdin else b"",
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == command.exit_status, output
    for line in command.shown:
        shown = (holds(real, line, is_measured=block.is_measured) for real in output.splitlines())
        assert any(shown), (line, output)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.*?) *$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        goal = path.parent / name if name else path
        assert goal.exists(), target
        assert not anchor or anchor in anchors(goal), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_targets_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.-]+/[\w./-]*\w\.(?:py|md|toml|txt))`", text):
        assert any((base / name).exists() for base in (ROOT, ROOT / "src" / "educe")), name
    targets = re.findall(r"^([a-z0-9-]+):", read("Makefile"), re.M)
    for name in re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.M):
        assert name in targets, name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_documented(name: str) -> None:
    chapter = chapters("docs/cli.md")[f"`educe {name}`"]
    shared = rows(chapters("docs/cli.md")["Educe on the command line"])
    own = rows(chapter)
    assert f"educe {name}" in read("README.md")
    assert any(f"$ educe {name}" in block.text for block in CONSOLE_BLOCKS if block.path.name == "cli.md")
    for parameter in COMMANDS[name].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--"):
                listed = option in shared and re.search(rf"\b{name}\b", shared[option].split("|")[-3])
                assert option in own or listed, option


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_documented_that_does_not_exist(name: str) -> None:
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    known |= {option for parameter in COMMANDS[name].params for option in parameter.secondary_opts}
    own = rows(chapters("docs/cli.md")[f"`educe {name}`"])
    assert {option for option in own if option.startswith("--")} <= known


def test_every_setting_and_json_field_is_documented() -> None:
    assert {setting.variable for setting in settings.ALL} == rows(chapters("docs/cli.md")["Settings"]).keys()
    documented = rows(chapters("docs/cli.md")["JSON"])
    for kind in (Answer, Prediction):
        assert set(kind.__struct_fields__) <= documented.keys()


def test_every_public_name_is_documented() -> None:
    text = read("docs/python.md")
    for name in educe.__all__:
        assert re.search(rf"\beduce\.{name}\b|`{name}`", text), name


def test_every_keyword_and_limit_is_documented() -> None:
    table = rows(read("docs/python.md"))
    assert {field.name for field in fields(educe.Options)} <= table.keys()
    check_bounds(rows(chapters("docs/python.md")["Limits"]), DEFAULT_LIMITS)
    check_bounds(rows(chapters("docs/serving.md")["Safety"]), ServerLimits())


def check_bounds(table: dict[str, str], bounds: Limits | ServerLimits) -> None:
    """Check that a table has all fields with their defaults, and nothing else."""
    assert table.keys() == {field.name for field in fields(bounds)}
    for name, line in table.items():
        value = getattr(bounds, name)
        amount = format_bytes(value) if name.endswith("_bytes") else f"{value:,.0f}"
        assert f"| {amount} |" in line, name


def test_every_keyword_option_and_result_of_language_models_is_documented() -> None:
    doors = rows(chapters("docs/generation.md")["What runs"])
    assert {*api.GeneratorOptions.__optional_keys__, "chat_template", "draft", "limits"} <= doors.keys()
    readers = rows(chapters("docs/encoders.md")["Embeddings, translation, transcription"])
    assert api.EmbedderOptions.__optional_keys__ | api.ReaderOptions.__optional_keys__ <= readers.keys()
    assert set(OPTIONS) == rows(chapters("docs/generation.md")["Options of a text"]).keys()
    results = rows(chapters("docs/generation.md")["What comes back"])
    for kind in (Completion, Output, Piece):
        assert {field.name for field in fields(kind)} <= results.keys()


def test_every_error_is_documented_with_its_exit_status() -> None:
    table = rows(chapters("docs/python.md")["Errors"])
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    classes = {kind.__name__: kind for kind in kinds if issubclass(kind, errors.EduceError)}
    del classes["EduceError"]
    assert {name for name in table if name.endswith("Error")} == classes.keys()
    for name, kind in classes.items():
        assert f"| {kind.exit_status} |" in table[name], name


def test_every_task_and_engine_is_documented() -> None:
    for name in tasks.NAMES:
        assert name in rows(read("README.md")), name
        assert name in rows(chapters("docs/python.md")["Answers"]), name
    for engine in engines():
        assert f"`{engine.name}`" in read("README.md"), engine.name


def test_the_comparison_can_tell() -> None:
    assert holds("zebra 99.7%  in 20.3 ms, 4,200.4/s", "zebra 99.6% ... 3 µs, 17.0/s")
    assert holds("│ a │ 32,713.4 │ 0.12345", "│ a │ 32,713.2 │ 0.12")
    assert holds('{"row":3,"seconds":{"run":0.5}}', '{"row":3,"seconds":{"run":0.1}}')
    assert holds("native 24.6 µs 1.00 37,712", "native 9 s 1.07 5", is_measured=True)
    assert not holds("zebra 99.7%", "horse 99.7%")
    assert not holds("a b", "b ... a")
    for found, shown in (("perplexity 3468.4", "3424.4"), ("57 answered", "58 answered"), ("1.28", "1.31")):
        assert holds(found, found)
        assert not holds(found, shown)
    assert not holds("12,345", "12,346")
    assert not holds("native 1.00", "openvino 1.00", is_measured=True)
