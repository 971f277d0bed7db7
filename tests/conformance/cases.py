"""The cases that every engine runs: a small model, random inputs, and what plain NumPy says of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from educe.model.signature import NUMPY_TYPES

OPSET = 21
Expected = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One model with one or several sets of inputs.

    Attributes:
        shapes: For each run, the shape of every random input, or the value itself.
        expected: The outputs, from the inputs in their order; the reference engine judges if absent.
        tolerance: Largest difference, relative to the largest expected value.
    """

    name: str
    model: onnx.ModelProto
    shapes: tuple[dict[str, Any], ...]
    expected: Expected | None
    tolerance: float = 1e-5

    def feeds(self, seed: int = 0) -> list[dict[str, Any]]:
        """Return random inputs for every run."""
        rng = np.random.default_rng([seed, *self.name.encode()])
        types = {value.name: value.type for value in self.model.graph.input}
        return [
            {
                name: random_array(rng, given, types[name]) if type(given) is tuple else given
                for name, given in run.items()
            }
            for run in self.shapes
        ]


def random_array(rng: np.random.Generator, shape: tuple[int, ...], value_type: onnx.TypeProto) -> np.ndarray:
    """Return an array of small numbers, exact in every type, or of words."""
    if value_type.tensor_type.elem_type == TensorProto.STRING:
        return np.array(["", "a", "zwölf", "日本", "word"], object)[rng.integers(0, 5, shape)]
    dtype = ir.DataType(value_type.tensor_type.elem_type).numpy()
    if dtype in (np.float32, np.float64):
        return rng.standard_normal(shape).astype(dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    low = 0 if dtype.name.startswith("uint") else -7
    return rng.integers(low, 8, shape).astype(dtype)


def value_info(name: str, text: str) -> onnx.ValueInfoProto:
    """Return a graph input or output of a type in Educe's own notation, such as ``f32[N,3]``."""
    return helper.make_value_info(name, _type(text))


def _type(text: str) -> onnx.TypeProto:
    outer = re.fullmatch(r"(sequence|optional)\((.*)\)", text)
    if outer:
        make = helper.make_sequence_type_proto if outer[1] == "sequence" else helper.make_optional_type_proto
        return make(_type(outer[2]))
    found = re.fullmatch(r"(\w+)\[(.*)\]", text)
    assert found, text
    element = TensorProto.STRING if found[1] == "str" else ir.DataType.from_numpy(NUMPY_TYPES[found[1]]).value
    if found[2] == "...":
        return helper.make_tensor_type_proto(element, None)
    dims = [int(dim) if dim.isdecimal() else dim for dim in found[2].split(",") if dim]
    return helper.make_tensor_type_proto(element, dims)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, str],
    outputs: dict[str, str],
    weights: dict[str, np.ndarray] | None = None,
    name: str = "graph",
) -> onnx.GraphProto:
    """Return a graph with inputs and outputs in Educe's notation."""
    return helper.make_graph(
        list(nodes),
        name,
        [value_info(key, text) for key, text in inputs.items()],
        [value_info(key, text) for key, text in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), key) for key, array in (weights or {}).items()],
    )


def model(*args: Any, functions: Sequence[onnx.FunctionProto] = (), **kwargs: Any) -> onnx.ModelProto:
    """Return a model of `graph(...)` with the domains that the cases use."""
    domains = {"": OPSET, "ai.onnx.ml": 3, "com.microsoft": 1} | {entry.domain: 1 for entry in functions}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(
        graph(*args, **kwargs), opset_imports=imports, functions=list(functions), ir_version=10
    )


def case(
    name: str,
    nodes: onnx.NodeProto | Sequence[onnx.NodeProto],
    inputs: dict[str, str],
    outputs: dict[str, str],
    shapes: dict[str, Any] | Sequence[dict[str, Any]],
    expected: Expected | None = None,
    weights: dict[str, np.ndarray] | None = None,
    tolerance: float = 1e-5,
    functions: Sequence[onnx.FunctionProto] = (),
) -> Case:
    """Return a case of one graph."""
    nodes = [nodes] if isinstance(nodes, onnx.NodeProto) else nodes
    runs = (shapes,) if isinstance(shapes, dict) else tuple(shapes)
    return Case(name, model(nodes, inputs, outputs, weights, functions=functions), runs, expected, tolerance)


