"""Every engine keeps the same contract and gives the same answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from educe import api, engines, formats
from educe.bench.compare import compare
from educe.bench.feeds import random_feeds
from educe.engines.base import Executable
from educe.errors import CardError, EduceError, EngineError, InputError, OptionError, UnsupportedModelError
from educe.model import Card, CardOrigin, Model, TensorType
from tests.conformance.cases import CASES, IGNORED, model, node, running_sum

NAMES = [engine.name for engine in engines.engines()]
ZOO = Path(__file__).parents[2] / "zoo"

every_engine = pytest.mark.parametrize("engine", NAMES)


def load(proto: onnx.ModelProto) -> Model:
    return formats.load(proto.SerializeToString())


def with_state(proto: onnx.ModelProto, **state: str) -> Model:
    return load(proto).with_card(Card(task="tensor", state=state), CardOrigin("test"))


def compiled(engine: str, name: str, read: Callable[[onnx.ModelProto], Model] = load) -> Executable:
    return engines.compile(read(CASES[name].model), engine)


def differs(found: object, expected: object, tolerance: float) -> str | None:
    """Return how two values differ in kind, shape or content, or None."""
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return f"{found} is not a list of {len(expected)}"
        reasons = [differs(a, b, tolerance) for a, b in zip(found, expected, strict=True)]
        return next((reason for reason in reasons if reason), None)
    if expected is None:
        return None if found is None else f"{found!r} is not None"
    if not isinstance(found, np.ndarray):
        return f"{found!r} is not an array"
    expected = np.asarray(expected)
    if found.shape != expected.shape:
        return f"{found.shape} is not {expected.shape}"
    if found.dtype == object or found.dtype == np.bool_:
        return None if np.array_equal(found, expected) else f"{found} is not {expected}"
    worst = relative_difference(found, expected)
    return None if worst <= tolerance else f"relative difference {worst:.2e}"


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the largest expected value."""
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30))


def run_case(engine: str, name: str, read: Callable[[onnx.ModelProto], Model] = load) -> str | None:
    """Run all inputs of a case and return the first difference."""
    each = CASES[name]
    executable = compiled(engine, name, read)
    judge = compiled("reference", name) if each.expected is None else None
    for feeds in each.feeds():
        outputs = executable.run(feeds)
        expected = list(judge.run(feeds).values()) if judge else each.expected(*feeds.values())
        expected = expected if isinstance(expected, list) else [expected]
        reason = differs(list(outputs.values()), expected, each.tolerance)
        if reason:
            return reason
        for key, declared in executable.signature.outputs.items():
            if isinstance(declared, TensorType) and outputs[key].dtype != declared.numpy_dtype:
                return f"{key} is {outputs[key].dtype}, not {declared}"
    return None


@every_engine
@pytest.mark.parametrize("name", CASES)
def test_case(engine, name):
    check(engine, name, load, IGNORED[engine].get(name))


@pytest.mark.parametrize("name", CASES)
def test_case_as_the_front_doors_load_it(name):
    check("onnxruntime", name, api.load, None)


def check(engine: str, name: str, read: Callable[[onnx.ModelProto], Model], reason: str | None) -> None:
    """Fail if a case fails, or if it is ignored for a `reason` and does not."""
    if reason is None:
        assert run_case(engine, name, read) is None
        return
    try:
        difference = run_case(engine, name, read)
    except EduceError:
        return
    assert difference, f"{engine} passes {name!r} after all: take it from the list ({reason})"


def test_ignored_cases_exist():
    assert set(IGNORED) == set(NAMES)
    assert all(name in CASES for ignored in IGNORED.values() for name in ignored)


