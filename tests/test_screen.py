"""How the command line prints amounts and facts."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from rich.table import Table

from educe.cli.screen import (
    format_count,
    format_seconds,
    output,
    print_error,
    print_facts,
    print_json,
    print_table,
    printable,
    working,
)
from educe.errors import InputError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 FLOP"),
        (4, "4 FLOP"),
        (999, "999 FLOP"),
        (999.7, "1 kFLOP"),
        (1234, "1.23 kFLOP"),
        (999_999, "1 MFLOP"),
        (1.06e9, "1.06 GFLOP"),
        (7e12, "7 TFLOP"),
        (2e15, "2 PFLOP"),
    ],
)
def test_counts_have_a_prefix_before_their_unit(count: float, text: str) -> None:
    assert format_count(count, "FLOP") == text


def test_counts_may_have_no_unit() -> None:
    assert format_count(904_123) == "904 k"
    assert format_count(4) == "4"


def test_times_have_a_fitting_unit() -> None:
    assert [format_seconds(each) for each in (2e-6, 0.0123, 3.5)] == ["2.0 µs", "12.30 ms", "3.50 s"]


def test_facts_are_one_line_each_where_nobody_wraps_them(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("a", "b" * 500), ("longer", "[c]"), ("", "d")])
    assert capsys.readouterr().out.splitlines() == ["a       " + "b" * 500, "longer  [c]", "        d"]


def test_what_is_no_character_is_replaced() -> None:
    assert printable("a\x1b[2J\udcffé\n\tb\x9b") == "a\ufffd[2J\ufffdé\n\tb\ufffd"


def test_a_stranger_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "evil\x1b]0;title\x07"
    print_error(InputError(name, path=name, remedy=name))
    output().print(name, markup=False)
    print_facts([("model", name)])
    shown = "".join(capsys.readouterr())
    assert "evil" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_json_holds_names_that_are_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"input": "\udcff.png", "score": float("nan"), "files": ["\udcff", 1]})
    assert capsys.readouterr().out == '{"input":"\ufffd.png","score":null,"files":["\ufffd",1]}\n'


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals of our own")
@pytest.mark.parametrize(("seconds", "is_shown"), [(0.8, True), (0.0, False)])
def test_what_takes_long_says_so_on_a_terminal(seconds: float, is_shown: bool) -> None:
    code = f"""
import time
from educe.cli.screen import working
with working("compiling [x]"):
    time.sleep({seconds})
"""
    terminal, end = os.openpty()
    with os.fdopen(terminal, "rb") as reader:
        subprocess.run(
            [sys.executable, "-c", code], stderr=end, env={**os.environ, "TERM": "xterm"}, check=True
        )
        os.set_blocking(terminal, False)
        shown = reader.read() or b""
    os.close(end)
    assert (b"compiling [x]" in shown) == is_shown
    assert is_shown or shown == b""


def test_what_takes_long_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with working("compiling"):
        time.sleep(0.6)
    assert "".join(capsys.readouterr()) == ""


def _table() -> Table:
    table = Table("node", box=None)
    table.add_column("time", no_wrap=True)
    table.columns[0].min_width = 8
    table.add_row("a node with a long name" * 10, "12.34 milliseconds")
    return table


def test_a_table_is_whole_where_nobody_wraps_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(_table())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "a node with a long name" * 10 in lines[1]


def test_numbers_are_whole_on_the_narrowest_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(_table())
    shown = capsys.readouterr().out
    assert "12.34 milliseconds" in shown
    assert "a node" in shown