def node(operator: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """Return a node whose inputs and outputs are the words given; ``_`` is an absent one."""
    domain, _, kind = operator.rpartition("::")
    names = ["" if name == "_" else name for name in inputs.split()]
    label = f"{kind}_{outputs.split()[0]}"
    return helper.make_node(kind, names, outputs.split(), name=label, domain=domain, **attributes)


_RNG = np.random.default_rng(7)
_W = {
    "dense": _RNG.standard_normal((6, 4)).astype(np.float32),
    "kernel": _RNG.standard_normal((5, 3, 3, 3)).astype(np.float32),
    "depthwise": _RNG.standard_normal((3, 1, 3, 3)).astype(np.float32),
    "large": _RNG.standard_normal((256, 300)).astype(np.float32),
}


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _convolution(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", windows, kernel)


def _pooled(x: np.ndarray) -> np.ndarray:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2)


def _batch_norm() -> Case:
    scale, bias = np.array([1, 2, 3], np.float32), np.array([0.5, 0, -1], np.float32)
    mean, var = np.array([0.1, 0.2, 0.3], np.float32), np.array([1, 4, 9], np.float32)

    def expected(x: np.ndarray) -> np.ndarray:
        wide = [array[:, None, None] for array in (scale, bias, mean, var)]
        return wide[0] * (x - wide[2]) / np.sqrt(wide[3] + 1e-5) + wide[1]

    return case(
        "batch-norm",
        node("BatchNormalization", "x scale bias mean var"),
        {"x": "f32[N,3,H,W]"},
        {"y": "f32[N,3,H,W]"},
        {"x": (2, 3, 4, 5)},
        expected,
        {"scale": scale, "bias": bias, "mean": mean, "var": var},
    )


def _arithmetic() -> list[Case]:
    cases = [
        case(
            f"{operator.lower()}-{dtype}",
            node(operator, "a b"),
            {"a": f"{dtype}[N,4]", "b": f"{dtype}[4]"},
            {"y": f"{dtype}[N,4]"},
            [{"a": (3, 4), "b": (4,)}, {"a": (1, 4), "b": (4,)}],
            function,
            tolerance=1e-2 if dtype in ("f16", "bf16") else 1e-5,
        )
        for dtype in ("f32", "f64", "f16", "i32", "i64", "u8")
        for operator, function in (("Add", np.add), ("Mul", np.multiply))
    ]
    return [
        *cases,
        case(
            "elementwise-chain",
            [node("Exp", "x", "e"), node("Tanh", "x", "t"), node("Sub", "e t", "d"), node("Sigmoid", "d")],
            {"x": "f32[N]"},
            {"y": "f32[N]"},
            [{"x": (1,)}, {"x": (1000,)}],
            lambda x: 1 / (1 + np.exp(-(np.exp(x) - np.tanh(x)))),
        ),
        case(
            "compare-and-where",
            [node("Greater", "a b", "c"), node("Where", "c a b", "y"), node("Not", "c", "n")],
            {"a": "f32[N]", "b": "f32[N]"},
            {"y": "f32[N]", "n": "bool[N]"},
            {"a": (50,), "b": (50,)},
            lambda a, b: [np.maximum(a, b), ~(a > b)],
        ),
        case(
            "logic",
            [node("And", "a b", "c"), node("Xor", "c b")],
            {"a": "bool[N]", "b": "bool[N]"},
            {"y": "bool[N]"},
            {"a": (50,), "b": (50,)},
            lambda a, b: (a & b) ^ b,
        ),
        case(
            "clip-with-absent-minimum",
            node("Clip", "x _ high"),
            {"x": "f32[N]"},
            {"y": "f32[N]"},
            {"x": (50,)},
            lambda x: np.minimum(x, np.float32(0.25)),
            {"high": np.float32(0.25)},
        ),
        case("rank-0", node("Neg", "x"), {"x": "f32[]"}, {"y": "f32[]"}, {"x": ()}, np.negative),
        case(
            "zero-size",
            [node("Relu", "x", "r"), node("Concat", "r r", "y", axis=0)],
            {"x": "f32[N,3]"},
            {"y": "f32[M,3]"},
            [{"x": (0, 3)}, {"x": (2, 3)}],
            lambda x: np.maximum(np.concatenate([x, x]), 0),
        ),
        case(
            "bfloat16",
            node("Identity", "x"),
            {"x": "bf16[N,3]"},
            {"y": "bf16[N,3]"},
            {"x": (4, 3)},
            lambda x: x,
        ),
    ]


def _layers() -> list[Case]:
    images = {"x": "f32[N,3,H,W]"}
    return [
        case(
            "gemm",
            node("Gemm", "x w b", alpha=0.5, transB=0),
            {"x": "f32[N,6]"},
            {"y": "f32[N,4]"},
            [{"x": (1, 6)}, {"x": (17, 6)}],
            lambda x: 0.5 * (x @ _W["dense"]) + 2,
            {"w": _W["dense"], "b": np.full(4, 2, np.float32)},
        ),
        case(
            "matmul-of-large-weight",
            node("MatMul", "x w"),
            {"x": "f32[N,256]"},
            {"y": "f32[N,300]"},
            [{"x": (1, 256)}, {"x": (9, 256)}],
            lambda x: x @ _W["large"],
            {"w": _W["large"]},
        ),
        case(
            "matmul-batched",
            node("MatMul", "a b"),
            {"a": "f32[B,N,K]", "b": "f32[B,K,M]"},
            {"y": "f32[B,N,M]"},
            [{"a": (2, 3, 4), "b": (2, 4, 5)}, {"a": (1, 1, 9), "b": (1, 9, 1)}],
            np.matmul,
        ),
        case(
            "matmul-integer",
            node("MatMulInteger", "a b"),
            {"a": "u8[N,K]", "b": "i8[K,M]"},
            {"y": "i32[N,M]"},
            {"a": (5, 7), "b": (7, 3)},
            lambda a, b: a.astype(np.int32) @ b.astype(np.int32),
        ),
        *(
            case(
                f"conv-stride-{stride}",
                node("Conv", "x w", pads=[1, 1, 1, 1], strides=[stride, stride]),
                images,
                {"y": "f32[N,5,P,Q]"},
                [{"x": (1, 3, 8, 8)}, {"x": (2, 3, 5, 6)}],
                lambda x, stride=stride: _convolution(x, _W["kernel"], stride),
                {"w": _W["kernel"]},
            )
            for stride in (1, 2)
        ),
        case(
            "conv-depthwise",
            node("Conv", "x w", pads=[1, 1, 1, 1], group=3),
            images,
            {"y": "f32[N,3,H,W]"},
            {"x": (2, 3, 8, 8)},
            lambda x: _convolution(x, np.eye(3)[:, :, None, None] * _W["depthwise"], 1),
            {"w": _W["depthwise"]},
        ),
        case(
            "max-pool",
            node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2]),
            images,
            {"y": "f32[N,3,P,Q]"},
            {"x": (2, 3, 8, 6)},
            lambda x: _pooled(x).max((3, 5)),
        ),
        case(
            "average-pool",
            [
                node("AveragePool", "x", "p", kernel_shape=[2, 2], strides=[2, 2]),
                node("GlobalAveragePool", "p"),
            ],
            images,
            {"y": "f32[N,3,1,1]"},
            {"x": (2, 3, 8, 6)},
            lambda x: x.mean((2, 3), keepdims=True),
        ),
        _batch_norm(),
        case(
            "softmax",
            node("Softmax", "x", axis=-1),
            {"x": "f32[N,K]"},
            {"y": "f32[N,K]"},
            [{"x": (3, 10)}, {"x": (1, 1)}],
            _softmax,
        ),
        case(
            "layer-norm",
            node("LayerNormalization", "x scale", epsilon=1e-5),
            {"x": "f32[N,8]"},
            {"y": "f32[N,8]"},
            {"x": (4, 8)},
            lambda x: 3 * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5),
            {"scale": np.full(8, 3, np.float32)},
            tolerance=1e-4,
        ),
        case(
            "lstm",
            node("LSTM", "x w r", "y h c", hidden_size=4),
            {"x": "f32[T,N,3]"},
            {"y": "f32[T,1,N,4]", "h": "f32[1,N,4]", "c": "f32[1,N,4]"},
            [{"x": (5, 2, 3)}, {"x": (1, 1, 3)}],
            None,
            {
                "w": _RNG.standard_normal((1, 16, 3)).astype(np.float32),
                "r": _RNG.standard_normal((1, 16, 4)).astype(np.float32),
            },
            tolerance=1e-4,
        ),
        case(
            "resize-nearest",
            node(
                "Resize",
                "x _ scales",
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            ),
            images,
            {"y": "f32[N,3,P,Q]"},
            {"x": (1, 3, 4, 5)},
            lambda x: x.repeat(2, 2).repeat(2, 3),
            {"scales": np.array([1, 1, 2, 2], np.float32)},
        ),
        case(
            "resize-linear",
            node("Resize", "x _ scales", mode="linear"),
            images,
            {"y": "f32[N,3,P,Q]"},
            {"x": (1, 3, 4, 5)},
            None,
            {"scales": np.array([1, 1, 1.5, 2], np.float32)},
            tolerance=1e-4,
        ),
    ]