@every_engine
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda feeds: feeds.pop("a"), "input 'a' is missing"),
        (lambda feeds: feeds.update(c=feeds["a"]), "no input 'c'"),
        (lambda feeds: feeds.update(a=feeds["a"].astype(np.float64)), "input 'a': expected f32.*found f64"),
        (lambda feeds: feeds.update(a=feeds["a"].astype(">f4")), "input 'a': expected f32"),
        (lambda feeds: feeds.update(b=np.zeros(5, np.float32)), "input 'b': expected 4 in dimension 0"),
        (lambda feeds: feeds.update(a=feeds["a"][0]), "input 'a': expected 2 dimensions"),
        (lambda feeds: feeds.update(a=feeds["a"].tolist()), "input 'a': expected f32.*found a list"),
        (lambda feeds: feeds.update(a=None), "input 'a': expected f32.*found a NoneType"),
        (lambda feeds: feeds.update(a=np.float32(1)), "input 'a': expected f32.*found a float32"),
    ],
)
def test_wrong_inputs_are_refused_with_their_place(engine, change, message):
    executable = compiled(engine, "add-f32")
    (feeds, *_) = CASES["add-f32"].feeds()
    change(feeds)
    with pytest.raises(InputError, match=message):
        executable.run(feeds)


def unless_ignored(engine: str, name: str) -> None:
    """Skip what an engine cannot be asked about, as it does not run the case."""
    if name in IGNORED[engine]:
        pytest.skip(IGNORED[engine][name])


@every_engine
@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("sequence-input", "s", np.ones(2, np.float32), "input 's': expected sequence.*found a ndarray"),
        ("sequence-input", "s", [np.ones(2)], "input 's', item 0: expected f32"),
        ("optional-input", "x", [1.0], "input 'x': expected f32.*found a list"),
        ("strings", "a", np.array(["a", 3], object), r"input 'a': expected text, found a int at \[1\]"),
        ("strings", "a", np.array([b"\xff"], object), "input 'a': holds bytes that are not UTF-8"),
        ("strings", "a", np.array([1, 2]), "input 'a': expected str"),
    ],
)
def test_wrong_values_of_other_kinds_are_refused(engine, name, key, value, message):
    unless_ignored(engine, name)
    (feeds, *_) = CASES[name].feeds()
    with pytest.raises(InputError, match=message):
        compiled(engine, name).run({**feeds, key: value})


def content(value: object) -> object:
    """Return something equal for equal values only, to the bit."""
    if isinstance(value, list | tuple):
        return [content(item) for item in value]
    if not isinstance(value, np.ndarray):
        return value
    raw = value.tolist() if value.dtype == object else value.tobytes()
    return str(value.dtype), value.shape, raw


def overwrite(value: object) -> None:
    for item in value if isinstance(value, list) else [value]:
        item[...] = "overwritten" if item.dtype == object else 99


OWNED = [
    "several-uses-of-one-value",
    "sequence-output",
    "strings",
    "cast-f32-to-all",
    "cast-bf16-to-all",
    "if",
    "lstm",
]


@every_engine
@pytest.mark.parametrize("name", OWNED)
def test_outputs_belong_to_the_caller(engine, name):
    unless_ignored(engine, name)
    executable = compiled(engine, name)
    (feeds, *_) = CASES[name].feeds()
    before = content(list(feeds.values()))
    outputs = executable.run(feeds)
    first = content(list(outputs.values()))
    for key in outputs:
        others = [content(value) for other, value in outputs.items() if other != key]
        overwrite(outputs[key])
        assert [content(value) for other, value in outputs.items() if other != key] == others
    assert content(list(feeds.values())) == before
    assert content(list(executable.run(feeds).values())) == first


@every_engine
@pytest.mark.parametrize(
    "name", ["elementwise-chain", "slice-and-pad", "loop", "scan", "sequence-input", "top-k"]
)
def test_inputs_are_not_modified_and_may_be_read_only(engine, name):
    unless_ignored(engine, name)
    executable = compiled(engine, name)
    for feeds in CASES[name].feeds():
        before = content(list(feeds.values()))
        for value in feeds.values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        executable.run(feeds)
        assert content(list(feeds.values())) == before


@every_engine
def test_strided_inputs_give_the_same_answer(engine):
    executable = compiled(engine, "softmax")
    wide = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    for x in (wide[::2, ::2], wide[::-1], wide.T, np.asfortranarray(wide)):
        assert content(executable.run({"x": x})["y"]) == content(executable.run({"x": x.copy("C")})["y"])


