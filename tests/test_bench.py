"""The libraries behind `bench`, `verify` and `doctor`; no test asks how fast this machine is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from educe import api, engines, formats, machine
from educe.bench import compare as comparing
from educe.bench import peaks
from educe.bench.cold import Request, measure_cold
from educe.bench.compare import compare, differences_of, first_difference
from educe.bench.feeds import random_feeds, with_sizes_of
from educe.bench.measure import measure
from educe.compiler.target import host_target
from educe.engines.base import Executable, Options
from educe.engines.reference import ReferenceEngine
from educe.errors import EngineError, InputError
from educe.model import Card, CardOrigin, Model
from educe.model.card import AudioInput, FileInput, ImageInput, SpectrumInput, TableInput, TextInput
from tests.conformance.cases import CASES, model, node, running_sum

ZOO = Path(__file__).parents[1] / "zoo"


def load(name: str) -> Model:
    return formats.load(CASES[name].model.SerializeToString())


def pair(given: Model, *names: str) -> list[Executable]:
    return [engines.compile(given, name) for name in names]


def three_steps(size: int = 4) -> Model:
    nodes = [node("Neg", "x", "n"), node("Tanh", "n", "t"), node("Exp", "t", "e"), node("Neg", "e")]
    proto = model(nodes, {"x": f"f32[{size}]"}, {"y": f"f32[{size}]"})
    return api.load(proto)


class FaultyEngine(ReferenceEngine):
    """The reference, but for one operator."""

    name = "faulty"

    def compile(self, model: Model, options: Options) -> Executable:
        graph = model.graph.clone()
        for each in graph.graph:
            if each.op_type == "Tanh":
                each.op_type = "Sigmoid"
        return super().compile(dataclasses.replace(model, graph=graph), options)


@pytest.fixture
def faulty(monkeypatch) -> str:
    monkeypatch.setitem(engines._CLASSES, "faulty", (__name__, "FaultyEngine"))
    return "faulty"


# Random inputs


@pytest.mark.parametrize("path", sorted(ZOO.glob("*/model.onnx")), ids=lambda path: path.parent.name)
@pytest.mark.parametrize("batch", [1, 3])
def test_random_inputs_fit_every_zoo_model(path, batch):
    zoo_model = api.load(path)
    feeds = random_feeds(zoo_model, batch, seed=4)
    assert list(feeds) == list(zoo_model.signature.inputs)
    for name, value in zoo_model.signature.inputs.items():
        assert value.mismatch(feeds[name]) is None
        if value.shape and not isinstance(value.shape[0], int):
            assert feeds[name].shape[0] == batch
    again = random_feeds(zoo_model, batch, seed=4)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    assert all(np.isfinite(array).all() for array in feeds.values())


def carded(inputs: dict[str, str], **sections: object) -> Model:
    nodes = [node("Identity", name, f"{name}_out") for name in inputs]
    outputs = {f"{name}_out": text for name, text in inputs.items()}
    given = formats.load(model(nodes, inputs, outputs).SerializeToString())
    return given.with_card(Card(task="tensor", **sections), CardOrigin("test"))


VOICE = AudioInput(sample_rate=16000, window_samples=512, context_samples=64)
MFCC = SpectrumInput(kind="mfcc", frame_samples=400, hop_samples=160, fft_size=512)
WORDS = AudioInput(sample_rate=16000, window_samples=16000, spectrum=MFCC)


@pytest.mark.parametrize(
    ("text", "sections", "shape"),
    [
        ("f32[N,C,H,W]", {"image": ImageInput(size=(32, 24))}, (2, 3, 24, 32)),
        ("f32[N,H,W,C]", {"image": ImageInput(size=(32, 24), layout="nhwc", color="gray")}, (2, 24, 32, 1)),
        (
            "f32[N,L]",
            {"audio": AudioInput(sample_rate=16000, window_samples=512, context_samples=64)},
            (2, 576),
        ),
        (
            "f32[N,T,F]",
            {"audio": AudioInput(sample_rate=16000, window_samples=16000, spectrum=MFCC)},
            (2, 98, 13),
        ),
        ("i64[N,L]", {"text": TextInput(max_length=20, ids="x")}, (2, 20)),
        ("i64[N,L]", {"text": TextInput(max_length=4096, ids="x")}, (2, 128)),
        ("i32[N,L]", {"file": FileInput(begin=100, end=50)}, (2, 150)),
        ("f32[N,L]", {"table": TableInput(columns=("a", "b", "c"))}, (2, 3)),
        ("f32[N,M,N]", {}, (2, 16, 2)),
        ("f32[3,5]", {}, (3, 5)),
        ("f32[]", {}, ()),
    ],
)
def test_the_card_tells_the_sizes(text, sections, shape):
    assert random_feeds(carded({"x": text}, **sections), batch=2)["x"].shape == shape


@pytest.mark.parametrize(
    ("text", "sections", "low", "high"),
    [
        ("f32[N,3,8,8]", {"image": ImageInput(size=(8, 8), range=(-1.0, 1.0))}, -1, 1),
        ("u8[N,3,8,8]", {"image": ImageInput(size=(8, 8))}, 0, 255),
        ("f32[N,900]", {"audio": AudioInput(sample_rate=8000, window_samples=900)}, -1, 1),
        ("i64[N,400]", {}, 0, 9),
        ("i4[N,400]", {}, 0, 7),
        ("u4[N,400]", {}, 0, 9),
        ("bool[N,400]", {}, 0, 1),
    ],
)
def test_values_lie_in_a_range_that_the_model_expects(text, sections, low, high):
    values = random_feeds(carded({"x": text}, **sections), batch=2)["x"].astype(np.float64)
    assert low <= values.min() < values.max() <= high
    assert values.max() - values.min() > 0.5 * (high - low)


def test_states_constants_and_masks_have_their_own_values():
    recurrent = formats.load(running_sum().SerializeToString())
    recurrent = recurrent.with_card(Card(task="tensor", state={"sum_in": "sum_out"}), CardOrigin("test"))
    assert not random_feeds(recurrent, 2)["sum_in"].any()
    rate = carded({"x": "f32[N,4]", "sr": "i64[]"}, constants={"sr": 16000})
    assert random_feeds(rate)["sr"] == 16000
    masked = carded(
        {"ids": "i64[N,L]", "mask": "i64[N,L]"}, text=TextInput(max_length=8, ids="ids", mask="mask")
    )
    assert random_feeds(masked, 2)["mask"].tolist() == [[1] * 8] * 2


def test_other_kinds_of_inputs():
    assert random_feeds(load("sequence-input"))["s"][0].dtype == np.float32
    assert random_feeds(load("optional-input"))["x"].shape == (1,)
    assert all(isinstance(word, str) for word in random_feeds(load("strings"))["a"])
    with pytest.raises(InputError, match=r"input 'x': the rank of f32\[\.\.\.\] is unknown"):
        random_feeds(carded({"x": "f32[...]"}))


def test_named_sizes_are_taken():
    feeds = random_feeds(carded({"x": "f32[N,M]", "z": "f32[M,L]"}), 2, sizes={"M": 7})
    assert [array.shape for array in feeds.values()] == [(2, 7), (7, 16)]


def test_sizes_are_written_into_a_model():
    given = formats.load(
        model(
            [node("Neg", "x", "n"), node("Exp", "n")], {"x": "f32[N,?]"}, {"y": "f32[N,M]"}
        ).SerializeToString()
    )
    feeds = {"x": np.zeros((2, 3), np.float32)}
    fixed = with_sizes_of(given, feeds)
    assert str(fixed.signature.inputs["x"]) == "f32[2,3]"
    assert list(fixed.graph.graph.inputs[0].shape) == [2, 3]
    assert fixed.graph.graph.outputs[0].shape[0] == 2
    assert str(given.signature.inputs["x"]) == "f32[N,?]"
    assert not isinstance(given.graph.graph.inputs[0].shape[0], int)
    for name in ("onnxruntime", "openvino"):
        assert engines.compile(fixed, name).run(feeds)["y"].tolist() == [[1.0] * 3] * 2


# Differences


@pytest.mark.parametrize(
    ("found", "expected", "absolute", "relative"),
    [
        ([1.0, 2.0], [1.0, 4.0], 2.0, 0.5),
        ([0.0], [0.0], 0.0, 0.0),
        ([0.5], [0.0], 0.5, 0.5),
        ([np.nan, 1], [np.nan, 1], 0.0, 0.0),
        ([np.inf, 1], [np.inf, 1], 0.0, 0.0),
        ([np.inf, 1], [-np.inf, 1], np.inf, np.inf),
        ([np.nan], [1.0], np.inf, np.inf),
        ([1.0], [np.nan], np.inf, np.inf),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0, 0.0),
        (np.array([True]), np.array([False]), 1.0, 1.0),
        (np.array([3], np.uint8), np.array([5], np.uint8), 2.0, 0.4),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 1.0, 1.0),
        (np.array([1 + 1j]), np.array([1j]), 1.0, 1.0),
        ([[1.0], [3.0]], [[1.0], [2.0]], 1.0, 0.5),
        (None, None, 0.0, 0.0),
    ],
)
def test_differences(found, expected, absolute, relative):
    found, expected = (np.asarray(each) if isinstance(each, list) else each for each in (found, expected))
    (difference,) = differences_of({"y": found}, {"y": expected})
    assert (difference.max_absolute, difference.max_relative) == (absolute, relative)
    assert difference.mean_absolute <= difference.max_absolute


@pytest.mark.parametrize(
    ("found", "expected", "reason"),
    [
        (np.zeros(2), np.zeros(3), "the shapes are [2] and [3]"),
        (np.zeros(2), np.zeros(2, np.float32), "the types are f64 and f32"),
        ([np.zeros(2)], [np.zeros(2)] * 2, "not a list of 2"),
        (None, np.zeros(2), "one is absent"),
        ({"a": np.zeros(1)}, {"b": np.zeros(1)}, "the keys are not ['b']"),
    ],
)
def test_values_that_cannot_be_compared(found, expected, reason):
    (difference,) = differences_of({"y": found}, {"y": expected})
    assert difference.reason == reason
    assert difference.max_relative == np.inf


def test_maps_and_sequences_are_compared_item_by_item():
    a, b = {"p": np.array([1.0]), "q": np.array([2.0])}, {"p": np.array([1.0]), "q": np.array([4.0])}
    assert differences_of({"y": [a]}, {"y": [b]})[0].max_relative == 0.5


# Verifying


def test_engines_that_agree():
    given = load("conv-stride-1")
    (feeds, *_) = CASES["conv-stride-1"].feeds()
    found = compare(*pair(given, "onnxruntime", "reference"), feeds)
    assert found.agree
    assert found.worst.output == "y"
    assert (found.engine, found.against) == ("onnxruntime", "reference")
    assert first_difference(given, "onnxruntime", "reference", feeds) is None


@pytest.mark.parametrize("chunk_bytes", [1, 20, 2**28])
def test_the_first_node_that_parts_is_named(monkeypatch, faulty, chunk_bytes):
    monkeypatch.setattr(comparing, "_CHUNK_BYTES", chunk_bytes)
    given = three_steps()
    text = str(given.graph)
    feeds = random_feeds(given)
    assert not compare(*pair(given, faulty, "onnxruntime"), feeds).agree
    first = first_difference(given, faulty, "onnxruntime", feeds)
    assert (first.node, first.operator, first.difference.output) == ("Tanh_t", "Tanh", "t")
    assert first.difference.max_relative > 0.1
    assert str(given.graph) == text
    assert first_difference(given, "reference", "onnxruntime", feeds) is None


def test_chunks_hold_what_their_sizes_allow(monkeypatch):
    given = three_steps(size=1000)
    monkeypatch.setattr(comparing, "_CHUNK_BYTES", 8000)
    names = [[each.op_type for each in chunk] for chunk in comparing._chunks(given.graph)]
    assert names == [["Neg", "Tanh"], ["Exp", "Neg"]]
    monkeypatch.setattr(comparing, "_CHUNK_BYTES", 4001)
    assert [len(chunk) for chunk in comparing._chunks(given.graph)] == [1, 1, 1, 1]


def test_first_difference_takes_recurrent_models(faulty):
    nodes = [node("Add", "h_in x", "s"), node("Tanh", "s", "h_out"), node("Neg", "h_out")]
    inputs, outputs = {"x": "f32[N,3]", "h_in": "f32[N,3]"}, {"y": "f32[N,3]", "h_out": "f32[N,3]"}
    card = Card(task="tensor", state={"h_in": "h_out"})
    given = api.load(model(nodes, inputs, outputs), card=card)
    first = first_difference(given, faulty, "reference", random_feeds(given))
    assert first.node == "Tanh_h_out"


def test_first_difference_passes_subgraphs_and_sequences():
    for name in ("if", "loop", "sequence-at", "local-function", "strings"):
        given = load(name)
        assert first_difference(given, "onnxruntime", "reference", CASES[name].feeds()[0]) is None


def test_a_tolerance_decides(faulty):
    given = three_steps()
    feeds = random_feeds(given)
    assert compare(*pair(given, faulty, "reference"), feeds, tolerance=10).agree
    assert first_difference(given, faulty, "reference", feeds, tolerance=10) is None


# Timing


def stub(answer: float = 1.0, calls: list[str] | None = None, name: str = "stub") -> Executable:
    def launch(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        if calls is not None:
            calls.append(name)
        return [np.asarray(feeds["x"] * np.float32(answer))]

    return Executable(name, load("rank-0"), launch)


def failing() -> Executable:
    def launch(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        raise EngineError("is out of order")

    return Executable("failing", load("rank-0"), launch)


ONE = {"x": np.array(1, np.float32)}


def test_measurements_are_of_one_piece():
    given = load("gemm")
    (feeds, *_) = CASES["gemm"].feeds()
    executables = {name: engines.compile(given, name) for name in ("onnxruntime", "reference")}
    found = measure(executables, feeds, batch=5, seconds=0.1, warmup_seconds=0)
    assert [each.name for each in found] == ["onnxruntime", "reference"]
    for each in found:
        assert each.error is None
        assert each.difference < 1e-5
        assert each.runs >= 1
        assert 0 < each.min_seconds <= each.median_seconds <= each.p99_seconds
        assert each.items_per_second == pytest.approx(5 / each.median_seconds)
        assert each.ratio == pytest.approx(each.median_seconds / found[0].median_seconds)
    assert found[0].ratio == 1


def test_a_wrong_engine_is_reported_and_not_timed():
    calls: list[str] = []
    executables = {"right": stub(), "wrong": stub(1.5, calls, "wrong"), "failing": failing()}
    right, wrong, broken = measure(executables, ONE, seconds=0.02, warmup_seconds=0)
    assert right.error is None
    assert right.runs > 0
    assert "'y' is not that of right: it differs by 0.5" in wrong.error
    assert wrong.difference == 0.5
    assert (wrong.runs, wrong.median_seconds, wrong.ratio) == (0, None, None)
    assert calls == ["wrong"]
    assert broken.error == "is out of order"
    assert broken.median_seconds is None


def test_a_failing_baseline_leaves_the_others():
    broken, second, third = measure(
        {"broken": failing(), "second": stub(), "third": stub()}, ONE, seconds=0.01, warmup_seconds=0
    )
    assert broken.error
    assert second.ratio == 1
    assert third.ratio > 0


def test_turns_alternate():
    calls: list[str] = []
    executables = {name: stub(1.0, calls, name) for name in ("a", "b")}
    measure(executables, ONE, seconds=0.2, warmup_seconds=0)
    timed = calls[4:]
    turns = [name for position, name in enumerate(timed) if position == 0 or timed[position - 1] != name]
    assert len(turns) > 4
    assert set(turns[:2]) == {"a", "b"}


def test_a_cold_start_is_measured_in_a_process_of_its_own():
    request = Request(str(ZOO / "mnist" / "model.onnx"), "onnxruntime", options={"threads": 1})
    used = measure_cold(request)
    assert 0 < used.loaded_bytes < used.kept_bytes <= used.peak_bytes
    assert used.growth_bytes == used.peak_bytes - used.loaded_bytes
    assert 0 < used.start_seconds < 60


def test_a_cold_start_of_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(EngineError, match=r"could not be measured: .*ModelFileError.*cannot be opened"):
        measure_cold(Request(str(tmp_path / "absent.onnx"), "onnxruntime"))


# The machine


def test_the_machine_tells_its_facts():
    facts = peaks.machine()
    assert facts.cpu
    assert facts.cores >= 1
    assert facts.libraries["numpy"] == np.__version__
    assert facts.libraries["onnx-ir"] == ir.__version__
    assert facts.memory_bytes is None or facts.memory_bytes > 2**20


def test_peaks_are_positive():
    found = peaks.measure_peaks(threads=2, seconds=0.02)
    assert found.threads == 2
    assert found.fma_gflops > 0
    assert found.read_gigabytes_per_second > 0


@pytest.mark.parametrize("name", ["multiply_add", "read"])
def test_the_kernels_of_the_peaks_do_all_their_work(name):
    target = host_target()
    width = peaks._CHAINS * target.lanes
    data = np.random.default_rng(0).standard_normal((40, width)).astype(np.float32)
    found = peaks._kernel(name, target)(data, 40)
    if name == "read":
        assert np.allclose(found, data.sum(0), atol=1e-4)
        return
    a, b = (np.resize(data[0, start : start + target.lanes], width) for start in (0, target.lanes))
    expected = data[0]
    for _ in range(40):
        expected = expected * a + b
    assert np.allclose(found, expected, rtol=1e-3, equal_nan=True)


def test_the_lowest_bound_of_the_control_groups_counts(monkeypatch, tmp_path):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    (inner / "cpu.max").write_text("max 100000\n")
    (inner / "memory.max").write_text("1048576\n")
    listing = tmp_path / "cgroup"
    listing.write_text("0::/outer/inner\n")
    monkeypatch.setattr(machine, "_CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(machine, "_CGROUP", listing)
    facts = peaks.machine()
    assert facts.quota_cores == 1.5
    assert facts.cores <= 2
    assert facts.memory_bytes == 1048576


def test_a_machine_that_tells_nothing(monkeypatch, tmp_path):
    for module, name in ((machine, "_CGROUP_ROOT"), (machine, "_CGROUP"), (peaks, "_CPU_INFO")):
        monkeypatch.setattr(module, name, tmp_path / "absent")
    facts = peaks.machine()
    assert facts.quota_cores is None
    assert facts.features == ()
    assert facts.cpu