def _reductions() -> list[Case]:
    functions = {"ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMean": np.mean, "ReduceProd": np.prod}
    return [
        *(
            case(
                operator.lower(),
                node(operator, "x axes", keepdims=0),
                {"x": "f32[N,4,5]"},
                {"y": "f32[N,5]"},
                {"x": (3, 4, 5)},
                lambda x, function=function: function(x, axis=1),
                {"axes": np.array([1])},
                tolerance=1e-4,
            )
            for operator, function in functions.items()
        ),
        case(
            "arg-max",
            node("ArgMax", "x", axis=1, keepdims=0),
            {"x": "f32[N,9]"},
            {"y": "i64[N]"},
            {"x": (5, 9)},
            lambda x: x.argmax(1),
        ),
        case(
            "top-k",
            node("TopK", "x k", "v i"),
            {"x": "f32[N,9]"},
            {"v": "f32[N,3]", "i": "i64[N,3]"},
            {"x": (5, 9)},
            lambda x: [-np.sort(-x)[:, :3], np.argsort(-x, kind="stable")[:, :3]],
            {"k": np.array([3])},
        ),
        case(
            "cumulative-sum",
            node("CumSum", "x axis"),
            {"x": "f64[N,4]"},
            {"y": "f64[N,4]"},
            {"x": (3, 4)},
            lambda x: x.cumsum(1),
            {"axis": np.array(1)},
        ),
    ]


