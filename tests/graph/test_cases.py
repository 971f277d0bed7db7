"""Each case of each pass, on the smallest graph that has it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from educe import engines, formats
from educe.graph.passes import optimize
from educe.model.walk import all_nodes
from tests.graph.test_passes import evaluated

HEADER = '<ir_version: 10, opset_import: ["": 21]>\n'


def parsed(text: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(HEADER + text))


def operators(text: str) -> Counter[str]:
    """Return the operators that are left of the graph, after comparing what it computes."""
    model = parsed(text)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    rng = np.random.default_rng(7)
    feeds = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else 4 for size in value.shape]
        array = rng.standard_normal(shape) * 2
        feeds[value.name] = array.astype(value.dtype.numpy())
    better = optimize(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    for found, expected in zip(evaluated(better, feeds), evaluated(model, feeds), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return Counter(node.op_type for node in all_nodes(better))


def unary(body: str, weights: str = "", kind: str = "float") -> Counter[str]:
    declared = f"<{weights}>" if weights else ""
    return operators(f"g ({kind}[2, 3] x) => ({kind}[a, b] y) {declared} {{ {body} }}")


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("t = Identity(x)  y = Neg(t)", ""),
        ("t = Dropout(x)  y = Neg(t)", ""),
        ("t = Cast <to = 1> (x)  y = Neg(t)", ""),
        ("t = Mul(x, c)  y = Neg(t)", "float c = {1.0}"),
        ("t = Mul(c, x)  y = Neg(t)", "float[1, 1] c = {1.0}"),
        ("t = Div(x, c)  y = Neg(t)", "float[1] c = {1.0}"),
        ("t = Pow(x, c)  y = Neg(t)", "float c = {1.0}"),
        ("t = Sub(x, c)  y = Neg(t)", "float c = {0.0}"),
        ("t = Add(x, c)  y = Neg(t)", "float c = {-0.0}"),
        ("t = Max(x)  y = Neg(t)", ""),
        ("t = Clip(x)  y = Neg(t)", ""),
        ("t = Reshape(x, c)  y = Neg(t)", "int64[2] c = {2, -1}"),
        ("t = Expand(x, c)  y = Neg(t)", "int64[2] c = {1, 3}"),
        ("t = Tile(x, c)  y = Neg(t)", "int64[2] c = {1, 1}"),
        ("t = Slice(x, a, b)  y = Neg(t)", "int64[2] a = {0, 0}, int64[2] b = {99, 99}"),
        ("t = Transpose <perm = [0, 1]> (x)  y = Neg(t)", ""),
        ("t = Transpose <perm = [1, 0]> (x)  u = Transpose <perm = [1, 0]> (t)  y = Neg(u)", ""),
        ("t = Pad(x, c)  y = Neg(t)", "int64[4] c = {0, 0, 0, 0}"),
        ("t = Reshape(x, c)  u = Reshape(t, d)  y = Neg(u)", "int64[1] c = {6}, int64[2] d = {2, 3}"),
    ],
)
def test_what_does_nothing_goes(body: str, weights: str) -> None:
    assert unary(body, weights) == {"Neg": 1}


@pytest.mark.parametrize(
    ("body", "weights", "kept"),
    [
        ("t = Add(x, c)  y = Neg(t)", "float c = {0.0}", "Add"),
        ("t = Sub(x, c)  y = Neg(t)", "float c = {-0.0}", "Sub"),
        ("t = Sub(c, x)  y = Neg(t)", "float c = {0.0}", "Sub"),
        ("t = Mul(x, c)  y = Neg(t)", "float[1, 1, 1] c = {1.0}", "Mul"),
        ("t = Div(c, x)  y = Neg(t)", "float c = {1.0}", "Div"),
        ("t = Slice(x, a, b, c, d)  y = Neg(t)",
         "int64[1] a = {-1}, int64[1] b = {-99}, int64[1] c = {0}, int64[1] d = {-1}", "Slice"),
        ("t = Cast <to = 11> (x)  u = Neg(t)  y = Cast <to = 1> (u)", "", "Cast"),
        ("t = Transpose <perm = [1, 0]> (x)  y = Reshape(t, c)", "int64[2] c = {2, 3}", "Reshape"),
        ("t = Reshape(x, c)  y = Reshape(t, d)", "int64[2] c = {3, 2}, int64[2] d = {0, 2}", "Reshape"),
    ],
)  # fmt: skip
def test_what_does_something_stays(body: str, weights: str, kept: str) -> None:
    assert kept in unary(body, weights)


def test_integers_lose_an_added_zero() -> None:
    assert unary("t = Add(x, c)  y = Neg(t)", "int64 c = {0}", "int64") == {"Neg": 1}


def test_outputs_keep_their_names_and_stay_apart() -> None:
    text = (
        "g (float[2] x) => (float[2] a, float[2] b, float[2] c) { a = Identity(x)  b = Neg(x)  c = Neg(x) }"
    )
    better = optimize(parsed(text))
    assert [value.name for value in better.graph.outputs] == ["a", "b", "c"]
    assert operators(text) == {"Identity": 1, "Neg": 2}


def test_common_nodes_and_constants_are_kept_once() -> None:
    body = "a = Mul(x, c)  b = Mul(x, d)  p = Exp(a)  q = Exp(b)  y = Add(p, q)"
    assert unary(body, "float c = {2.0}, float d = {2.0}") == {"Mul": 1, "Exp": 1, "Add": 1}


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_numbers_are_drawn_each_time(operator: str) -> None:
    text = f"""g (float[2] x) => (float[2] y, float[2] z) <float[2] c = {{0.5, 0.5}}>
        {{ a = {operator} (c)  b = {operator} (c)  y = Add(a, x)  z = Add(b, x) }}"""
    better = optimize(parsed(text))
    assert Counter(node.op_type for node in better.graph) == {operator: 2, "Add": 2}


def test_constants_are_folded_but_not_grown() -> None:
    assert unary("a = Mul(c, c)  b = Sqrt(a)  y = Add(x, b)", "float c = {2.0}") == {"Add": 1}
    huge = """g (float[1] x) => (float[N] y) <int64[1] n = {1000000000000}>
        { a = ConstantOfShape(n)  b = Neg(a)  y = Add(x, b) }"""
    assert "ConstantOfShape" in {node.op_type for node in optimize(parsed(huge)).graph}


def test_sizes_that_are_known_become_constants() -> None:
    text = """g (float[N, 3] x) => (int64 y) <int64 i = {1}>
        { s = Shape(x)  n = Gather(s, i)  y = Mul(n, n) }"""
    better = optimize(parsed(text))
    assert [node.op_type for node in better.graph] == ["Identity"]
    assert evaluated(better, {"x": np.ones((2, 3), np.float32)})[0] == 9


def test_declared_shapes_between_inputs_and_outputs_are_not_believed() -> None:
    text = """g (float[2, 3] x) => (float[3, 2] y) <float[3, 2] t, int64[2] c = {3, 2}>
        { t = Neg(x)  y = Reshape(t, c) }"""
    assert [node.op_type for node in optimize(parsed(text)).graph] == ["Neg", "Reshape"]


CONVOLUTION = """g (float[1, 2, 5] x) => (float[1, 2, 4] y)
    <float[2, 2, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[2] b = {{1, 2}}, float[2] p = {{0.5, 3}},
     float[2, 1] q = {{2, 3}}, float r = {{4}}>
    {{ {0} }}"""


@pytest.mark.parametrize(
    "body",
    [
        "t = Conv(x, w)  y = BatchNormalization(t, p, b, b, p)",
        "t = Conv(x, w, b)  u = Mul(q, t)  v = Div(u, r)  z = Add(v, q)  y = Sub(r, z)",
        "t = ConvTranspose(x, w, b)  u = Add(t, q)  y = Mul(u, q)",
    ],
)
def test_scales_of_channels_fold_into_convolutions(body: str) -> None:
    text = CONVOLUTION.format(body).replace("float[1, 2, 4] y", "float[1, 2, n] y")
    (left,) = operators(text)
    assert left in body


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (
            "t = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)  u = Mul(t, b)  y = Add(u, b)",
            {"Gemm": 1},
        ),
        ("t = Gemm(x, w)  y = Sub(b, t)", {"Gemm": 1}),
        ("t = MatMul(x, w)  u = Mul(t, b)  y = Add(u, b)", {"MatMul": 1, "Add": 1}),
        (
            "t = MatMul(x, w)  u = Neg(t)  v = Mul(t, b)  y = Add(u, v)",
            {"MatMul": 1, "Neg": 1, "Mul": 1, "Add": 1},
        ),
    ],
)
def test_scales_of_columns_fold_into_products(body: str, left: dict[str, int]) -> None:
    weights = "float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 10}, float[3] b = {1, -2, 3}"
    assert unary(body, weights) == left


@pytest.mark.parametrize(
    ("wanted", "left"),
    [("before, n, rows", {"Transpose": 1}), ("before, rows, n", {"Reshape": 2, "Transpose": 1})],
)
def test_a_transposition_between_two_reshapes_is_one(wanted: str, left: dict[str, int]) -> None:
    text = f"""g (float[a, 2, b, 4] x) => (float[c, d, e, f] y)
        <int64[1] m = {{-1}}, int64[1] n = {{4}}, int64[1] i = {{-2}}, int64[1] j = {{-1}},
         int64[1] o = {{-9223372036854775808}}>
        {{ s = Shape(x)  rows = Slice(s, i, j)  before = Slice(s, o, i)
           p = Concat <axis = 0> (m, rows, n)  t = Reshape(x, p)  u = Transpose <perm = [0, 2, 1]> (t)
           q = Concat <axis = 0> ({wanted})  y = Reshape(u, q) }}"""
    assert operators(text).items() >= left.items()
    assert ("Reshape" in operators(text)) == ("Reshape" in left)


@pytest.mark.parametrize(
    ("activation", "moves"),
    [
        ('Gelu <approximate = "tanh"> (t)', True),
        ("LeakyRelu <alpha = 0.2> (t)", True),
        ("Relu(t)", True),
        ("PRelu(t, s)", False),
        ("Add(t, s)", False),
    ],
)
def test_activations_end_products(activation: str, moves: bool) -> None:
    text = f"""g (float[N, 3] x) => (float[a, b, c] y) <float[3, 4] w = {{{", ".join(map(str, range(12)))}}},
        int64[3] i = {{0, 2, -1}}, float s = {{0.5}}>
        {{ p = Gemm(x, w)  t = Reshape(p, i)  y = {activation} }}"""
    operators(text)
    kinds = [node.op_type for node in optimize(parsed(text)).graph]
    assert (kinds[-1] == "Reshape") == moves
    assert len(kinds) == 3


def test_nested_sizes_are_read_once_and_not_too_deep() -> None:
    joins = "  ".join(f"s{index + 1} = Concat <axis = 0> (s{index}, s{index})" for index in range(60))
    text = f"""g (float[a, b, c] x) => (float[d, e, f] y) {{ s0 = Shape <start = 0, end = 1> (x)  {joins}
        t = Reshape(x, s60)  u = Transpose <perm = [0, 2, 1]> (t)  y = Reshape(u, s60) }}"""
    assert Counter(node.op_type for node in optimize(parsed(text)).graph)["Concat"] == 60


@pytest.mark.parametrize(
    ("equation", "left"),
    [
        ("bij,bjk->bik", {"MatMul": 1}),
        ("b i j, b k j -> b i k", {"MatMul": 1, "Transpose": 1}),
        ("jbi,kjb->kib", {"MatMul": 1, "Transpose": 3}),
        ("ibj,jbk->ikb", {"MatMul": 1, "Transpose": 3}),
        ("bij,bjk", {"Einsum": 1}),
        ("...ij,...jk->...ik", {"Einsum": 1}),
        ("bij,bij->bi", {"Einsum": 1}),
        ("bij,bkl->bik", {"Einsum": 1}),
        ("bii,bij->bij", {"Einsum": 1}),
        ("ijk,ikl->il", {"Einsum": 1}),
    ],
)
def test_sums_by_labels_are_products(equation: str, left: dict[str, int]) -> None:
    text = f"""g (float[3, 3, 3] x, float[3, 3, 3] z) => (float[a, ...] y)
        {{ y = Einsum <equation = "{equation}"> (x, z) }}"""
    rank = len(equation.replace(" ", "").partition("->")[2].replace("...", "b")) or 3
    assert operators(text.replace("a, ...", ", ".join("abcd"[:rank]))) == left


NUMBERS = """float one = {1.0}, float half = {0.5}, float root = {1.41421354}, float three = {3.0},
    float cube = {0.044715}, float factor = {0.797884583}, float six = {6.0}, float zero = {0.0}"""


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("h = Div(x, root)  e = Erf(h)  o = Add(e, one)  p = Mul(x, o)  y = Mul(p, half)", "Gelu"),
        ("h = Div(x, root)  e = Erf(h)  o = Add(one, e)  p = Mul(half, x)  y = Mul(o, p)", "Gelu"),
        (
            "c = Pow(x, three)  d = Mul(cube, c)  s = Add(x, d)  f = Mul(factor, s)  t = Tanh(f)"
            "  o = Add(one, t)  p = Mul(half, x)  y = Mul(p, o)",
            "Gelu",
        ),
        (
            "q = Mul(x, x)  d = Mul(cube, q)  s = Add(one, d)  f = Mul(factor, x)  g = Mul(f, s)  t = Tanh(g)"
            "  o = Add(t, one)  p = Mul(x, o)  y = Mul(p, half)",
            "Gelu",
        ),
        ("s = Sigmoid(x)  y = Mul(s, x)", "Swish"),
        ("a = Mul(x, three)  s = Sigmoid(a)  y = Mul(x, s)", "Swish"),
        ("a = Add(x, three)  c = Clip(a, zero, six)  p = Mul(x, c)  y = Div(p, six)", "HardSwish"),
        ("h = HardSigmoid <alpha = 0.16666667> (x)  y = Mul(x, h)", "HardSwish"),
        ("a = Add(x, three)  r = Relu(a)  c = Min(r, six)  d = Div(c, six)  y = Mul(d, x)", "HardSwish"),
        ("a = Add(x, three)  r = Max(zero, a)  c = Min(six, r)  p = Mul(x, c)  y = Div(p, six)", "HardSwish"),
        ("n = Neg(x)  e = Exp(n)  o = Add(one, e)  y = Div(x, o)", "Swish"),
        ("s = Softplus(x)  t = Tanh(s)  y = Mul(x, t)", "Mish"),
        ("e = Exp(x)  o = Add(e, one)  s = Log(o)  t = Tanh(s)  y = Mul(t, x)", "Mish"),
    ],
)
def test_activations_are_named(body: str, name: str) -> None:
    assert unary(body, NUMBERS) == {name: 1}


@pytest.mark.parametrize(
    "body",
    [
        "h = Div(x, three)  e = Erf(h)  o = Add(e, one)  p = Mul(x, o)  y = Mul(p, half)",
        "h = Div(x, root)  e = Erf(h)  o = Add(e, one)  p = Mul(x, o)  y = Mul(p, six)",
        "a = Mul(x, x)  s = Sigmoid(a)  y = Mul(x, s)",
        "a = Mul(x, wide)  s = Sigmoid(a)  y = Mul(x, s)",
        "s = Sigmoid(x)  p = Mul(s, x)  y = Add(p, s)",
        "n = Neg(x)  e = Exp(n)  o = Add(one, e)  p = Div(x, o)  y = Add(p, e)",
        "n = Neg(x)  e = Exp(n)  o = Add(six, e)  y = Div(x, o)",
    ],
)
def test_what_only_looks_like_an_activation_is_not_named(body: str) -> None:
    assert not unary(body, NUMBERS + ", float[1, 1, 1] wide = {3.0}").keys() & {"Gelu", "Swish", "Mish"}


def test_only_operators_with_kernels_are_named() -> None:
    text = "g (float[2] x) => (float[2] y) { s = Sigmoid(x)  y = Mul(s, x) }"
    better = optimize(parsed(text), lambda _domain, name, _version: name != "Swish")
    assert [node.op_type for node in better.graph] == ["Sigmoid", "Mul"]


NORM = """float[3] g = {1, 2, 3}, float[3] b = {-1, 0, 1}, float e = {0.001}, float two = {2.0},
    int64[1] last = {-1}, float[1, 3] wide = {1, 2, 3}, float one = {1.0}, float half = {-0.5},
    float zero = {0.0}, float count = {3.0}"""
CENTRE = """m = ReduceMean(x, last)  d = Sub(x, m)  q = Pow(d, two)
    v = ReduceMean(q, last)  w = Add(v, e)  r = Sqrt(w)"""
FAST = """m = ReduceMean(x, last)  d = Sub(x, m)  q = Mul(x, x)  a = ReduceMean(q, last)
    c = Mul(m, m)  v = Sub(a, c)  p = Max(v, zero)"""
SQUARE = "q = Mul(x, x)  v = ReduceMean(q, last)  w = Add(v, e)  r = Sqrt(w)"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (CENTRE + "  n = Div(d, r)  s = Mul(n, g)  y = Add(s, b)", {"LayerNormalization": 1}),
        (CENTRE + "  i = Reciprocal(r)  n = Mul(i, d)  y = Mul(n, g)", {"LayerNormalization": 1}),
        (CENTRE + "  y = Div(d, r)", {"LayerNormalization": 1}),
        (SQUARE + "  n = Div(x, r)  y = Mul(g, n)", {"RMSNormalization": 1}),
        (SQUARE + "  n = Div(x, r)  s = Mul(g, n)  y = Add(s, b)", {"RMSNormalization": 1, "Add": 1}),
        (
            CENTRE + "  i = Div(one, r)  n = Mul(i, d)  s = Mul(n, wide)  y = Add(s, b)",
            {"LayerNormalization": 1},
        ),
        (
            CENTRE + "  i = Pow(w, half)  k = Mul(i, g)  s = Mul(d, k)  y = Add(s, b)",
            {"LayerNormalization": 1},
        ),
        (CENTRE + "  i = Reciprocal(w)  j = Sqrt(i)  y = Mul(d, j)", {"LayerNormalization": 1}),
        (
            CENTRE + "  i = Reciprocal(r)  k = Mul(i, g)  t = Mul(x, k)  u = Mul(m, k)  z = Sub(b, u)"
            "  y = Add(t, z)",
            {"LayerNormalization": 1},
        ),
        (
            FAST + "  w = Add(p, e)  r = Sqrt(w)  n = Div(d, r)  s = Mul(n, g)  y = Add(s, b)",
            {"LayerNormalization": 1},
        ),
        (FAST + "  w = Add(v, e)  r = Sqrt(w)  y = Div(d, r)", {"Sub": 2}),
        (
            "q = Mul(x, x)  t = ReduceSum(q, last)  v = Div(t, count)  w = Add(v, e)  i = Pow(w, half)"
            "  k = Mul(g, i)  y = Mul(x, k)",
            {"RMSNormalization": 1},
        ),
        (
            "q = Mul(x, x)  t = ReduceSum(q, last)  v = Div(t, two)  w = Add(v, e)  i = Pow(w, half)"
            "  y = Mul(x, i)",
            {"ReduceSum": 1},
        ),
    ],
)
def test_normalizations_are_named(body: str, left: dict[str, int]) -> None:
    found = unary(body, NORM)
    assert found.items() >= left.items()
    assert ("Norm" in str(found)) == ("Norm" in str(left))


def test_normalizations_of_channels_are_named() -> None:
    text = """g (float[2, 4, 3, N] x) => (float[2, 4, 3, N] y)
        <int64[1] channels = {1}, float e = {0.001}, float[4, 1, 1] g = {1, 2, 3, 4},
         float[1, 4, 1, 1] b = {4, 3, 2, 1}>
        { m = ReduceMean(x, channels)  d = Sub(x, m)  q = Mul(d, d)  v = ReduceMean(q, channels)
          w = Add(v, e)  r = Sqrt(w)  n = Div(d, r)  s = Mul(g, n)  y = Add(s, b) }"""
    assert operators(text) == {"Transpose": 2, "LayerNormalization": 1}
    wide = text.replace("float[4, 1, 1] g", "float[4, 1, 1, 1] g").replace("[2, 4, 3, N] x", "[1, 4, 3, N] x")
    wide = wide.replace("[2, 4, 3, N] y", "[4, 4, 3, N] y")
    assert operators(wide) == {"Transpose": 2, "LayerNormalization": 1, "Mul": 1, "Add": 1}


def test_groups_are_named() -> None:
    text = """g (float[2, 4, 3] x) => (float[2, 4, 3] y)
        <int64[3] s = {0, 2, -1}, float[2] one = {1, 1}, float[2] zero = {0, 0},
         float[4, 1] g = {1, 2, 3, 4}, float[1, 4, 1] b = {4, 3, 2, 1}>
        { a = Reshape(x, s)  n = InstanceNormalization(a, one, zero)  z = Shape(x)  t = Reshape(n, z)
          m = Mul(t, g)  y = Add(b, m) }"""
    assert operators(text) == {"GroupNormalization": 1}
    assert operators(text.replace("Shape(x)", "Shape <start = 0> (x)")) == {"GroupNormalization": 1}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("t = Transpose <perm = [0, 1, 3, 2]> (k)  s = MatMul(q, t)  c = Mul(s, f)"
         "  w = Softmax(c)  y = MatMul(w, v)",
         {"Attention": 1}),
        ("t = Transpose <perm = [0, 1, 3, 2]> (k)  r = Mul(q, f)  s = MatMul(r, t)  c = Add(m, s)"
         "  w = Softmax <axis = -1> (c)  y = MatMul(w, v)", {"Attention": 1}),
        ("p = Transpose <perm = [0, 1, 3, 2]> (k)  t = Div(p, f)  s = MatMul(q, t)"
         "  w = Softmax(s)  y = MatMul(w, v)",
         {"Attention": 1}),
    ],
)  # fmt: skip
def test_attention_is_named(body: str, left: dict[str, int]) -> None:
    text = f"""g (float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 6] v, float[3, 5] m) =>
        (float[1, 2, 3, 6] y) <float f = {{0.5}}> {{ {body} }}"""
    assert operators(text) == left


HALVES = "a = Slice(x, zero, two, last)  b = Slice(x, two, four, last)"
PAIRS = "a = Slice(x, zero, four, last, two)  b = Slice(x, one, four, last, two)"
STACK = "u = Unsqueeze(n, last)  v = Unsqueeze(a, last)  w = Concat <axis = -1> (u, v)"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (f"{HALVES}  n = Neg(b)  t = Concat <axis = -1> (n, a)", True),
        ("a, b = Split <axis = -1, num_outputs = 2> (x)  n = Neg(b)  t = Concat <axis = 3> (n, a)", True),
        (f"{PAIRS}  n = Neg(b)  {STACK}  i = Shape <end = 3> (w)  j = Concat <axis = 0> (i, last)"
         "  t = Reshape(w, j)", True),
        (f"{PAIRS}  n = Neg(b)  {STACK}  i = Shape(x)  t = Reshape(w, i)", False),
        (f"{PAIRS}  n = Neg(b)  t = Concat <axis = -1> (n, a)", False),
        (f"{HALVES}  n = Neg(a)  t = Concat <axis = -1> (n, b)", False),
        (f"{HALVES}  n = Neg(b)  t = Concat <axis = -1> (a, n)", False),
        ("a, b = Split <axis = -1> (x, uneven)  n = Neg(b)  t = Concat <axis = -1> (n, a)", False),
    ],
)  # fmt: skip
def test_rotary_embeddings_are_named(body: str, named: bool) -> None:
    text = f"""g (float[N, 2, S, 4] x, float[S, 4] c, float[M, 1, S, 4] s) => (float[N, 2, S, 4] y)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] four = {{4}},
         int64[1] last = {{-1}}, int64[2] uneven = {{1, 3}}>
        {{ {body}  p = Mul(c, x)  q = Mul(t, s)  y = Add(q, p) }}"""
    assert ("RotaryEmbedding" in operators(text)) == named


SCORES = "t = Transpose <perm = [0, 1, 3, 2]> (k)  s = MatMul(q, t)"
END = "w = Softmax(c)  y = MatMul(w, v)"
NAMED, UNNAMED = {"Attention": 1}, {"Softmax": 1}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{SCORES}  c = Where(n, s, low)  {END}", NAMED),
        (f"{SCORES}  c = Where(n, low, s)  {END}", NAMED),
        (f"{SCORES}  c = Where(n, s, few)  {END}", NAMED),
        (f"{SCORES}  b = Where(n, s, low)  c = Add(m, b)  {END}", NAMED),
        (f"{SCORES}  b = Add(s, m)  c = Where(n, low, b)  {END}", NAMED),
        (f"{SCORES}  d = Div(s, f)  e = Tanh(d)  c = Mul(f, e)  {END}", NAMED),
        (f"{SCORES}  p = Softmax(s)  u = IsNaN(p)  w = Where(u, zero, p)  y = MatMul(w, v)", NAMED),
        (f"s = MatMul(q, k)  c = Where(n, s, low)  {END}", {"Transpose": 1, "Attention": 1}),
        (f"{SCORES}  b = Where(n, s, few)  c = Add(m, b)  {END}", UNNAMED),
        (f"{SCORES}  c = Where(n, s, one)  {END}", UNNAMED),
        (f"{SCORES}  p = Softmax(s)  u = IsNaN(p)  w = Where(u, one, p)  y = MatMul(w, v)", UNNAMED),
        (f"{SCORES}  p = Softmax(s)  u = IsNaN(s)  w = Where(u, zero, p)  y = MatMul(w, v)", UNNAMED),
    ],
)
@pytest.mark.parametrize("rank", [3, 4])
def test_masked_attention_is_named(body: str, left: dict[str, int], rank: int) -> None:
    text = f"""g (float[1, 5, 5, 5] q, float[1, 5, 5, 5] k, float[1, 5, 5, 5] v) => (float[N, 5, 5, 5] y)
        <float f = {{2.5}}, float low = {{-inf}}, float few = {{-3.0}}, float zero = {{0.0}},
         float one = {{1.0}},
         float[1, 5, 1, 5] m = {{{", ".join(map(str, range(25)))}}},
         bool[5, 5] n = {{0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0}}>
        {{ {body} }}"""
    if rank == 3:
        text = text.replace("[1, 5,", "[5,").replace("[N, 5,", "[N,").replace("[0, 1, 3, 2]", "[0, 2, 1]")
    assert operators(text).items() >= left.items()


@pytest.mark.parametrize(
    ("batches", "mask"),
    [((2, 2, 2), (3, 5)), ((1, 2, 2), (1, 1, 1, 5)), ((2, 1, 2), (2, 1, 3, 5)), ((1, 1, 1), (2, 2, 3, 5))],
)
def test_attention_runs_with_whatever_sizes_its_products_broadcast(
    batches: tuple[int, int, int], mask: tuple[int, ...]
) -> None:
    text = """g (float[a, 2, 3, 4] q, float[b, 2, 5, 4] k, float[c, 2, 5, 6] v, float[d, e, f, g] m) =>
        (float[h, 2, 3, 6] y) <float f = {0.5}> {
        t = Transpose <perm = [0, 1, 3, 2]> (k)  r = Mul(q, f)  s = MatMul(r, t)  c = Add(m, s)
        w = Softmax <axis = -1> (c)  y = MatMul(w, v) }"""
    rng = np.random.default_rng(3)
    a, b, c = batches
    shapes = {"q": (a, 2, 3, 4), "k": (b, 2, 5, 4), "v": (c, 2, 5, 6), "m": (1,) * (4 - len(mask)) + mask}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = formats.load(onnx.parser.parse_model(HEADER + text).SerializeToString())
    found = engines.compile(model, "native").run(feeds)["y"]
    np.testing.assert_allclose(found, evaluated(parsed(text), feeds)[0], rtol=1e-4, atol=1e-5)


LARGE = "float[60, 10] w = {" + ", ".join(map(str, range(600))) + "}"


def test_large_weights_are_sliced_and_transposed_at_once() -> None:
    weights = LARGE + ", int64[1] a = {2}, int64[1] b = {5}, int64[1] c = {0}"
    text = f"""g (float[N, 10] x) => (float[M, 3] y) <{weights}>
        {{ d = Add(a, c)  s = Slice(w, d, b, c)  t = Transpose(s)  y = MatMul(x, t) }}"""
    assert operators(text) == {"MatMul": 1}


def test_large_weights_that_nobody_reads_any_more_go() -> None:
    text = f"""g (float[N, 10] x) => (float[M, 60] y) <{LARGE}, float s = {{2.0}}>
        {{ t = Transpose(w)  u = MatMul(x, t)  y = Mul(u, s) }}"""
    better = optimize(parsed(text))
    assert [node.op_type for node in better.graph] == ["MatMul"]
    assert len(better.graph.initializers) == 1


def test_quantized_groups_stay_and_lone_weights_are_dequantized() -> None:
    weights = "int8[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float s = {0.5}, int8 z = {1}, uint8 u = {128}"
    assert unary("d = DequantizeLinear(w, s, z)  y = MatMul(x, d)", weights) == {"MatMul": 1}
    body = """d = DequantizeLinear(w, s, z)  q = QuantizeLinear(x, s, u)
        e = DequantizeLinear(q, s, u)  y = MatMul(e, d)"""
    assert unary(body, weights) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1}


def test_branches_are_optimized_with_what_is_around_them() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        o = Identity(x)
        y = If (c) <
            then_branch = t () => (float[2] a) { i = Identity(o)  j = Neg(i)  k = Neg(o)  a = Add(j, k) },
            else_branch = e () => (float[2] b) { b = Identity(o) }> }"""
    assert operators(text) == {"If": 1, "Neg": 1, "Add": 1, "Identity": 1}


def test_the_option_decides_whether_a_graph_is_rewritten() -> None:
    text = """g (float[2, 3] x) => (float[2, 3] y) {
        a = Neg(x)  b = Neg(x)  c = Transpose(a)  d = Transpose(b) e = Mul(c, d) y = Transpose(e) }"""
    model = formats.load(onnx.parser.parse_model(HEADER + text).SerializeToString())
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = [
        engines.compile(model, "native", graph_optimization=level).run({"x": x})["y"]
        for level in ("none", "all")
    ]
    np.testing.assert_array_equal(found, [x * x, x * x])
