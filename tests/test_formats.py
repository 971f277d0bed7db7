"""Model files: real ones, old ones, broken ones, hostile ones."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import educe
from educe import formats
from educe.errors import (
    EduceError,
    LimitError,
    ModelFileError,
    OptionError,
    UnsupportedFormatError,
    UnsupportedModelError,
)
from educe.graph import INTERNAL_OPSET
from educe.limits import Limits
from educe.model import MapType, SequenceType, TensorType
from tests.conftest import tiny_model


def test_the_facts_of_a_real_model(zoo: Path) -> None:
    path = zoo / "yolox_nano" / "model.onnx"
    model = educe.load(path)
    assert str(model.signature) == "(images: f32[1,3,416,416]) -> (output: f32[1,3549,85])"
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.size_bytes == path.stat().st_size
    assert model.operators["Conv"] == 113
    assert 0.90e6 < model.num_parameters < 0.91e6  # published: 0.91 M
    assert model.flops is not None
    assert 1.0e9 < model.flops < 1.1e9  # published: 1.08 GFLOP
    assert model.file_opsets == {"ai.onnx": 11}
    assert model.opsets["ai.onnx"] == INTERNAL_OPSET
    assert repr(model).startswith("<Model YOLOX")


def test_every_source_gives_the_same_model(tmp_path: Path, tiny: onnx.ModelProto) -> None:
    path = tmp_path / "named.bin"
    onnx.save(tiny, path)
    sources = (str(path), path, path.read_bytes(), tiny, ir.from_proto(tiny))
    x = np.ones((2, 3), np.float32)
    for source in sources:
        model = educe.load(source)
        assert str(model.signature) == "(x: f32[N,3]) -> (y: f32[N,2])"
        assert educe.compile(model).run({"x": x})["y"].tolist() == [[0.0, 3.0]] * 2


def test_a_folder_with_one_model_is_that_model(zoo: Path, tmp_path: Path) -> None:
    assert educe.load(zoo / "mnist").name == "Handwritten digits (MNIST)"
    with pytest.raises(ModelFileError, match=r"0 \.onnx files"):
        educe.load(tmp_path)


def test_a_source_of_another_type_is_refused() -> None:
    with pytest.raises(OptionError, match="from a int"):
        educe.load(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 15, 17, 19, 21])
def test_older_operator_sets_are_converted(opset: int, tiny: onnx.ModelProto) -> None:
    model = educe.load(tiny_model(opset))
    assert model.file_opsets == {"ai.onnx": opset}
    assert model.opsets == {"ai.onnx": INTERNAL_OPSET}
    assert not model.notes
    x = np.ones((1, 3), np.float32)
    assert educe.compile(model).run({"x": x})["y"].tolist() == [[0.0, 3.0]]


def test_large_weights_survive_the_conversion(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    proto = tiny_model(9)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64
    x = rng.standard_normal((4, 64)).astype(np.float32)
    model = educe.load(proto)
    np.testing.assert_allclose(
        educe.compile(model).run({"x": x})["y"], np.maximum(x @ weight, 0), rtol=1e-4, atol=1e-5
    )
    assert list(model.signature.inputs) == ["x"]


def test_a_conversion_that_fails_is_noted(tiny: onnx.ModelProto) -> None:
    proto = tiny_model(11)
    proto.graph.node[1].op_type = "Mystery"
    model = educe.load(proto)
    assert model.opsets["ai.onnx"] == 11
    assert "kept at operator set 11" in model.notes[0]
    with pytest.raises(UnsupportedModelError, match=r"node 'relu' \(Mystery-11\)") as caught:
        educe.compile(model)
    assert [problem.node for problem in caught.value.problems] == ["relu"]


def test_functions_are_read_and_inlined() -> None:
    function = helper.make_function(
        "mine",
        "Double",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("Double", ["x"], ["y"], domain="mine")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    proto = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)],
    )
    result = educe.compile(educe.load(proto)).run({"x": np.array([1, 2], np.float32)})
    assert result["y"].tolist() == [2, 4]


def test_sequences_optionals_and_maps_have_types() -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [None])
    sequence = helper.make_sequence_type_proto(element)
    graph = helper.make_graph(
        [helper.make_node("SequenceAt", ["s", "i"], ["y"])],
        "g",
        [helper.make_value_info("s", sequence), helper.make_tensor_value_info("i", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = formats.load(helper.make_model(graph, ir_version=10).SerializeToString())
    assert str(model.signature) == "(s: sequence(f32[?]), i: i64[]) -> (y: f32[...])"
    assert isinstance(model.signature.inputs["s"], SequenceType)


def test_a_classifier_that_returns_maps_is_read(rng: np.random.Generator) -> None:
    kind = onnx.TypeProto()
    kind.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[3, 5])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_value_info("z", kind)],
    )
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 3)]
    model = educe.load(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    output = model.signature.outputs["z"]
    assert isinstance(output, SequenceType)
    assert isinstance(output.element, MapType)
    result = educe.compile(model).run({"x": np.array([[0.25, 0.75]], np.float32)})
    assert result["z"] == [{3: 0.25, 5: 0.75}]


class TestBrokenFiles:
    """Each file is refused with a typed error that says what it is, within a second."""

    @pytest.mark.parametrize(
        ("content", "kind", "cause"),
        [
            (b"", ModelFileError, "the file is empty"),
            (b"<!DOCTYPE html><html>404</html>", ModelFileError, "is a web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid", ModelFileError, "Git LFS pointer"),
            (b"GGUF\x03\0\0\0", UnsupportedFormatError, "a GGUF model"),
            (b"\x1c\0\0\0TFL3", UnsupportedFormatError, "a TensorFlow Lite model"),
            (b"PK\x03\x04....", UnsupportedFormatError, "a zip file"),
            (b"\x80\x04\x95....", UnsupportedFormatError, "pickle"),
            (b"\x89HDF\r\n\x1a\n", UnsupportedFormatError, "HDF5"),
            (b"tree\nversion=v3", UnsupportedFormatError, "LightGBM"),
            ((40).to_bytes(8, "little") + b'{"a":{"dtype"', UnsupportedFormatError, "safetensors"),
            (b"\xff" * 64, ModelFileError, "no model that Educe knows"),
        ],
    )
    def test_other_files(self, tmp_path: Path, content: bytes, kind: type[EduceError], cause: str) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        with pytest.raises(kind, match=cause) as caught:
            educe.load(path)
        assert caught.value.path == str(path)
        assert caught.value.remedy

    def test_missing_folder_and_pipe(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="No such file"):
            educe.load(tmp_path / "none.onnx")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelFileError, match="not a regular file"):
            educe.load(tmp_path / "pipe")

    def test_random_bytes(self, rng: np.random.Generator, tmp_path: Path) -> None:
        for _ in range(200):
            with pytest.raises(EduceError):
                educe.load(rng.bytes(int(rng.integers(1, 2000))))

    @pytest.mark.parametrize("folder", ["mnist", "comment_spam", "silero_vad"])
    def test_truncated_anywhere(self, zoo: Path, rng: np.random.Generator, folder: str) -> None:
        content = (zoo / folder / "model.onnx").read_bytes()
        for end in rng.integers(0, len(content), 70):
            start = time.perf_counter()
            with pytest.raises((ModelFileError, UnsupportedFormatError)):
                educe.load(content[:end])
            assert time.perf_counter() - start < 5

    @pytest.mark.parametrize("folder", ["mnist", "kws", "breast_cancer"])
    def test_flipped_bits_never_crash(self, zoo: Path, rng: np.random.Generator, folder: str) -> None:
        content = (zoo / folder / "model.onnx").read_bytes()
        for _ in range(100):
            broken = bytearray(content)
            for position in rng.integers(0, len(content), 3):
                broken[position] ^= 1 << int(rng.integers(8))
            try:
                model = educe.load(bytes(broken))
                assert model.flops is None or model.flops >= 0
            except EduceError as error:
                assert error.exit_status in (2, 3)  # noqa: PT017

    def test_missing_weight(self, tiny: onnx.ModelProto) -> None:
        del tiny.graph.initializer[:]
        with pytest.raises(ModelFileError) as caught:
            educe.load(tiny)
        assert str(caught.value).startswith("node 'product' (MatMul), input 1: reads 'w', which is no input")

    def test_unsorted_nodes(self, tiny: onnx.ModelProto) -> None:
        nodes = list(reversed(tiny.graph.node))
        del tiny.graph.node[:]
        tiny.graph.node.extend(nodes)
        with pytest.raises(ModelFileError, match=r"node 'relu' \(Relu\), input 0: reads 't' before the node"):
            educe.load(tiny)

    def test_output_that_nothing_makes(self, tiny: onnx.ModelProto) -> None:
        tiny.graph.output[0].name = "elsewhere"
        with pytest.raises(ModelFileError, match="output 'elsewhere'"):
            educe.load(tiny)

    def test_name_made_twice(self, tiny: onnx.ModelProto) -> None:
        tiny.graph.node.append(helper.make_node("Relu", ["t"], ["y"], name="again"))
        with pytest.raises(ModelFileError, match=r"node 'again' \(Relu\): makes 'y'"):
            educe.load(tiny)

    def test_tensor_of_another_size(self, tiny: onnx.ModelProto) -> None:
        tiny.graph.initializer[0].raw_data = b"\0" * 20
        with pytest.raises(
            ModelFileError, match=r"initializer 'w': holds 20 bytes, where FLOAT\[3, 2\] takes 24"
        ):
            educe.load(tiny)

    def test_huge_shape(self, tiny: onnx.ModelProto) -> None:
        tiny.graph.initializer[0].dims[:] = [2**62, 2**62]
        with pytest.raises(ModelFileError, match="initializer 'w'"):
            educe.load(tiny)

    def test_unknown_domain(self, tiny: onnx.ModelProto) -> None:
        tiny.graph.node[1].domain = "elsewhere"
        with pytest.raises(ModelFileError, match="declares no operator set"):
            educe.load(tiny)

    def test_text_that_is_not_utf8(self, tiny: onnx.ModelProto) -> None:
        content = tiny.SerializeToString().replace(b"product", b"prod\xffct")
        with pytest.raises(ModelFileError, match=r"graph\.node\[0\]\.name: is not valid UTF-8"):
            educe.load(content)

    def test_a_name_with_a_nul_character(self, tiny: onnx.ModelProto) -> None:
        content = tiny.SerializeToString().replace(b"product", b"prod\0ct")
        with pytest.raises(ModelFileError, match=r"graph\.node\[0\]\.name: holds a NUL character"):
            educe.load(content)

    def test_attribute_without_value(self, tiny: onnx.ModelProto) -> None:
        attribute = tiny.graph.node[0].attribute.add(name="value")
        for kind in (onnx.AttributeProto.UNDEFINED, onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH):
            attribute.type = kind
            with pytest.raises(ModelFileError, match="attribute 'value': has no value of its type"):
                educe.load(tiny)

    def test_a_shape_that_would_fill_memory_is_not_computed(self) -> None:
        shape = numpy_helper.from_array(np.array([2**36], np.int64), "shape")
        nodes = [
            helper.make_node("ConstantOfShape", ["shape"], ["big"]),
            helper.make_node("Shape", ["big"], ["sizes"]),
            helper.make_node("Range", ["zero", "limit", "one"], ["steps"]),
            helper.make_node("Concat", ["sizes", "steps"], ["y"], axis=0),
        ]
        scalars = [
            numpy_helper.from_array(np.array(value, np.int64), name)
            for name, value in {"zero": 0, "limit": 2**40, "one": 1}.items()
        ]
        outputs = [helper.make_tensor_value_info("y", TensorProto.INT64, ["M"])]
        graph = helper.make_graph(nodes, "g", [], outputs, [shape, *scalars])
        opsets = [helper.make_opsetid("", 13)]
        start = time.perf_counter()
        educe.load(helper.make_model(graph, opset_imports=opsets, ir_version=8))
        assert time.perf_counter() - start < 5

    def test_input_without_type(self, tiny: onnx.ModelProto) -> None:
        tiny.graph.input[0].ClearField("type")
        with pytest.raises(ModelFileError, match="input 'x': has no type"):
            educe.load(tiny)

    def test_functions_that_call_themselves(self, tiny: onnx.ModelProto) -> None:
        for name, other in (("A", "B"), ("B", "A")):
            tiny.functions.append(
                helper.make_function(
                    "mine",
                    name,
                    ["a"],
                    ["b"],
                    [helper.make_node(other, ["a"], ["b"], domain="mine")],
                    [helper.make_opsetid("mine", 1)],
                )
            )
        with pytest.raises(ModelFileError, match="calls itself"):
            educe.load(tiny)

    def test_limits(self, tiny: onnx.ModelProto, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(tiny, path)
        with pytest.raises(LimitError, match="model_bytes is 10 bytes"):
            educe.load(path, limits=Limits(model_bytes=10))
        with pytest.raises(LimitError, match="model_bytes is 10 bytes"):
            educe.load(path.read_bytes(), limits=Limits(model_bytes=10))
        with pytest.raises(LimitError, match="model_bytes is 10 bytes"):
            educe.predictor(path, limits=Limits(model_bytes=10))
        with pytest.raises(LimitError, match="num_nodes is 1 nodes"):
            educe.load(path, limits=Limits(num_nodes=1))


class TestExternalData:
    """Weights beside the file: read where they are, and only beneath the model's folder."""

    def _save(self, folder: Path, **entries: str) -> Path:
        proto = tiny_model()
        tensor = proto.graph.initializer[0]
        (folder / "weights.bin").write_bytes(b"\0" * 8 + tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "weights.bin", "offset": "8", "length": "24", **entries}.items():
            tensor.external_data.add(key=key, value=value)
        path = folder / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    def test_read_in_place(self, tmp_path: Path) -> None:
        path = self._save(tmp_path)
        model = educe.load(path)
        x = np.ones((1, 3), np.float32)
        assert educe.compile(model).run({"x": x})["y"].tolist() == [[0.0, 3.0]]
        assert model.size_bytes == path.stat().st_size + 24
        weights = (tmp_path / "weights.bin").read_bytes()[8:]
        assert model.sha256 == hashlib.sha256(path.read_bytes() + weights).hexdigest()

    @pytest.mark.parametrize(
        "location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "..\\w", ""]
    )
    def test_outside_the_folder(self, tmp_path: Path, location: str) -> None:
        path = self._save(tmp_path, location=location)
        with pytest.raises(ModelFileError, match="not beneath the model's own folder") as caught:
            educe.load(path)
        assert caught.value.place == "initializer 'w'"

    def test_through_a_link(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        inside = tmp_path / "inside"
        inside.mkdir()
        path = self._save(inside, location="link.bin")
        (outside / "secret.bin").write_bytes(b"\0" * 64)
        (inside / "link.bin").symlink_to(outside / "secret.bin")
        with pytest.raises(ModelFileError, match="symbolic link"):
            educe.load(path)
        (inside / "folder").symlink_to(outside)
        with pytest.raises(ModelFileError, match="symbolic link"):
            educe.load(self._save(inside, location="folder/secret.bin"))

    @pytest.mark.parametrize(
        ("entries", "cause"),
        [
            ({"location": "absent.bin"}, "cannot be opened"),
            ({"offset": "9"}, "takes 24 bytes"),
            ({"offset": "-1"}, "no size"),
            ({"length": "23"}, "names 23"),
            ({"length": "99999999999999999"}, "takes 24 bytes"),
            ({"offset": "1" * 40}, "no size"),
            ({"evil": "1"}, "malformed"),
        ],
    )
    def test_malformed(self, tmp_path: Path, entries: dict[str, str], cause: str) -> None:
        with pytest.raises(ModelFileError, match=cause) as caught:
            educe.load(self._save(tmp_path, **entries))
        assert caught.value.path

    def test_from_bytes(self, tmp_path: Path) -> None:
        content = self._save(tmp_path).read_bytes()
        with pytest.raises(ModelFileError, match="did not come from a folder"):
            educe.load(content)

    def test_limit(self, tmp_path: Path) -> None:
        with pytest.raises(LimitError, match="external_bytes"):
            educe.load(self._save(tmp_path), limits=Limits(external_bytes=10))


def test_tensor_types_tell_what_does_not_fit() -> None:
    kind = TensorType("f32", ("N", 3))
    assert kind.mismatch(np.zeros((5, 3), np.float32)) is None
    assert kind.mismatch(np.zeros((5, 4), np.float32)) == (
        "expected 3 in dimension 1 of f32[N,3], found [5, 4]"
    )
    assert kind.mismatch(np.zeros((5, 3), np.int64)) == "expected f32[N,3], found i64[5, 3]"
    assert kind.mismatch(np.zeros(3, np.float32)) == "expected 2 dimensions f32[N,3], found [3]"