def _shapes() -> list[Case]:
    return [
        case(
            "gather",
            node("Gather", "x i", axis=1),
            {"x": "f32[N,5]", "i": "i64[K]"},
            {"y": "f32[N,K]"},
            [{"x": (2, 5), "i": np.array([4, -1, 0])}, {"x": (2, 5), "i": np.zeros(0, np.int64)}],
            lambda x, i: x[:, i],
        ),
        case(
            "concat-split",
            [node("Concat", "a b", "c", axis=1), node("Split", "c sizes", "u v", axis=1)],
            {"a": "f32[N,2]", "b": "f32[N,3]"},
            {"u": "f32[N,1]", "v": "f32[N,4]"},
            {"a": (4, 2), "b": (4, 3)},
            lambda a, b: np.split(np.concatenate([a, b], 1), [1], 1),
            {"sizes": np.array([1, 4])},
        ),
        case(
            "slice-and-pad",
            [node("Slice", "x from to axes steps", "s"), node("Pad", "s pads value")],
            {"x": "f32[N,10]"},
            {"y": "f32[M,K]"},
            {"x": (3, 10)},
            lambda x: np.pad(x[:, 8:1:-2], ((0, 0), (1, 2)), constant_values=9),
            {
                "from": np.array([8]),
                "to": np.array([1]),
                "axes": np.array([1]),
                "steps": np.array([-2]),
                "pads": np.array([0, 1, 0, 2]),
                "value": np.float32(9),
            },
        ),
        case(
            "transpose-reshape",
            [
                node("Transpose", "x", "t", perm=[2, 0, 1]),
                node("Shape", "t", "s", start=0, end=1),
                node("Concat", "s rest", "to", axis=0),
                node("Reshape", "t to"),
            ],
            {"x": "f32[A,B,C]"},
            {"y": "f32[C,D]"},
            [{"x": (2, 3, 4)}, {"x": (5, 1, 7)}],
            lambda x: x.transpose(2, 0, 1).reshape(x.shape[2], -1),
            {"rest": np.array([-1])},
        ),
        case(
            "expand-tile",
            [node("Expand", "x to", "e"), node("Tile", "e times")],
            {"x": "i64[1,3]"},
            {"y": "i64[4,6]"},
            {"x": (1, 3)},
            lambda x: np.tile(x, (4, 2)),
            {"to": np.array([2, 3]), "times": np.array([2, 2])},
        ),
        case(
            "non-zero",
            node("NonZero", "x"),
            {"x": "f32[N,M]"},
            {"y": "i64[2,K]"},
            [{"x": np.array([[0, 1], [2, 0]], np.float32)}, {"x": np.zeros((2, 2), np.float32)}],
            lambda x: np.array(np.nonzero(x)),
        ),
        case(
            "einsum",
            node("Einsum", "a b", equation="bij,bkj->bik"),
            {"a": "f32[B,I,J]", "b": "f32[B,K,J]"},
            {"y": "f32[B,I,K]"},
            {"a": (2, 3, 4), "b": (2, 5, 4)},
            lambda a, b: np.einsum("bij,bkj->bik", a, b),
        ),
    ]


