"""The suite of benchmarks: its networks, and its tables; no test asks how fast this machine is."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from benchmarks import batching, suite
from benchmarks.architectures import ARCHITECTURES, build, stored, transformer
from benchmarks.architectures.network import Network
from benchmarks.suite import Cell, Report, Row, geometric_mean, markdown, measure_row, ratio

from educe import api, engines
from educe.bench.feeds import random_feeds
from educe.bench.peaks import Peaks, machine

SMALL = ("squeezenet1_1", "mobilenet_v2", "lstm", "mlp", "ranker")
SIZES = {"steps": 7, "sequence": 5}


@pytest.mark.parametrize("name", SMALL)
def test_networks_keep_their_activations_in_range(name):
    given = api.load(build(name))
    executable = engines.compile(given, "onnxruntime")
    outputs = [next(iter(executable.run(random_feeds(given, 2, seed, SIZES)).values())) for seed in range(2)]
    assert outputs[0].shape[0] == 2
    assert 1e-2 < np.abs(outputs[0]).max() < 100
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4


def test_networks_are_the_same_each_time():
    assert build("mlp").SerializeToString() == build("mlp").SerializeToString()


def test_masks_and_token_types_are_what_exporters_expect():
    network = Network("tiny")
    x = transformer._encoder(network, layers=1, width=24, heads=3)
    network.output(x, "y", ["batch", "sequence", 24])
    given = api.load(network.model())
    feeds = random_feeds(given, 2, sizes=SIZES)
    assert feeds["attention_mask"].tolist() == [[1] * 5] * 2
    full = engines.compile(given, "onnxruntime").run(feeds)["y"]
    assert full.shape == (2, 5, 24)
    feeds["attention_mask"][:, 3:] = 0
    cut = {name: array[:, :3] for name, array in feeds.items()}
    executable = engines.compile(given, "onnxruntime")
    assert np.allclose(executable.run(feeds)["y"][:, :3], executable.run(cut)["y"], atol=1e-5)


def test_a_network_is_written_once(tmp_path):
    path = stored("mlp", tmp_path)
    written = path.stat().st_mtime_ns
    assert stored("mlp", tmp_path) == path
    assert path.stat().st_mtime_ns == written
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]


def test_every_row_has_its_model():
    for row in suite.ROWS:
        assert row.model in ARCHITECTURES or row.path().is_file()
    assert {row.model for row in suite.ROWS} >= set(ARCHITECTURES)


def test_a_row_is_measured(tmp_path):
    row = Row("MLP", "mlp", batch=3)
    names = ("reference", "openvino", "onnxruntime")
    found = measure_row(row, stored("mlp", tmp_path), names, threads=1, seconds=0.02)
    assert tuple(each.name for each in found) == names
    assert all(each.error is None and each.median_seconds > 0 for each in found)
    assert all(each.difference < suite.TOLERANCE for each in found)


def cell(row: str, engine: str, median: float, error: str | None = None) -> Cell:
    times = {} if error else {"min_seconds": median / 2, "median_seconds": median}
    return Cell(
        row, 2, engine, error, 0.0, 5, peak_memory_bytes=2**20, start_seconds=0.5, warm_seconds=0.2, **times
    )


CELLS = [
    cell("A", "ours", 0.002),
    cell("A", "x", 0.004),
    cell("A", "y", 0.003),
    cell("B", "ours", 0.004),
    cell("B", "x", 0.002),
    cell("B", "y", 0.001, "it differs"),
]


def test_ratios_are_of_the_best_that_answers_right():
    assert ratio(CELLS[:3]) == pytest.approx(1.5)
    assert ratio(CELLS[3:]) == pytest.approx(0.5)
    assert math.isnan(ratio([cell("A", "ours", 1.0, "fails"), *CELLS[1:3]]))
    assert math.isnan(ratio([CELLS[3], CELLS[5]]))
    assert geometric_mean([1.5, 0.5]) == pytest.approx(0.75**0.5)


def test_the_tables_say_who_fails():
    engines_used = {"ours": "1", "x": "2", "y": "3"}
    text = markdown(Report(machine(), [Peaks(2, 100.0, 10.0)], engines_used, 1.0, CELLS))
    assert "### 2 threads" in text
    assert (
        "| A | 2 ms | 4 ms | 3 ms | 1.50 | 1.50 | 1.0 MiB / 1.0 MiB / 1.0 MiB | 0.50 / 0.50 / 0.50 | 0.20 /"
        in text
    )
    assert "| B | 4 ms | 2 ms | fails | 0.50 |" in text
    assert "- B: y fails: it differs" in text
    assert "geometric mean of the ratios 0.87; fastest on 1 of 2; least 0.50 (B)" in text


def test_tables_take_the_place_between_the_marks(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(f"before\n{suite.BEGIN}\nold\n{suite.END}\nafter\n")
    suite._write_between_marks(path, "new \\1")
    assert path.read_text() == f"before\n{suite.BEGIN}\n\nnew \\1\n\n{suite.END}\nafter\n"
    path.write_text("none")
    with pytest.raises(SystemExit, match="has no line"):
        suite._write_between_marks(path, "new")


def test_servers_that_do_not_start_are_told_with_the_others(capsys):
    absent = batching.Server("triton", ["/no/such/python"], {})
    ending = batching.Server("fastapi", [sys.executable, "-c", ""], {})
    found = [batching._best([each], 10.0, 1.0) for each in (absent, ending)]
    capsys.readouterr()
    batching._show(found)
    (first, second) = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("triton")
    assert "No such file" in first
    assert second.startswith("fastapi")
    assert "does not answer" in second
