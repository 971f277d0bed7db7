"""`educe top`: what a server does, on a terminal."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from educe.cli.top import quantile, read, table_of
from educe.errors import InputError
from tests.serve.conftest import Client, serving
from tests.test_cli import educe

TEXT = """# TYPE educe_model_ready gauge
educe_model_ready{{model="mnist"}} {ready}
# TYPE educe_requests counter
educe_requests_total{{model="mnist",outcome="ok"}} {ok}
educe_requests_total{{model="mnist",outcome="Overloaded"}} {errors}
# TYPE educe_request_seconds histogram
educe_request_seconds_bucket{{model="mnist",le="0.01"}} {fast}
educe_request_seconds_bucket{{model="mnist",le="0.1"}} {ok}
educe_request_seconds_bucket{{model="mnist",le="+Inf"}} {ok}
educe_request_seconds_count{{model="mnist"}} {ok}
educe_request_seconds_sum{{model="mnist"}} 1
# TYPE educe_batch_rows histogram
educe_batch_rows_bucket{{model="mnist",le="+Inf"}} {runs}
educe_batch_rows_count{{model="mnist"}} {runs}
educe_batch_rows_sum{{model="mnist"}} {ok}
# TYPE educe_model_memory_bytes gauge
educe_model_memory_bytes{{model="mnist"}} 1048576
"""


@pytest.fixture(scope="module")
def own() -> Iterator[Client]:
    """A client of a server that has answered two requests."""
    with serving("comment_spam") as client:
        for _ in range(2):
            assert client.ask("POST", "/v1/models/comment_spam/predict", b"free money")[0] == 200
        yield client


def test_rates_are_those_between_two_looks() -> None:
    before = read(TEXT.format(ready=1, ok=100, errors=0, fast=100, runs=50), "a")
    now = read(TEXT.format(ready=1, ok=300, errors=20, fast=100, runs=100), "a")
    object.__setattr__(now, "moment", before.moment + 2.0)
    table = table_of(now, before)
    cells = {str(column.header): next(iter(column.cells)) for column in table.columns}
    assert cells["model"] == "mnist"
    assert (cells["ok/s"], cells["errors/s"]) == ("100", "10")
    assert cells["rows"] == "4.0"
    assert cells["p50"] == "55 ms"
    assert cells["memory"] == "1.0 MiB"


def test_the_table_fits_into_80_columns() -> None:
    text = TEXT.replace('"mnist"', '"mobilenet_v2_quantized"').replace("1048576", "1072693248")
    text += '# TYPE educe_tokens counter\neduce_tokens_total{{model="mobilenet_v2_quantized"}} {ok}\n'
    before = read(text.format(ready=1, ok=0, errors=0, fast=0, runs=0), "a")
    now = read(text.format(ready=1, ok=123_456, errors=34_567, fast=100_000, runs=12_345), "a")
    object.__setattr__(now, "moment", before.moment + 1.0)
    console = Console(width=80, file=io.StringIO())
    console.print(table_of(now, before))
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("mobilenet_v2_") and line.rstrip().endswith("1023.0 MiB") for line in lines)


def test_a_model_that_is_not_loaded_is_said_to_be() -> None:
    look = read(TEXT.format(ready=0, ok=0, errors=0, fast=0, runs=0), "a")
    assert next(iter(table_of(look, look).columns[0].cells)) == "mnist (not loaded)"


def test_a_quantile_lies_on_a_line_within_its_class() -> None:
    inf = float("inf")
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0.0, inf: 0.0}, 0.5) is None
    assert quantile({1.0: 10.0, inf: 10.0}, 0.5) == 0.5
    assert quantile({1.0: 0.0, 3.0: 4.0, inf: 4.0}, 0.5) == 2.0
    assert quantile({1.0: 0.0, inf: 4.0}, 0.5) == 1.0


def test_what_is_no_server_of_ours_is_an_error() -> None:
    with pytest.raises(InputError, match="no server of Educe"):
        read("up 1\n", "a")
    with pytest.raises(InputError, match="cannot be read"):
        read('up{model="a} nothing', "a")


def test_once_prints_one_table(own: Client) -> None:
    done = educe("top", own.url, "--once")
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "comment_spam" in line)
    assert row.split()[1:3] == ["2", "0"]
    assert "process" in done.stdout


def test_a_server_that_is_not_there_is_an_error() -> None:
    done = educe("top", "localhost:1", "--once")
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a signal of POSIX")
def test_an_interrupt_ends_it_cleanly(own: Client) -> None:
    def seen() -> float:
        text = own.ask("GET", "/metrics")[2].decode()
        lines = [line for line in text.splitlines() if 'route="/metrics",status="200"' in line]
        return float(lines[0].split()[-1]) if lines else 0.0

    before = seen()
    command = [sys.executable, "-m", "educe", "top", own.url, "--interval", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end, own_looks = time.monotonic() + 60, 1
    while seen() - before - own_looks < 4 and time.monotonic() < end:
        own_looks += 1
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert b"comment_spam" in output
