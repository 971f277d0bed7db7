"""The commands that show what the compiler does, run as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.test_cli import UNSUPPORTED, USER, educe, lines


def test_compile_says_what_came_of_it():
    (facts,) = lines(educe("compile", "zoo/mnist", "--json"))
    assert facts["launches"] >= facts["kernels"] > 3
    assert facts["host_calls"] == []
    assert facts["arena_bytes"] > 1000
    assert facts["constant_bytes"] > 20_000
    assert "launches of" in educe("compile", "zoo/mnist").stdout


@pytest.mark.parametrize(
    ("shown", "texts"),
    [
        ("program", ["convolution", "Convolution28", "Relu(x0)", "f32[1,10] output"]),
        ("memory", ["offset", "arena: "]),
        ("llvm", ["define void @convolution_", "llvm.fmuladd"]),
        ("asm", ["convolution_", "ret"]),
    ],
)
def test_what_is_compiled_can_be_shown(shown, texts):
    done = educe("compile", "zoo/mnist", "--show", shown)
    assert done.returncode == 0, done.stderr
    for text in texts:
        assert text in done.stdout


def test_a_program_reads_like_the_network():
    shown = educe("compile", "zoo/mobilenet_v2", "--show", "program").stdout.splitlines()[1:]
    kernels = [line.split()[0] for line in shown]
    assert kernels.count("convolution") == 36
    assert kernels.count("window") == 17
    assert len(kernels) < 70


def test_profile_has_a_row_a_chart_and_an_event_for_every_launch(tmp_path: Path):
    picture, drawing, trace = tmp_path / "a.png", tmp_path / "a.svg", tmp_path / "a.json"
    arguments = ("profile", "zoo/mnist", "zoo/mnist/inputs/7.png", "--seconds", 0.1)
    done = educe(*arguments, "--chart", picture, "--trace", trace)
    assert done.returncode == 0, done.stderr
    assert "of peak" in done.stdout
    assert "convolution" in done.stdout
    rows = lines(educe(*arguments, "--chart", drawing, "--json"))
    assert all(row["seconds"] >= 0 and 0 <= row["share_of_peak"] < 1.5 for row in rows)
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(rows)
    with Image.open(picture) as opened:
        assert opened.width > 800
    assert drawing.read_text().count("<rect") == len(rows) + 1


def test_profile_refuses_files_that_cannot_be_written_before_it_measures():
    for arguments in (["--chart", "/no/such/a.svg"], ["--trace", "/no/such/a.json"], ["--chart", "a.gif"]):
        done = educe("profile", "zoo/mnist", *arguments)
        assert done.returncode == USER, done.stderr
        assert "OptionError" in done.stderr


def test_the_cache_is_listed_explained_and_cleared(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("EDUCE_CACHE", str(tmp_path))
    states = {row["state"] for row in lines(educe("cache", "explain", "zoo/mnist", "--json"))}
    assert states == {"never made"}
    assert lines(educe("cache", "list", "--json")) == []
    assert educe("predict", "zoo/mnist", "zoo/mnist/inputs/7.png").returncode == 0
    states = {row["state"] for row in lines(educe("cache", "explain", "zoo/mnist", "--json"))}
    assert states == {"stored"}
    entries = lines(educe("cache", "list", "--json"))
    assert {"kernel"} == {entry["kind"] for entry in entries}
    assert set(entries[0]["ingredients"]) >= {"target", "compiler", "llvm"}
    assert str(tmp_path) in educe("cache", "list").stdout.replace("\n", "")
    assert lines(educe("cache", "clear", "--json")) == [{"removed": len(entries)}]
    monkeypatch.setenv("EDUCE_CACHE", "off")
    assert educe("cache", "list").returncode == USER
    assert educe("predict", "zoo/mnist", "zoo/mnist/inputs/7.png").returncode == 0


def test_a_cache_that_cannot_be_written_is_told_once(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDUCE_CACHE", str(tmp_path / "file"))
    done = educe("predict", "zoo/mnist", "zoo/mnist/inputs/7.png")
    assert done.returncode == 0
    assert done.stderr.startswith("warning ")
    assert done.stderr.count("cannot be kept") == 1


def test_a_model_that_the_only_engine_cannot_run_fails_the_bench(tmp_path: Path):
    import onnx
    from onnx import helper

    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="example")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("example", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    assert educe("bench", path, "--seconds", 0.05).returncode == UNSUPPORTED