_CAST_TYPES = ("f16", "f32", "f64", "bf16", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "bool")


def _casts() -> list[Case]:
    values = np.array([0, 1, 2, 5, 7])
    return [
        case(
            f"cast-{source}-to-all",
            [
                node("Cast", "x", target, to=ir.DataType.from_numpy(NUMPY_TYPES[target]).value)
                for target in _CAST_TYPES
            ],
            {"x": f"{source}[N]"},
            {target: f"{target}[N]" for target in _CAST_TYPES},
            {"x": values.astype(NUMPY_TYPES[source])},
            lambda x: [x.astype(NUMPY_TYPES[target]) for target in _CAST_TYPES],
        )
        for source in _CAST_TYPES
    ] + [
        case(
            f"cast-small-{target}",
            [
                node("Cast", "x", "t", to=ir.DataType.from_numpy(NUMPY_TYPES[target]).value),
                node("Cast", "t", "y", to=TensorProto.FLOAT),
            ],
            {"x": "f32[N,5]"},
            {"t": f"{target}[N,5]", "y": "f32[N,5]"},
            {"x": np.array([[0, 1, 2, 4, 6]] * 3, np.float32)},
            lambda x, target=target: [x.astype(NUMPY_TYPES[target]), x],
        )
        for target in ("i4", "u4", "f8e4m3fn", "f8e5m2")
    ]


