"""The commands that show what the compiler does, run as a user runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from educe import api
from educe.bench.feeds import random_feeds
from educe.bench.profile import profile
from educe.compiler import listing
from educe.compiler.target import host_target
from educe.store import Key, Store
from tests.conformance.cases import CASES, model, node, value_info
from tests.conftest import ROOT
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
        ("memory", ["made by", "last read by", "Convolution28 (convolution)", "arena 0: "]),
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
    kernels = [line.split()[1] for line in shown]
    assert kernels.count("convolution") == 36
    assert kernels.count("window") == 17
    assert len(kernels) < 70


def test_no_two_buffers_lie_in_the_same_place_at_the_same_time():
    *rows, total = educe("compile", "zoo/mobilenet_v2", "--show", "memory").stdout.splitlines()[1:]
    held = []
    for row in rows:
        arena, offset, size, life, maker, reader = re.split("  +", row.strip())
        first, last = map(int, life.split("-"))
        assert arena == "0"
        assert size.endswith(("iB", "bytes"))
        assert first < last
        assert "(" in maker
        assert "(" in reader
        held.append((int(offset.replace(",", "")), first, last))
    assert len({offset for offset, _, _ in held}) < len(held) > 20
    for place, (offset, first, last) in enumerate(held):
        for other, begin, end in held[:place]:
            assert other != offset or begin >= last or end <= first
    assert f"buffers: {len(held)} of" in total


def test_listings_fit_a_terminal_of_any_width():
    executable = api.compile(api.load(ROOT / "zoo" / "silero_vad"))
    segments = executable.program(random_feeds(api.load(ROOT / "zoo" / "silero_vad")))
    for text in (listing.program_text, listing.memory_text):
        whole, narrow = (text(segments, width).splitlines() for width in (None, 80))
        table = [line for line in narrow if not line.startswith("arena ")]
        assert max(map(len, table)) <= 80 < max(map(len, whole))
        assert len(narrow) == len(whole)
        assert "…" in "".join(table)
        assert "…" not in "".join(whole)
        assert max(map(len, text(segments, 1).splitlines()[:-1])) < 80


def test_every_launch_names_its_node():
    given = api.load(ROOT / "zoo" / "kws")
    (segment,) = api.compile(given).program(random_feeds(given))
    assert all(launch.node for launch in segment.launches)


def test_the_memory_of_every_segment_is_shown():
    nodes = [
        node("Exp", "x", "a"),
        node("NonZero", "a", "n"),
        node("Transpose", "n", "t"),
        node("GatherND", "a t", "g"),
        node("Neg", "g"),
    ]
    given = api.load(model(nodes, {"x": "f32[3,4]"}, {"y": "f32[N]"}))
    segments = api.compile(given).program(random_feeds(given))
    text = listing.memory_text(segments)
    assert len(segments) > 1
    assert all(f"arena {segment.number}: " in text for segment in segments)
    assert listing.program_text(segments).count("host ") == len(segments) - 1


def test_profile_has_a_row_a_chart_and_an_event_for_every_launch(tmp_path: Path):
    picture, drawing, trace = tmp_path / "a.png", tmp_path / "a.svg", tmp_path / "a.json"
    arguments = ("profile", "zoo/mnist", "zoo/mnist/inputs/7.png", "--seconds", 0.1)
    done = educe(*arguments, "--chart", picture, "--trace", trace)
    assert done.returncode == 0, done.stderr
    assert "of peak" in done.stdout
    for text in ("outside of kernels: ", "above 100%: bytes that came from the caches", "GB/s from memory"):
        assert text in done.stdout
    assert "convolution" in done.stdout
    rows = lines(educe(*arguments, "--chart", drawing, "--json"))
    assert all(row["seconds"] >= 0 and 0 <= row["share_of_peak"] < 1.5 for row in rows)
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert len(events) == len(rows)
    with Image.open(picture) as opened:
        assert opened.width > 800
    assert drawing.read_text().count("<rect") == len(rows) + 1


def test_a_profile_tells_what_is_outside_of_kernels():
    nodes = [node("NonZero", "x", "n"), node("Transpose", "n", "t"), node("GatherND", "x t")]
    given = api.load(model(nodes, {"x": "f32[3,4]"}, {"y": "f32[N]"}))
    found = profile(api.compile(given), random_feeds(given), 0.02)
    assert found.host_steps == ("NonZero NonZero_n",)
    assert found.outside_seconds == pytest.approx(found.total_seconds - found.kernel_seconds)
    assert 0 < found.kernel_seconds < found.total_seconds


def test_a_profile_of_what_launches_nothing():
    given = api.load(CASES["strings"].model)
    found = profile(api.compile(given), random_feeds(given), 0.01)
    assert found.kernels == ()
    assert found.outside_seconds == found.total_seconds > 0


def test_a_profile_of_what_never_runs_the_same():
    short, long = (
        helper.make_graph(nodes, "g", [], [value_info("z", "f32[4,4]")])
        for nodes in ([node("Neg", "x", "z")], [node("MatMul", "x x", "p"), node("MatMul", "p x", "z")])
    )
    nodes = [
        node("Bernoulli", "half", "drawn", dtype=TensorProto.BOOL),
        node("If", "drawn", then_branch=short, else_branch=long),
    ]
    given = api.load(model(nodes, {"half": "f32[1]", "x": "f32[4,4]"}, {"y": "f32[4,4]"}))
    feeds = {"half": np.array([0.5], np.float32), "x": np.ones((4, 4), np.float32)}
    found = profile(api.compile(given), feeds, 0.05)
    assert all(kernel.seconds >= 0 for kernel in found.kernels)


def test_profile_refuses_files_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "a.svg").mkdir()
    chart, trace = "--chart", "--trace"
    for arguments in (
        [chart, "/no/such/a.svg"],
        [trace, "/no/such/a.json"],
        [chart, "a.gif"],
        [chart, tmp_path / "a.svg"],
        [trace, tmp_path],
        [trace, "/dev/full", "--seconds", 0.01],
    ):
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
    Store(tmp_path, 10**9).put(Key("other", "[b]thing", ()), b"content")
    listed = educe("cache", "list").stdout
    assert "│ other  │ [b]thing " in listed
    assert f"│ {host_target().name} " in listed
    assert lines(educe("cache", "clear", "--json")) == [{"removed": len(entries) + 1}]
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
