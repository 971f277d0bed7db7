"""Operators that move elements, against the ONNX project's own evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from educe.compiler.folding import fold
from educe.compiler.host import HostCall
from educe.compiler.operators.base import Call
from educe.errors import EduceError, EngineError
from tests.compiler.models import model, native

RANDOM = np.random.default_rng(7)
DTYPES = (np.float32, np.float64, np.float16, np.int8, np.uint16, np.int64, np.bool_)


def filled(shape, dtype=np.float32):
    if dtype == np.bool_:
        return RANDOM.integers(0, 2, shape).astype(bool)
    return RANDOM.integers(-100, 100, shape).astype(dtype)


def element(array):
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def reference(node, opset, given):
    graph = helper.make_graph(
        [node],
        "reference",
        [helper.make_tensor_value_info(name, element(array), None) for name, array in given.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.reference.ReferenceEvaluator(made).run(None, given)


def transposed(array):
    """The array whose transpose is `array`, contiguous."""
    return np.ascontiguousarray(array.T)


def check(operator, *inputs, known=(), outputs=1, opset=21, expected=None, compiled=True, **attributes):
    """Run a node on `inputs`, those in `known` as weights: on arrays, on a transposed view, lazily."""
    names = [f"i{number}" for number in range(len(inputs))]
    given = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    wired = [name if name in given else "" for name in names]
    results = [f"o{number}" for number in range(outputs)]
    node = helper.make_node(operator, wired, results, **attributes)
    expected = reference(node, opset, given) if expected is None else expected
    weights = {names[number]: inputs[number] for number in known}
    fed = {name: array for name, array in given.items() if name not in weights}
    for way in ("plain", "turned", "lazy"):
        nodes, feeds = [node], dict(fed)
        if way == "turned":
            first = next(iter(fed))
            nodes = [helper.make_node("Transpose", ["turned"], [first]), node]
            feeds["turned"] = transposed(feeds.pop(first))
        if way == "lazy":
            nodes = [
                helper.make_node("Where", ["yes", f"given_{name}", f"given_{name}"], [name]) for name in fed
            ]
            nodes.append(node)
            feeds = {f"given_{name}": array for name, array in fed.items()}
            weights = {**weights, "yes": np.array(True)}
        declared = {name: (element(array), list(array.shape)) for name, array in feeds.items()}
        executable = native(model(nodes, declared, results, weights, opset))
        found = executable.run(feeds)
        for name, right in zip(results, expected, strict=True):
            assert found[name].dtype == right.dtype
            np.testing.assert_array_equal(found[name], right)
        if compiled:
            assert all(each.step is None or each.step.call is None for each in executable.program(feeds))


def test_elements_of_every_type_are_gathered():
    for dtype in DTYPES:
        x = filled((5, 7, 9), dtype)
        check("Gather", x, np.array([[4, -1], [0, -5]]), axis=0)
        check("Gather", x, np.array([2, 2, -7, 6], np.int32), axis=1)
        check("Gather", x, RANDOM.integers(-9, 9, (3, 41)), axis=-1)
        inside = RANDOM.integers(-7, 7, (4, 3, 8))
        wanted = np.take_along_axis(x[:4, :, :8], inside, 1)
        check("GatherElements", x, inside, axis=1, expected=[wanted])
        check("GatherElements", x, RANDOM.integers(-9, 9, (5, 7, 37)).astype(np.int32), axis=2)


def test_known_indices_are_views():
    x = filled((3, 4, 5))
    for indices in (
        np.array(1),
        np.array([-1]),
        np.array([3, 2, 1, 0]),
        np.array([0, 3, 1]),
        np.zeros((0,), int),
    ):
        check("Gather", x, indices, known=[1], axis=1)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_tuples_of_indices_are_gathered(batch):
    x = filled((3, 4, 5, 6))
    for depth in range(1, 5 - batch):
        bounds = x.shape[batch : batch + depth]
        shape = (*x.shape[:batch], 7)
        indices = np.stack([RANDOM.integers(-bound, bound, shape) for bound in bounds], -1)
        check("GatherND", x, indices, batch_dims=batch)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_updates_are_scattered_in_the_order_of_indices(reduction):
    for dtype in (np.float32, np.float64, np.int32, np.int64):
        x = filled((6, 5, 35), dtype)
        for axis in range(3):
            shape = [4, 3, 33]
            indices = RANDOM.integers(-x.shape[axis], x.shape[axis], shape)
            if reduction == "none":
                indices = np.argsort(RANDOM.random(shape), axis)
            check("ScatterElements", x, indices, filled(shape, dtype) // 10, axis=axis, reduction=reduction)
        places = RANDOM.permutation(30)[:9]
        indices = np.stack(np.unravel_index(places, (6, 5)), -1) - [6, 0]
        if reduction != "none":
            indices[3:6] = indices[0]
        check("ScatterND", x, indices, filled((9, 35), dtype) // 10, reduction=reduction)


def test_later_updates_win():
    x, indices = np.zeros((4, 3), np.float32), np.array([[1], [1], [-3]])
    updates = np.arange(9, dtype=np.float32).reshape(3, 3)
    right = x.copy()
    right[1] = updates[2]
    check("ScatterND", x, indices, updates, expected=[right])
    check("ScatterElements", x, np.ones((3, 3), int), updates, axis=0, expected=[right])


CHECKED = {
    "rows": ("Gather", (60, 400), (200,), None),
    "elements": ("Gather", (6000,), (9001,), None),
    "GatherElements": ("GatherElements", (60, 400), (50, 400), None),
    "GatherND": ("GatherND", (60, 400), (200, 1), None),
    "ScatterElements": ("ScatterElements", (60, 400), (50, 400), (50, 400)),
    "ScatterND": ("ScatterND", (60, 4000), (30, 1), (30, 4000)),
    "TensorScatter": ("TensorScatter", (60, 9, 400), (60,), (60, 1, 400)),
    "ReverseSequence": ("ReverseSequence", (60, 9, 400), (9,), None),
}
"""An operator and the shapes of its tensor, of its indices, and of its updates."""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CHECKED)
def test_an_index_outside_is_an_error_of_its_node(case, threads, monkeypatch):
    operator, *shapes = CHECKED[case]
    x, indices = filled(shapes[0]), np.ones(shapes[1], np.int64)
    feeds = {"x": x, "i": indices}
    if shapes[2] is not None:
        feeds["u"] = filled(shapes[2])
    wired = ["n", "u", "i"] if operator == "TensorScatter" else ["n", *list(feeds)[1:]]
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node(operator, wired, ["m"], "culprit"),
        helper.make_node("Neg", ["m"], ["y"]),
    ]
    declared = {name: (element(array), list(array.shape)) for name, array in feeds.items()}
    far = (x.size, 2**62) if operator == "ReverseSequence" else (x.size, 2**62, -(2**62))
    for guard in ("", "1"):
        monkeypatch.setenv("EDUCE_GUARD", guard)
        executable = native(model(nodes, declared, ["y"], opset=24), threads=threads)
        right = executable.run(feeds)["y"]
        for place in (0, indices.size // 2, indices.size - 1):
            for index in far:
                outside = indices.copy()
                outside.flat[place] = index
                for _ in range(2):
                    with pytest.raises(EngineError) as caught:
                        executable.run({**feeds, "i": outside})
                    assert caught.value.place == f"node 'culprit' ({operator})"
                np.testing.assert_array_equal(executable.run(feeds)["y"], right)


def test_the_first_of_the_nodes_that_meet_an_index_outside_is_named():
    nodes = [
        helper.make_node("GatherElements", ["i", "i"], ["j"], "first"),
        helper.make_node("GatherElements", ["x", "j"], ["y"], "second"),
    ]
    executable = native(model(nodes, {"x": (1, [8]), "i": (7, [9])}, ["y"]))
    x, inside = filled(8), np.array([0, -2, 3, 4, 2, 1, 0, 7, -9])
    np.testing.assert_array_equal(executable.run({"x": x, "i": inside})["y"], x[inside[inside]])
    for index, name in ((9, "first"), (8, "second"), (-10, "first")):
        with pytest.raises(EngineError) as caught:
            executable.run({"x": x, "i": np.array([0, 1, 2, 3, 4, 5, 6, 7, index])})
        assert caught.value.place == f"node {name!r} (GatherElements)"


def test_a_program_of_many_segments_names_the_node():
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Gather", ["places", "i"], ["y"], "culprit", axis=1),
    ]
    executable = native(model(nodes, {"x": (1, [7]), "i": (7, [3])}, ["y"]))
    x = np.array([1, 0, 1, 1, 0, 0, 1], np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(executable.run({"x": x, "i": np.array([3, 0, -4])})["y"], [[6, 0, 0]])
        with pytest.raises(EngineError, match="an index is out of range") as caught:
            executable.run({"x": x, "i": np.array([3, 4, 0])})
        assert caught.value.place == "node 'culprit' (Gather)"


def test_slices_are_views():
    x = filled((7, 9, 11))
    big = 2**63 - 1
    for starts, ends, axes, steps in (
        ([1, 2], [5, big], [0, 2], [2, 3]),
        ([-1, 8], [-big, 0], [0, 1], [-1, -3]),
        ([3], [3], [1], [1]),
        ([big, -100], [-100, big], [-1, -2], [-2, 1]),
    ):
        parts = [np.array(each, np.int64) for each in (starts, ends, axes, steps)]
        check("Slice", x, *parts, known=[1, 2, 3, 4])
        check("Slice", x, *parts)


def test_slices_cost_nothing():
    nodes = [
        helper.make_node("Slice", ["x", "first", "last", "axes", "steps"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0]),
        helper.make_node("Split", ["t"], ["a", "b"], axis=0, num_outputs=2),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    weights = {"first": [-1], "last": [-100], "axes": [0], "steps": [-2]}
    weights = {name: np.array(value) for name, value in weights.items()}
    executable = native(model(nodes, {"x": (1, [9, 8])}, ["y"], weights))
    x = filled((9, 8))
    view = x[::-2].T
    assert np.array_equal(executable.run({"x": x})["y"], view[:4] + view[4:])
    (segment,) = executable.program({"x": x})
    assert len(segment.launches) == 1


def test_parts():
    x = filled((5, 11))
    check("Split", x, outputs=3, axis=1, num_outputs=3)
    check("Split", x, np.array([2, 0, 9]), known=[1], outputs=3, axis=-1)
    check("Concat", x, filled((5, 3)), filled((5, 0)), axis=1)
    check("Concat", x, filled((2, 11)), x, axis=-2)
    check("Tile", x, np.array([2, 3]), known=[1])
    check("Tile", filled((2, 3, 4, 5)), np.array([2, 1, 2, 2]), known=[1])
    check("Tile", x, np.array([0, 1]), known=[1])
    check("Expand", filled((5, 1)), np.array([2, 1, 4]), known=[1])
    check("Unsqueeze", x, np.array([-1, 0]), known=[1])
    check("Squeeze", filled((1, 4, 1)), known=[])
    check("Flatten", filled((2, 3, 4)), axis=-1)
    check("Reshape", filled((2, 3, 4)), np.array([0, -1]), known=[1])
    check("Size", x)


def test_an_expression_is_computed_in_its_place():
    nodes = [
        helper.make_node("Sqrt", ["x"], ["s"]),
        helper.make_node("Relu", ["z"], ["r"]),
        helper.make_node("Concat", ["r", "s", "r"], ["y"], axis=0),
    ]
    executable = native(model(nodes, {"x": (1, ["n", 5]), "z": (1, ["m", 5])}, ["y"]))
    x, z = abs(filled((3, 5))), filled((4, 5))
    feeds = {"x": x, "z": z}
    wanted = np.concatenate([np.maximum(z, 0), np.sqrt(x), np.maximum(z, 0)])
    np.testing.assert_array_equal(executable.run(feeds)["y"], wanted)
    (segment,) = executable.program(feeds)
    assert len(segment.launches) == 4


def test_a_part_does_not_lie_where_its_source_was():
    """The second part of the output starts inside the memory of its source, which ends its life there."""
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("Split", ["e"], ["a", "b"], axis=0, num_outputs=2),
        helper.make_node("Concat", ["none", "b", "a"], ["c"], axis=0),
        helper.make_node("Pad", ["c", "pads"], ["p"]),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    weights = {"none": np.zeros((0, 3), np.float32), "pads": np.array([2, 0, -4, 0])}
    executable = native(model(nodes, {"x": (1, [600, 3])}, ["y"], weights))
    x = filled((600, 3)) / 50
    e = np.exp(x)
    wanted = np.pad(np.concatenate([e[300:], e[:300]])[:-4], [(2, 0), (0, 0)])
    np.testing.assert_allclose(executable.run({"x": x})["y"], wanted, rtol=1e-5)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_padding(mode):
    for dtype in (np.float32, np.int8):
        x = filled((3, 5, 6), dtype)
        check("Pad", x, np.array([0, 2, 1, 0, 3, 4]), known=[1], mode=mode)
        check("Pad", x, np.array([1, 7, 0, 9]), None, np.array([-1, 0]), known=[1, 3], mode=mode)
    value = np.array(5, np.int8)
    check("Pad", x, np.array([0, 2, 1, 0, 3, 4]), value, known=[1], mode="constant")
    x = filled((4, 9))
    check("Pad", x, np.array([-1, 2, 1, -3]), known=[1], expected=[np.pad(x[1:, :-3], [(0, 1), (2, 0)])])


def test_pictures_and_depth():
    x = filled((2, 12, 3, 5))
    check("DepthToSpace", x, blocksize=2)
    check("DepthToSpace", x, blocksize=2, mode="CRD")
    check("SpaceToDepth", filled((2, 3, 6, 4)), blocksize=2)
    check("CenterCropPad", filled((9, 4, 3)), np.array([6, 7]), known=[1], axes=[0, 1])
    columns = filled((1, 2 * 2 * 3, 3 * 4))
    shapes = np.array([5, 9]), np.array([2, 3])
    check("Col2Im", columns, *shapes, known=[1, 2], strides=[2, 2], pads=[1, 0, 0, 0])


def test_sequences_are_reversed():
    for dtype in (np.float32, np.int64):
        x = filled((4, 6, 19), dtype)
        check("ReverseSequence", x, np.array([1, 4, 0, 2, 3, 4]), time_axis=0, batch_axis=1)
        check("ReverseSequence", x, np.array([6, 1, 3, 5]), time_axis=1, batch_axis=0)


def test_caches_are_written_where_each_sequence_goes_on():
    cache, update = filled((3, 2, 8, 5)), filled((3, 2, 4, 5))
    starts = np.array([0, 4, 2])
    check("TensorScatter", cache, update, starts, opset=24)
    check("TensorScatter", cache, update, np.array([6, 7, 1]), opset=24, mode="circular")


def test_triangles_and_diagonals():
    for dtype in (np.float32, np.int64, np.bool_):
        x = filled((2, 5, 7), dtype)
        for k in (-6, -1, 0, 2, 8):
            check("Trilu", x, np.array(k), known=[1], upper=1)
            check("Trilu", x, np.array(k), upper=0)
    for k in (-4, 0, 3, 9):
        check("EyeLike", filled((5, 7)), k=k, dtype=onnx.TensorProto.INT32)


def test_one_of_many():
    for dtype in (np.int64, np.int32, np.float32):
        indices = RANDOM.integers(-5, 5, (3, 4)).astype(dtype)
        values = np.array([2, 7], np.int32)
        for axis in (-1, 0, 1):
            check("OneHot", indices, np.array(5), values, known=[1], axis=axis)
    outside = np.array([5, -6, 1])
    check("OneHot", outside, np.array(5), np.array([0, 1.0]), expected=[np.eye(7)[[6, 6, 1], :5]])


def test_what_sizes_depend_on_is_looked_at():
    x, condition = filled((6, 5)), np.array([True, False, True, True])
    check("Compress", x, condition, axis=0)
    check("Compress", x, condition)
    check("Range", np.array(3), np.array(20), np.array(4))
    check("Range", *(np.array(each, np.float32) for each in (3, -2, -0.75)))
    check("ConstantOfShape", np.array([3, 0, 2]))
    check("NonZero", x, compiled=False)


def test_a_row_does_not_depend_on_its_batch():
    x = filled((64, 70))
    node = helper.make_node("Gather", ["x", "i"], ["y"], axis=1)
    executable = native(model([node], {"x": (1, ["n", 70]), "i": (7, ["m"])}, ["y"]))
    indices = RANDOM.integers(-70, 70, 50)
    whole = executable.run({"x": x, "i": indices})["y"]
    for row in (0, 31, 63):
        assert np.array_equal(
            executable.run({"x": x[row : row + 1], "i": indices})["y"], whole[row : row + 1]
        )


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"),
    [
        ("Gather", [(3, 4), np.array([5])], {}),
        ("Reshape", [(3, 4), np.array([5, -1])], {}),
        ("Slice", [(3, 4), np.array([0]), np.array([1]), np.array([0]), np.array([0])], {}),
        ("Split", [(3, 4), np.array([1, 1])], {}),
        ("Expand", [(3, 4), np.array([2, 4])], {}),
        ("Squeeze", [(3, 4), np.array([0])], {}),
        ("Tile", [(3, 4), np.array([2])], {}),
    ],
)
def test_what_has_no_answer_is_refused(operator, inputs, attributes):
    outputs = ["y", "z"] if operator == "Split" else ["y"]
    names = [f"i{number}" for number in range(len(inputs))]
    node = helper.make_node(operator, names, outputs, **attributes)
    weights = dict(zip(names[1:], inputs[1:], strict=True))
    with pytest.raises(EduceError):
        native(model([node], {"i0": (1, ["n", "m"])}, outputs, weights)).run({"i0": filled(inputs[0])})


def folded(operator, *inputs, **attributes):
    node = helper.make_node(operator, [f"i{number}" for number in range(len(inputs))], ["y"], **attributes)
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    for name, value in attributes.items():
        attributes[name] = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    (right,) = HostCall(onnx_node(node), {"": 21})(inputs)
    found = fold(Call(operator, "", 21, attributes), inputs)
    assert isinstance(found, np.ndarray)
    assert found.dtype == right.dtype
    np.testing.assert_array_equal(found, right)


def onnx_node(node):
    import onnx_ir as ir

    return ir.serde.deserialize_node(node)


def test_known_values_are_folded_as_the_evaluator_computes_them():
    x, y = filled((4, 3), np.int64), filled((3,), np.int64)
    for operator in ("Add", "Sub", "Mul", "Equal", "Less", "Greater"):
        folded(operator, x, y)
        folded(operator, x.astype(np.float32), y.astype(np.float32))
    folded("Div", x, np.array([7, -3, 2]))
    folded("Div", x.astype(np.float32), np.array([7, 0, 2], np.float32))
    for operator in ("Max", "Min"):
        folded(operator, x, y, np.array(4))
    folded("Where", x > 0, x, y)
    folded("Not", x > 0)
    folded("Not", np.array(True))
    for to in (onnx.TensorProto.INT32, onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL):
        folded("Cast", x, to=to)
    folded("Gather", x, np.array([[-1, 0]]), axis=1)
    folded("Gather", y, np.array(2))
    folded("Concat", x, x, axis=-1)
    folded("Unsqueeze", x, np.array([0, -1]))
    folded("Squeeze", x[None, :, None], np.array([0]))
    folded("Squeeze", x[None, :, None])
    folded("Slice", x, np.array([-1]), np.array([-100]), np.array([0]), np.array([-1]))
    folded("Slice", x, np.array([0, 1]), np.array([9, 2]))
    folded("Reshape", x, np.array([2, 0, -1]))
    folded("Transpose", x)
    folded("Expand", y, np.array([2, 1, 1]))
    folded("ConstantOfShape", np.array([2, 3]))
    folded("ConstantOfShape", np.array([], np.int64), value=helper.make_tensor("v", 7, [1], [3]))
    folded("Range", np.array(9), np.array(-2), np.array(-3))
    folded("Shape", x, start=-1)
    folded("NonZero", x)


@pytest.mark.parametrize("indices", [[[0, 2, -1]], [[1], [0]], [[3, 0], [1, 1]]])
def test_known_elements_are_gathered_at_fewer_places_than_there_are(indices):
    x, indices = np.arange(16).reshape(4, 4), np.array(indices)
    node = helper.make_node("GatherElements", ["x", "i"], ["g"], axis=1)
    add = helper.make_node("Add", ["g", "y"], ["z"])
    shape = indices.shape
    executable = native(model([node, add], {"y": (7, shape)}, ["z"], {"x": x, "i": indices}))
    rows = np.arange(len(indices))[:, None]
    np.testing.assert_array_equal(executable.run({"y": np.ones(shape, np.int64)})["z"], x[rows, indices] + 1)


def test_a_look_at_sizes_keeps_an_expression_whole():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Sqrt", ["r"], ["q"]),
        helper.make_node("Reshape", ["q", "s"], ["y"]),
    ]
    executable = native(model(nodes, {"x": (1, ["n", 5])}, ["y"]))
    x = filled((3, 5))
    np.testing.assert_array_equal(executable.run({"x": x})["y"], np.sqrt(np.maximum(x, 0)))
    (segment,) = executable.program({"x": x})
    assert len(segment.launches) == 1


def test_new_sizes_leave_no_constants():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Add", ["s", "one"], ["t"]),
        helper.make_node("ConstantOfShape", ["t"], ["y"]),
    ]
    weights = {"one": np.array([1, 1])}
    executable = native(model(nodes, {"x": (1, ["n", "m"])}, ["y"], weights))
    sizes = set()
    for rows in range(1, 9):
        assert executable.run({"x": np.ones((rows, 3), np.float32)})["y"].shape == (rows + 1, 4)
        sizes.add(executable.executor.code.constants.size_bytes)
    assert len(sizes) == 1


def test_copies_in_tiles():
    for dtype in (np.float32, np.float64, np.float16, np.uint8):
        for shape, perm in (
            ((37, 50), (1, 0)),
            ((16, 16), (1, 0)),
            ((3, 20, 5, 70), (3, 0, 2, 1)),
            ((2, 19, 33, 4), (0, 2, 1, 3)),
            ((2, 33, 17), (0, 2, 1)),
            ((2, 41, 43, 3), (0, 3, 1, 2)),
            ((2, 3, 41, 43), (0, 2, 3, 1)),
            ((5, 19, 2), (2, 0, 1)),
            ((6, 100, 5), (0, 2, 1)),
            ((7, 5000), (1, 0)),
        ):
            x = filled(shape, dtype)
            check("Transpose", x, perm=perm)


def test_an_empty_tensor_is_passed_on_by_a_segment_without_launches():
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["r"], ["places"]),
        helper.make_node("Concat", ["r", "z"], ["y"], axis=0),
    ]
    made = model(nodes, {"x": (1, ["n"]), "z": (1, ["m"])}, ["places", "y"])
    found = native(made).run({"x": np.zeros(0, np.float32), "z": np.ones(3, np.float32)})
    assert found["places"].shape == (1, 0)
    assert np.array_equal(found["y"], np.ones(3))


def test_parts_with_their_channels_last_are_joined_so():
    nodes = [
        helper.make_node("Transpose", ["a"], ["at"], perm=[0, 3, 1, 2]),
        helper.make_node("Transpose", ["b"], ["bt"], perm=[0, 3, 1, 2]),
        helper.make_node("Concat", ["at", "bt"], ["c"], axis=1),
        helper.make_node("Pad", ["c", "pads"], ["p"]),
        helper.make_node("Transpose", ["p"], ["y"], perm=[0, 2, 3, 1]),
    ]
    weights = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    a, b = filled((1, 5, 6, 40)), filled((1, 5, 6, 24))
    declared = {name: (1, list(array.shape)) for name, array in (("a", a), ("b", b))}
    executable = native(model(nodes, declared, ["y"], weights))
    wanted = np.pad(np.concatenate([a, b], -1), [(0, 0), (1, 1), (1, 1), (0, 0)])
    assert np.array_equal(executable.run({"a": a, "b": b})["y"], wanted)
    (segment,) = executable.program({"a": a, "b": b})
    assert all(each.kernel.template == "pointwise" for each in segment.launches)


def test_products_are_computed_in_their_place():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("Sub", ["c", "a"], ["s"]),
        helper.make_node("Concat", ["s", "r", "c"], ["y"], axis=1),
        helper.make_node("MatMul", ["m", "n"], ["p"]),
        helper.make_node("Concat", ["p", "p"], ["q"], axis=0),
        helper.make_node("MatMul", ["m", "n"], ["o"]),
        helper.make_node("Concat", ["m", "o"], ["z"], axis=1),
    ]
    x, c, m = filled((2, 8, 5, 6)), filled((2, 24, 5, 6)), filled((3, 4))
    weights = {"w": filled((24, 8, 1, 1)), "v": filled((16, 8, 1, 1)), "n": filled((4, 5))}
    feeds = {"x": x, "c": c, "m": m}
    declared = {name: (1, list(array.shape)) for name, array in feeds.items()}
    executable = native(model(nodes, declared, ["y", "q", "z"], weights))
    found = executable.run(feeds)
    a, b = (np.einsum("nchw,oc->nohw", x, weights[name][:, :, 0, 0]) for name in ("w", "v"))
    np.testing.assert_array_equal(found["y"], np.concatenate([c - a, np.maximum(b, 0), c], 1))
    np.testing.assert_array_equal(found["q"], np.concatenate([m @ weights["n"]] * 2))
    np.testing.assert_array_equal(found["z"], np.concatenate([m, m @ weights["n"]], 1))


class Chain:
    """A random graph of operators that move elements, with expressions between them."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], {}
        self.values = {"x": self.random.integers(-50, 50, (4, 5, 6)).astype(np.float32)}
        for step in range(14):
            self.add(f"v{step}")

    def add(self, name):
        source = str(self.random.choice(list(self.values)))
        x = self.values[source]
        kind = self.random.choice(["view", "slice", "concat", "pad", "gather", "single", "sum", "split"])
        if kind == "view":
            perm = self.random.permutation(x.ndim).tolist()
            self.put("Transpose", [source], name, x.transpose(perm), perm=perm)
        elif kind == "slice":
            axis, step = int(self.random.integers(x.ndim)), int(self.random.choice([-2, -1, 1, 2]))
            start, stop = (1, 10**6) if step > 0 else (-1, -(10**6))
            parts = [
                self.weight(name + key, [value])
                for key, value in zip("abcd", (start, stop, axis, step), strict=True)
            ]
            self.put("Slice", [source, *parts], name, x[(slice(None),) * axis + (slice(start, stop, step),)])
        elif kind == "concat":
            same = [key for key, value in self.values.items() if value.shape == x.shape]
            others = [str(each) for each in self.random.choice(same, 2)]
            axis = int(self.random.integers(x.ndim))
            joined = np.concatenate([x, *(self.values[each] for each in others)], axis)
            self.put("Concat", [source, *others], name, joined, axis=axis)
        elif kind == "pad":
            widths = self.random.integers(0, 2, (x.ndim, 2))
            pads = self.weight(name + "pads", widths.T.ravel())
            mode = str(self.random.choice(["constant", "edge"]))
            self.put("Pad", [source, pads], name, np.pad(x, widths, mode=mode), mode=mode)
        elif kind == "gather":
            axis = int(self.random.integers(x.ndim))
            indices = self.random.integers(-x.shape[axis], x.shape[axis], 3)
            chosen = self.weight(name + "i", indices)
            self.put("Gather", [source, chosen], name, x.take(indices, axis), axis=axis)
        elif kind == "single":
            self.put("Relu", [source], name, np.maximum(x, 0))
        elif kind == "sum":
            other = str(
                self.random.choice([key for key, value in self.values.items() if value.shape == x.shape])
            )
            self.put("Sub", [source, other], name, x - self.values[other])
        else:
            axis = int(self.random.integers(x.ndim))
            half = -(-x.shape[axis] // 2)
            self.nodes.append(
                helper.make_node("Split", [source], [name, name + "rest"], axis=axis, num_outputs=2)
            )
            self.values[name], self.values[name + "rest"] = np.split(x, [half], axis)
        self.values = {key: value for key, value in self.values.items() if 0 < value.size < 3000}

    def weight(self, name, values):
        self.weights[name] = np.array(values, np.int64)
        return name

    def put(self, operator, inputs, name, value, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        self.values[name] = value


@pytest.mark.parametrize("seed", range(40))
def test_random_chains(seed):
    chain = Chain(seed)
    x = chain.values.pop("x")
    made = model(chain.nodes, {"x": (1, list(x.shape))}, list(chain.values), chain.weights)
    last = list(chain.values)[-1:]
    for outputs in (list(chain.values), last):
        made = model(chain.nodes, {"x": (1, list(x.shape))}, outputs, chain.weights)
        found = native(made).run({"x": x})
        for name in outputs:
            np.testing.assert_array_equal(found[name], chain.values[name], err_msg=name)


def test_threads_share_the_work():
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("Gather", ["t", "i"], ["g"], axis=0),
        helper.make_node("GatherElements", ["x", "j"], ["e"], axis=1),
        helper.make_node("ScatterElements", ["x", "j", "e"], ["s"], axis=1, reduction="add"),
        helper.make_node("Concat", ["s", "x", "g"], ["y"], axis=0),
    ]
    x = RANDOM.standard_normal((700, 700), np.float32)
    feeds = {"x": x, "i": RANDOM.integers(0, 700, 900), "j": RANDOM.integers(0, 700, (700, 500))}
    declared = {name: (element(array), list(array.shape)) for name, array in feeds.items()}
    made = model(nodes, declared, ["y"])
    alone = native(made, threads=1).run(feeds)["y"]
    np.testing.assert_array_equal(alone[1400:], x.T[feeds["i"]])
    for threads in (2, 3):
        assert np.array_equal(native(made, threads=threads).run(feeds)["y"], alone)