@every_engine
@pytest.mark.parametrize("name", ["conv-stride-1", "matmul-of-large-weight", "loop"])
def test_threads_share_one_executable(engine, name):
    executable = compiled(engine, name)
    inputs = [CASES[name].feeds(seed)[0] for seed in range(8)]
    alone = [content(list(executable.run(feeds).values())) for feeds in inputs]
    together: list[list[object]] = [[] for _ in inputs]
    start = threading.Barrier(len(inputs))

    def work(position: int) -> None:
        start.wait()
        for _ in range(5):
            together[position].append(content(list(executable.run(inputs[position]).values())))

    threads = [threading.Thread(target=work, args=(position,)) for position in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [[answer] * 5 for answer in alone]


@every_engine
def test_executables_stand_side_by_side(engine):
    (feeds, *_) = CASES["gemm"].feeds()
    first = compiled(engine, "gemm")
    before = content(first.run(feeds)["y"])
    second = compiled(engine, "softmax")
    assert content(second.run({"x": feeds["x"]})["y"]) != before
    del second
    assert content(first.run(feeds)["y"]) == before


@every_engine
def test_streams_are_independent(engine):
    executable = engines.compile(with_state(running_sum(), sum_in="sum_out"), engine)
    steps = np.arange(24, dtype=np.float32).reshape(4, 2, 1, 3)
    streams = [executable.new_state(), executable.new_state()]
    for step in range(4):
        for position, state in enumerate(streams):
            outputs = executable.run({"x": steps[step, position]}, state)
            assert np.array_equal(outputs["y"], 2 * steps[: step + 1, position].sum(0))
            assert set(outputs) == {"y"}
            outputs["y"][...] = 99  # The caller's own; the stream must not see it.


@every_engine
def test_state_has_the_batch_asked_for(engine):
    executable = engines.compile(with_state(running_sum(), sum_in="sum_out"), engine)
    state = executable.new_state(batch=3)
    x = np.ones((3, 3), np.float32)
    executable.run({"x": x}, state)
    assert np.array_equal(executable.run({"x": x}, state)["y"], 4 * x)


@every_engine
def test_state_fed_by_hand_gives_the_same(engine):
    executable = engines.compile(with_state(running_sum(), sum_in="sum_out"), engine)
    x = np.ones((1, 3), np.float32)
    outputs = executable.run({"x": x, "sum_in": x})
    assert np.array_equal(outputs["y"], 4 * x)
    with pytest.raises(InputError, match="'sum_in' carries state"):
        executable.run({"x": x, "sum_in": x}, executable.new_state())
    with pytest.raises(InputError, match="'sum_in' is missing"):
        executable.run({"x": x})


@every_engine
def test_a_failed_run_leaves_the_state_alone(engine):
    executable = engines.compile(with_state(running_sum(), sum_in="sum_out"), engine)
    state = executable.new_state()
    executable.run({"x": np.ones((1, 3), np.float32)}, state)
    before = content(list(state.values.values()))
    with pytest.raises(InputError):
        executable.run({"x": np.ones((1, 2), np.float32)}, state)
    assert content(list(state.values.values())) == before


@pytest.mark.parametrize("engine", [name for name in NAMES if name != "openvino"])
def test_failing_data_names_the_node(engine):
    executable = compiled(engine, "gather")
    feeds = {"x": np.zeros((2, 5), np.float32), "i": np.array([9])}
    with pytest.raises(EngineError) as caught:
        executable.run(feeds)
    assert caught.value.place == "node 'Gather_y' (Gather)"
    assert "onnxruntime_src" not in str(caught.value)


@every_engine
def test_a_missing_operator_is_named_with_its_node(engine):
    nodes = [node("Relu", "x", "r"), node("lab.example::Mystery", "r", "m"), node("Neg", "m")]
    proto = model(nodes, {"x": "f32[N]"}, {"y": "f32[N]"})
    proto.opset_import.add(domain="lab.example", version=1)
    lacking = load(proto)
    support = engines.get(engine).supports(lacking)
    assert not support
    assert [(problem.node, problem.operator) for problem in support.problems] == [
        ("Mystery_m", "lab.example::Mystery-1")
    ]
    with pytest.raises(UnsupportedModelError, match=r"'Mystery_m' \(lab\.example::Mystery-1\)"):
        engines.compile(lacking, engine)


@every_engine
def test_repr_names_the_engine_and_the_signature(engine):
    assert repr(compiled(engine, "gemm")) == f"<Executable {engine} (x: f32[N,6]) -> (y: f32[N,4])>"


@every_engine
def test_options_are_checked(engine):
    relu = load(CASES["softmax"].model)
    with pytest.raises(OptionError, match="did you mean 'threads'"):
        engines.compile(relu, engine, thread=1)
    with pytest.raises(OptionError, match="graph_optimization='fast'"):
        engines.compile(relu, engine, graph_optimization="fast")
    with pytest.raises(OptionError, match="threads='2'"):
        engines.compile(relu, engine, threads="2")
    for threads in (1, 2, None):
        engines.compile(relu, engine, threads=threads)


@every_engine
def test_a_state_that_does_not_fit_is_refused(engine):
    with pytest.raises(CardError, match=r"'sum_in'.*is fed by output 'nothing'"):
        engines.compile(with_state(running_sum(), sum_in="nothing"), engine)


@every_engine
def test_the_model_is_not_modified(engine):
    before = load(CASES["matmul-of-large-weight"].model)
    text = str(before.graph)
    (feeds, *_) = CASES["matmul-of-large-weight"].feeds()
    engines.compile(before, engine).run(feeds)
    assert str(before.graph) == text
    weight = before.graph.graph.initializers["w"].const_value.numpy()
    assert np.array_equal(
        weight, onnx.numpy_helper.to_array(CASES["matmul-of-large-weight"].model.graph.initializer[0])
    )


def test_reference_lacks_the_operators_of_others():
    lacking = load(
        model(
            [node("com.microsoft::FastGelu", "x", "t"), node("com.microsoft::FastGelu", "t")],
            {"x": "f32[N]"},
            {"y": "f32[N]"},
        )
    )
    support = engines.get("reference").supports(lacking)
    assert [problem.node for problem in support.problems] == ["FastGelu_t", "FastGelu_y"]
    assert engines.get("onnxruntime").supports(lacking)
    with pytest.raises(UnsupportedModelError, match="use the engine onnxruntime"):
        engines.compile(lacking, "reference")


def test_reference_pools_globally_over_all_but_two_dimensions():
    pool = load(model([node("GlobalMaxPool", "x")], {"x": "f32[N,C,L]"}, {"y": "f32[N,C,1]"}))
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    found = engines.compile(pool, "reference").run({"x": x})["y"]
    assert np.array_equal(found, engines.compile(pool, "onnxruntime").run({"x": x})["y"])
    assert np.array_equal(found, x.max(2, keepdims=True))


@pytest.mark.parametrize("path", sorted(ZOO.glob("*/model.onnx")), ids=lambda path: path.parent.name)
def test_engines_agree_on_the_zoo(path):
    zoo_model = api.load(path)
    feeds = random_feeds(zoo_model, batch=1, seed=1)
    pair = [engines.compile(zoo_model, name) for name in ("onnxruntime", "reference")]
    found = compare(*pair, feeds, tolerance=1e-4)
    assert found.agree, found.worst
    assert all(np.isfinite(difference.max_absolute) for difference in found.differences)


@every_engine
def test_a_state_whose_batch_cannot_be_told_is_refused(engine):
    proto = model([node("Add", "past x")], {"past": "f32[A,B]", "x": "f32[A,B]"}, {"y": "f32[A,B]"})
    executable = engines.compile(with_state(proto, past="y"), engine)
    with pytest.raises(CardError, match="which of its unknown sizes is the batch"):
        executable.new_state()
