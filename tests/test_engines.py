"""The registry of engines, and what is particular to one of them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from educe import engines, formats
from educe.engines import onnxruntime as adapter
from educe.engines import onnxruntime_operators
from educe.engines.base import Executable, Options
from educe.engines.onnxruntime_errors import clean, compile_error, run_error
from educe.errors import (
    EngineError,
    MissingLibraryError,
    ModelFileError,
    OptionError,
    UnsupportedModelError,
)
from educe.model import Model
from educe.model.signature import NUMPY_TYPES
from tests.conformance.cases import CASES, graph, model, node


def load(proto: onnx.ModelProto) -> Model:
    return formats.load(proto.SerializeToString())


def relu() -> Model:
    return load(model([node("Relu", "x")], {"x": "f32[N]"}, {"y": "f32[N]"}))


def test_engines_are_found_by_name():
    assert [engine.name for engine in engines.engines()] == ["native", "onnxruntime", "reference", "openvino"]
    assert engines.get("reference").name == "reference"
    with pytest.raises(OptionError, match=r"no engine 'onnxruntim' \(did you mean 'onnxruntime'"):
        engines.get("onnxruntim")


def test_the_setting_chooses_the_default_engine(monkeypatch):
    monkeypatch.delenv("EDUCE_ENGINE", raising=False)
    assert engines.compile(relu()).engine == "native"
    monkeypatch.setenv("EDUCE_ENGINE", "reference")
    assert engines.compile(relu()).engine == "reference"
    assert engines.compile(relu(), "onnxruntime").engine == "onnxruntime"
    monkeypatch.setenv("EDUCE_ENGINE", "nothing")
    with pytest.raises(OptionError, match="no engine 'nothing'"):
        engines.compile(relu())


def test_engines_tell_their_version_and_devices():
    for engine in engines.engines():
        assert engine.version()[0].isdecimal()
        assert engine.devices()[0].startswith("CPU")


def test_options_name_what_they_refuse():
    assert Options.of(threads=3) == Options(threads=3)
    with pytest.raises(OptionError, match=r"memory_arena='yes': Expected `bool`"):
        Options.of(memory_arena="yes")
    with pytest.raises(OptionError, match="threads=0 is not a positive integer"):
        engines.compile(relu(), "onnxruntime", threads=0)


def test_the_registry_imports_no_engine():
    code = "import sys, educe.engines; print('onnxruntime' in sys.modules, 'onnx.reference' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_onnxruntime_is_imported_without_telemetry():
    adapter._library()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_missing_onnxruntime_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    engine = engines.get("onnxruntime")
    assert engine.version() is None
    assert engine.devices() == []
    with pytest.raises(MissingLibraryError, match=r"onnxruntime.*pip install"):
        engine.compile(relu(), Options())


# Weights handed over by address


@pytest.mark.parametrize(
    "name", ["gemm", "conv-stride-1", "lstm", "matmul-of-large-weight", "batch-norm", "local-function"]
)
def test_shared_weights_give_the_same_bits(monkeypatch, name):
    answers = []
    for least in (1, 2**40):
        monkeypatch.setattr(adapter, "SHARED_WEIGHT_BYTES", least)
        executable = engines.compile(load(CASES[name].model), "onnxruntime")
        answers.append(
            [array.tobytes() for feeds in CASES[name].feeds() for array in executable.run(feeds).values()]
        )
    assert answers[0] == answers[1]


@pytest.mark.parametrize("element", ["bf16", "f16", "f8e4m3fn", "i8", "bool", "i4", "u4"])
def test_weights_of_every_width_arrive(monkeypatch, element):
    monkeypatch.setattr(adapter, "SHARED_WEIGHT_BYTES", 1)
    values = np.array([[0, 1, 1], [0, 1, 0]], np.float32)
    weight = values.astype(NUMPY_TYPES[element])
    proto = model(
        [node("Cast", "w", "c", to=TensorProto.FLOAT), node("Add", "c x")],
        {"x": "f32[1]"},
        {"y": "f32[2,3]"},
        {"w": weight},
    )
    found = engines.compile(load(proto), "onnxruntime").run({"x": np.zeros(1, np.float32)})["y"]
    assert np.array_equal(found, values)


def test_external_weights_do_not_enter_the_message(tmp_path):
    weight = np.random.default_rng(0).standard_normal((300, 500)).astype(np.float32)
    proto = model([node("MatMul", "x w")], {"x": "f32[N,300]"}, {"y": "f32[N,500]"}, {"w": weight})
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    loaded = formats.load(path)
    message, weights = adapter._message(loaded.graph, adapter._library())
    assert len(message) < 2000
    assert list(weights) == ["w"]
    x = np.ones((2, 300), np.float32)
    assert np.allclose(engines.compile(loaded, "onnxruntime").run({"x": x})["y"], x @ weight, atol=1e-3)
    assert loaded.graph.graph.initializers["w"].const_value.nbytes == weight.nbytes


# Session settings


def quantized(activations: bool = False, blocks: bool = False) -> Model:
    nodes = [
        node("DequantizeLinear", "w s", "d", axis=0 if blocks else 1, **({"block_size": 2} if blocks else {}))
    ]
    if activations:
        nodes += [node("QuantizeLinear", "x t", "q"), node("DequantizeLinear", "q t", "f")]
    nodes.append(node("MatMul", "f d" if activations else "x d"))
    weights = {
        "w": np.arange(12, dtype=np.uint8).reshape(4, 3),
        "s": np.ones((2, 3) if blocks else 3, np.float32),
        "t": np.float32(0.1),
    }
    return load(model(nodes, {"x": "f32[N,4]"}, {"y": "f32[N,3]"}, weights))


@pytest.mark.parametrize(
    ("given", "folded"),
    [
        (quantized(), "1"),
        (quantized(activations=True), ""),
        (quantized(blocks=True), ""),
        (relu(), "1"),
    ],
)
def test_only_weights_that_no_integer_kernel_wants_are_dequantized_early(given, folded):
    settings = adapter._settings(given, Options(), adapter._library())
    try:
        found = settings.get_session_config_entry("session.disable_quant_qdq")
    except RuntimeError:
        found = ""
    assert found == folded


@pytest.mark.parametrize("given", [quantized(), quantized(activations=True), quantized(blocks=True)])
def test_quantized_models_answer_as_the_reference_does(given):
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    found, expected = (
        engines.compile(given, name).run({"x": x})["y"] for name in ("onnxruntime", "reference")
    )
    assert np.allclose(found, expected, rtol=1e-5)


def test_memory_plans_are_kept_only_for_fixed_sizes():
    library = adapter._library()
    fixed = load(model([node("Relu", "x")], {"x": "f32[2,3]"}, {"y": "f32[2,3]"}))
    assert adapter._settings(fixed, Options(), library).enable_mem_pattern
    assert not adapter._settings(fixed, Options(memory_arena=False), library).enable_mem_pattern
    assert not adapter._settings(relu(), Options(), library).enable_mem_pattern
    assert adapter._settings(relu(), Options(threads=3), library).intra_op_num_threads == 3


@pytest.mark.parametrize("level", ["none", "basic", "extended", "all"])
@pytest.mark.parametrize("arena", [True, False])
def test_options_do_not_change_the_answer(level, arena):
    plain = engines.compile(load(CASES["conv-stride-2"].model), "onnxruntime", threads=1)
    other = engines.compile(
        load(CASES["conv-stride-2"].model),
        "onnxruntime",
        graph_optimization=level,
        memory_arena=arena,
        threads=2,
    )
    for feeds in CASES["conv-stride-2"].feeds():
        assert np.allclose(plain.run(feeds)["y"], other.run(feeds)["y"], rtol=1e-4, atol=1e-4)


def test_a_newer_ir_version_is_no_obstacle():
    proto = CASES["gemm"].model
    newer = onnx.ModelProto()
    newer.CopyFrom(proto)
    newer.ir_version = onnx.IR_VERSION
    engines.compile(load(newer), "onnxruntime")
    beyond = load(newer)
    beyond.graph.ir_version = 99
    engines.compile(beyond, "onnxruntime")


def test_nothing_is_printed_when_a_run_fails(capfd):
    executable = engines.compile(load(CASES["gather"].model), "onnxruntime")
    with pytest.raises(EngineError):
        executable.run({"x": np.zeros((2, 5), np.float32), "i": np.array([9])})
    assert capfd.readouterr() == ("", "")


# Operators


def refused(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    support = engines.get("onnxruntime").supports(load(proto))
    return [(problem.node, problem.reason) for problem in support.problems]


def test_an_operator_set_from_the_future_is_refused():
    known = onnxruntime_operators.operators()
    newest = known.newest[""]
    assert known.refusal("", "Relu", newest) is None
    assert (
        known.refusal("", "Relu", newest + 1)
        == f"operator set {newest + 1} is newer than {newest}, the newest it knows"
    )
    assert "came with set 20" in known.refusal("", "Gelu", 19)
    assert "no such operator" in known.refusal("", "Gela", 20)
    assert "no operators of the domain" in known.refusal("lab", "Relu", 1)


@pytest.mark.parametrize(
    ("operator", "opset", "able"),
    [("Relu", 13, True), ("Mish", 18, True), ("Constant", 13, True), ("ImageDecoder", 20, False)],
)
def test_operators_need_a_kernel_or_a_definition(operator, opset, able):
    assert (onnxruntime_operators.operators().refusal("", operator, opset) is None) == able


def test_every_refused_node_is_listed_subgraphs_and_functions_included():
    inner = graph([node("lab::Inner", "x", "t")], {}, {"t": "f32[N]"}, name="inner")
    other = graph([node("Neg", "x", "e")], {}, {"e": "f32[N]"}, name="other")
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("lab", 1)]
    function = helper.make_function("local", "F", ["p"], ["r"], [node("lab::Deep", "p", "r")], imports)
    proto = model(
        [node("If", "c", "z", then_branch=inner, else_branch=other), node("local::F", "z")],
        {"c": "bool[]", "x": "f32[N]"},
        {"y": "f32[N]"},
        functions=[function],
    )
    proto.opset_import.add(domain="lab", version=1)
    assert [name for name, _ in refused(proto)] == ["Inner_t", "Deep_r"]


def test_without_a_catalogue_compiling_decides(monkeypatch):
    monkeypatch.setattr(onnxruntime_operators, "operators", lambda: None)
    proto = model([node("com.microsoft::NoSuchThing", "x")], {"x": "f32[N]"}, {"y": "f32[N]"})
    assert refused(proto) == []
    with pytest.raises(UnsupportedModelError, match=r"'com\.microsoft:NoSuchThing'"):
        engines.compile(load(proto), "onnxruntime")


@pytest.mark.parametrize("operator", ["Mystery", "lab::Mystery"])
def test_native_names_what_neither_a_kernel_nor_the_host_covers(operator):
    proto = model([node(operator, "x")], {"x": "f32[N]"}, {"y": "f32[N]"})
    proto.opset_import.add(domain="lab", version=1)
    with pytest.raises(UnsupportedModelError) as caught:
        engines.compile(load(proto), "native")
    assert caught.value.problems[0].node == "Mystery_y"
    assert caught.value.problems[0].reason == "there is neither a kernel nor an implementation on the host"
    assert "export the model with standard operators" in str(caught.value.remedy)


def test_a_kernel_that_lacks_the_element_type_is_named():
    proto = model([node("Conv", "x w")], {"x": "f64[1,1,3,3]", "w": "f64[1,1,3,3]"}, {"y": "f64[1,1,1,1]"})
    with pytest.raises(UnsupportedModelError) as caught:
        engines.compile(load(proto), "onnxruntime")
    (problem,) = caught.value.problems
    assert (problem.node, problem.operator) == ("Conv_y", "Conv")


def test_a_model_of_wrong_types_is_called_broken():
    proto = model([node("Relu", "x")], {"x": "f32[N]"}, {"y": "i64[N]"})
    with pytest.raises(ModelFileError, match="Type Error"):
        engines.compile(load(proto), "onnxruntime")


# Messages

SOURCE = "/onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:91 "


@pytest.mark.parametrize(
    ("message", "cleaned"),
    [
        (
            f"{SOURCE}onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, bool) "
            "input_shape_size == size was false. It cannot be reshaped. Input shape:{4}, shape:{3,5}\n",
            "It cannot be reshaped. Input shape:{4}, shape:{3,5}",
        ),
        (
            f"{SOURCE}void onnxruntime::TensorSeq::Add(onnxruntime::Tensor&&) IsSameType(tensor) was false.",
            "IsSameType(tensor) does not hold",
        ),
        (
            f"{SOURCE}onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::ModelOptions&) "
            "Unsupported model IR version: 15, max supported IR version: 14",
            "Unsupported model IR version: 15, max supported IR version: 14",
        ),
        ("held at 0x7ffd12ab by  nobody", "held at by nobody"),
        ("plain words (with brackets) Stay", "plain words (with brackets) Stay"),
    ],
)
def test_messages_lose_source_paths_and_signatures(message, cleaned):
    assert clean(message) == cleaned


def test_run_errors_have_a_place():
    text = (
        "[ONNXRuntimeError] : {} : Non-zero status code returned while running Gather node. "
        "Name:'pick' Status Message: {}"
    )
    failed = run_error(Exception(text.format("2 : INVALID_ARGUMENT", "idx=9 is out of bounds")))
    assert isinstance(failed, EngineError)
    assert str(failed) == "node 'pick' (Gather): ONNX Runtime failed: idx=9 is out of bounds"
    lacking = run_error(Exception(text.format("9 : NOT_IMPLEMENTED", "no such mode")))
    assert isinstance(lacking, UnsupportedModelError)
    assert [(problem.node, problem.operator) for problem in lacking.problems] == [("pick", "Gather")]
    assert run_error(Exception("anything else")).place is None


def test_compile_errors_have_types():
    unknown = compile_error(Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : out of memory"), relu())
    assert isinstance(unknown, EngineError)
    assert unknown.cause == "ONNX Runtime failed to compile graph: out of memory"


def test_complex_tensors_are_unsupported():
    proto = model([node("Identity", "x")], {"x": "c64[N]"}, {"y": "c64[N]"})
    with pytest.raises(UnsupportedModelError, match="complex64"):
        engines.compile(load(proto), "onnxruntime")
    x = np.ones(3, np.complex64)
    assert np.array_equal(engines.compile(load(proto), "reference").run({"x": x})["y"], x)


def test_narrow_inputs_go_with_all_others():
    nodes = [
        node("Identity", "s", "t"),
        node("Cast", "b", "c", to=TensorProto.FLOAT),
        node("SequenceConstruct", "c c", "q"),
    ]
    outputs = {"t": "str[N]", "c": "f32[N]", "q": "sequence(f32[N])"}
    executable = engines.compile(load(model(nodes, {"s": "str[N]", "b": "bf16[N]"}, outputs)), "onnxruntime")
    b = np.array([1.5, -2, 0], NUMPY_TYPES["bf16"])
    found = executable.run({"s": np.array(["a", "é", ""]), "b": b[::-1]})
    assert found["t"].tolist() == ["a", "é", ""]
    assert found["c"].tolist() == [0, -2, 1.5]
    assert [item.tolist() for item in found["q"]] == [[0, -2, 1.5]] * 2


@pytest.mark.parametrize("beside", ["str[N]", "sequence(f32[N])"])
def test_what_cannot_stand_beside_a_narrow_output_is_refused(beside):
    proto = model(
        [node("Cast", "x", "h", to=TensorProto.BFLOAT16), node("Identity", "s", "t")],
        {"x": "f32[N]", "s": beside},
        {"h": "bf16[N]", "t": beside},
    )
    with pytest.raises(UnsupportedModelError, match=r"has no 's' .* beside the output 'h' \(bf16"):
        engines.compile(load(proto), "onnxruntime")
    assert engines.compile(load(proto), "reference").engine == "reference"


def test_an_executable_calls_its_launch_with_the_inputs_alone():
    seen = []
    executable = Executable("test", relu(), lambda feeds: seen.append(feeds) or [feeds["x"]])
    given = {"x": np.ones(2, np.float32)}
    executable.run(given)
    assert seen == [given]
    assert seen[0] is not given