def _subgraphs() -> list[Case]:
    then = graph([node("Add", "x x", "t")], {}, {"t": "f32[N]"}, name="then")
    otherwise = graph([node("Neg", "x", "e")], {}, {"e": "f32[N]"}, name="else")
    doubling = graph(
        [
            node("Add", "v_in v_in", "v_out"),
            node("Identity", "go_in", "go_out"),
            node("Identity", "v_out", "step"),
        ],
        {"i": "i64[]", "go_in": "bool[]", "v_in": "f32[N]"},
        {"go_out": "bool[]", "v_out": "f32[N]", "step": "f32[N]"},
        name="doubling",
    )
    running = graph(
        [node("Add", "sum_in row", "sum_out"), node("Identity", "sum_out", "kept")],
        {"sum_in": "f32[K]", "row": "f32[K]"},
        {"sum_out": "f32[K]", "kept": "f32[K]"},
        name="running",
    )
    function = helper.make_function(
        "local",
        "ScaledAdd",
        ["p", "q"],
        ["r"],
        [node("Mul", "p q", "m"), node("Add", "m q", "r")],
        [helper.make_opsetid("", OPSET)],
    )
    return [
        case(
            "if",
            node("If", "c", "y", then_branch=then, else_branch=otherwise),
            {"c": "bool[]", "x": "f32[N]"},
            {"y": "f32[N]"},
            [{"c": np.array(True), "x": (4,)}, {"c": np.array(False), "x": (2,)}],
            lambda c, x: x + x if c else -x,
        ),
        case(
            "loop",
            node("Loop", "times go x", "last steps", body=doubling),
            {"times": "i64[]", "x": "f32[N]"},
            {"last": "f32[N]", "steps": "f32[T,N]"},
            [{"times": np.array(3), "x": (4,)}, {"times": np.array(1), "x": (2,)}],
            lambda times, x: [x * 2**times, np.stack([x * 2**step for step in range(1, times + 1)])],
            {"go": np.array(True)},
        ),
        case(
            "scan",
            node("Scan", "start x", "sum all", body=running, num_scan_inputs=1),
            {"start": "f32[K]", "x": "f32[T,K]"},
            {"sum": "f32[K]", "all": "f32[T,K]"},
            [{"start": (3,), "x": (5, 3)}, {"start": (1,), "x": (1, 1)}],
            lambda start, x: [start + x.sum(0), start + x.cumsum(0)],
        ),
        case(
            "local-function",
            [node("local::ScaledAdd", "a b", "t"), node("local::ScaledAdd", "t b")],
            {"a": "f32[N]", "b": "f32[N]"},
            {"y": "f32[N]"},
            {"a": (6,), "b": (6,)},
            lambda a, b: (a * b + b) * b + b,
            functions=[function],
        ),
    ]


def _other_values() -> list[Case]:
    return [
        case(
            "sequence-at",
            [node("SequenceConstruct", "a b", "s"), node("SequenceAt", "s i")],
            {"a": "f32[N]", "b": "f32[M]", "i": "i64[]"},
            {"y": "f32[K]"},
            [{"a": (2,), "b": (3,), "i": np.array(index)} for index in (0, 1, -1)],
            lambda a, b, i: [a, b][i],
        ),
        case(
            "sequence-output",
            node("SequenceConstruct", "a b", "s"),
            {"a": "f32[N]", "b": "f32[M]"},
            {"s": "sequence(f32[K])"},
            {"a": (2,), "b": (3,)},
            lambda a, b: [[a, b]],
        ),
        case(
            "sequence-input",
            node("SequenceInsert", "s x", "t"),
            {"s": "sequence(f32[K])", "x": "f32[K]"},
            {"t": "sequence(f32[K])"},
            [{"s": [np.ones(2, np.float32)], "x": (2,)}, {"s": [], "x": (2,)}],
            lambda s, x: [[*s, x]],
        ),
        case(
            "optional-input",
            node("OptionalHasElement", "x"),
            {"x": "optional(f32[N])"},
            {"y": "bool[]"},
            [{"x": np.ones(2, np.float32)}, {"x": None}],
            lambda x: np.array(x is not None),
        ),
        case(
            "optional-output",
            node("Optional", "x"),
            {"x": "f32[N]"},
            {"y": "optional(f32[N])"},
            {"x": (3,)},
            lambda x: x,
        ),
        case(
            "strings",
            [node("Concat", "a b", "c", axis=0), node("Reshape", "c to")],
            {"a": "str[N]", "b": "str[M]"},
            {"y": "str[1,K]"},
            [
                {"a": (3,), "b": (2,)},
                {"a": np.array(["é", "b"]), "b": np.array([b"c"])},
                {"a": np.zeros(0, object), "b": (1,)},
            ],
            lambda a, b: np.array([[*a, *(x.decode() if isinstance(x, bytes) else x for x in b)]], object),
            {"to": np.array([1, -1])},
        ),
        case(
            "string-weights",
            node("Gather", "words i"),
            {"i": "i64[N]"},
            {"y": "str[N]"},
            {"i": np.array([2, 0, 1, 2])},
            lambda i: np.array(["un", "zwei", "三"], object)[i],
            {"words": np.array(["un", "zwei", "三"], object)},
        ),
        case(
            "trees",
            node("ai.onnx.ml::TreeEnsembleRegressor", "x", **_tree()),
            {"x": "f32[N,2]"},
            {"y": "f32[N,1]"},
            [{"x": (50, 2)}, {"x": (1, 2)}],
            lambda x: np.where(x[:, :1] <= 0.5, np.where(x[:, 1:] <= -0.25, 1, 2), 3).astype(np.float32),
        ),
        case(
            "several-uses-of-one-value",
            [
                node("Neg", "x", "n"),
                node("Identity", "n", "a"),
                node("Identity", "n", "b"),
                node("Identity", "x", "c"),
            ],
            {"x": "f32[N]"},
            {"n": "f32[N]", "a": "f32[N]", "b": "f32[N]", "c": "f32[N]", "w": "f32[4]"},
            {"x": (4,)},
            lambda x: [-x, -x, -x, x, np.arange(4, dtype=np.float32)],
            {"w": np.arange(4, dtype=np.float32)},
        ),
    ]


def _tree() -> dict[str, Any]:
    return {
        "nodes_treeids": [0] * 5,
        "nodes_nodeids": [0, 1, 2, 3, 4],
        "nodes_featureids": [0, 1, 0, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"],
        "nodes_values": [0.5, -0.25, 0.0, 0.0, 0.0],
        "nodes_truenodeids": [1, 3, 0, 0, 0],
        "nodes_falsenodeids": [2, 4, 0, 0, 0],
        "nodes_hitrates": [1.0] * 5,
        "nodes_missing_value_tracks_true": [0] * 5,
        "target_treeids": [0] * 3,
        "target_nodeids": [2, 3, 4],
        "target_ids": [0] * 3,
        "target_weights": [3.0, 1.0, 2.0],
        "n_targets": 1,
    }


CASES = {
    each.name: each
    for group in (_arithmetic, _layers, _reductions, _shapes, _casts, _subgraphs, _other_values)
    for each in group()
}

IGNORED: dict[str, dict[str, str]] = {
    "native": {},
    "onnxruntime": {},
    "reference": {"optional-output": "the evaluator wraps an optional's value in a list"},
    "openvino": {
        "cast-small-i4": "4-bit tensors are not exchanged",
        "cast-small-u4": "4-bit tensors are not exchanged",
        "sequence-output": "only tensors are outputs",
        "sequence-input": "only tensors are inputs",
        "optional-input": "only tensors are inputs",
        "optional-output": "only tensors are outputs",
        "trees": "there is no translation of trees",
    },
}
"""For each engine the cases that it fails, with the reason; one that passes after all fails the suite."""


def running_sum() -> onnx.ModelProto:
    """Return a recurrent model: ``sum_out = sum_in + x``, ``y = 2 * sum_out``."""
    return model(
        [node("Add", "sum_in x", "sum_out"), node("Mul", "sum_out two")],
        {"x": "f32[N,3]", "sum_in": "f32[N,3]"},
        {"y": "f32[N,3]", "sum_out": "f32[N,3]"},
        {"two": np.float32(2)},
    )
