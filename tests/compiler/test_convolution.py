"""Convolutions against a plain sum over taps in f64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.compiler.models import FLOAT, model, native


def convolved(x, w, bias, strides, pads, dilations, group):
    """The definition, tap by tap."""
    rank = x.ndim - 2
    x, w = x.astype(np.float64), w.astype(np.float64)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    sizes = [
        (padded.shape[2 + d] - (w.shape[2 + d] - 1) * dilations[d] - 1) // strides[d] + 1 for d in range(rank)
    ]
    depth, channels = x.shape[1] // group, w.shape[0] // group
    y = np.zeros((x.shape[0], w.shape[0], *sizes))
    for tap in itertools.product(*(range(k) for k in w.shape[2:])):
        seen = padded[
            (slice(None), slice(None), *(slice(t * d, t * d + (n - 1) * s + 1, s)
             for t, d, n, s in zip(tap, dilations, sizes, strides, strict=True)))
        ]  # fmt: skip
        for g in range(group):
            part = seen[:, g * depth : (g + 1) * depth]
            weights = w[(slice(g * channels, (g + 1) * channels), slice(None), *tap)]
            y[:, g * channels : (g + 1) * channels] += np.einsum("nc...,oc->no...", part, weights)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


CASES = [
    # x, w, strides, pads, dilations, group
    ((1, 3, 9, 11), (5, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((2, 3, 21, 19), (17, 3, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    ((1, 4, 8, 9), (19, 4, 2, 3), (1, 2), (0, 2, 1, 0), (2, 1), 1),
    ((3, 16, 7, 7), (33, 16, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((1, 20, 5, 6), (70, 20, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((1, 40, 1, 1), (150, 40, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((2, 12, 6, 5), (18, 4, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 3),
    ((2, 21, 13, 15), (21, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 21),
    ((1, 48, 14, 14), (48, 1, 5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 48),
    ((1, 40, 9, 33), (40, 1, 3, 3), (2, 1), (0, 1, 2, 1), (1, 2), 40),
    ((1, 6, 7, 7), (12, 1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 6),
    ((2, 5, 30), (7, 5, 4), (3,), (2, 1), (2,), 1),
    ((2, 5, 30), (5, 1, 4), (1,), (3, 0), (1,), 5),
    ((1, 3, 5, 6, 7), (4, 3, 3, 2, 3), (1, 2, 1), (1, 0, 1, 1, 1, 1), (1, 1, 2), 1),
    ((1, 18, 4, 5, 6), (18, 1, 3, 3, 3), (1, 1, 2), (1, 1, 1, 1, 1, 1), (1, 1, 1), 18),
    ((0, 3, 5, 5), (4, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((1, 3, 3, 3), (4, 3, 3, 3), (1, 1), (4, 4, 4, 4), (1, 1), 1),
]


def case_model(case, bias=True, constant=True, kind=FLOAT, tail=(), extra=None):
    x, w, strides, pads, dilations, group = case
    rng = np.random.default_rng(7)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {"w": rng.standard_normal(w).astype(dtype), "b": rng.standard_normal(w[0]).astype(dtype)}
    conv = helper.make_node(
        "Conv", ["x", "w", "b"] if bias else ["x", "w"], ["c"],
        strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    inputs = {"x": (kind, [None] * len(x))}
    feeds = {"x": rng.standard_normal(x).astype(dtype)}
    if not constant:
        inputs.update({name: (kind, array.shape) for name, array in weights.items() if bias or name == "w"})
        feeds.update({name: weights[name] for name in inputs if name in weights})
    given = weights if constant else {}
    if not bias:
        given = {name: array for name, array in given.items() if name != "b"}
    nodes = [conv, *tail]
    made = model(nodes, inputs, [nodes[-1].output[0]], {**given, **(extra or {})})
    expected = convolved(feeds["x"], weights["w"], weights["b"] if bias else None, *case[2:])
    return made, feeds, expected


def compiled(executable, feeds):
    """Say whether no node runs on the host."""
    return all(segment.step is None for segment in executable.program(feeds))


def assert_near(found, expected, tolerance=1e-5):
    scale = np.abs(expected).max(initial=1)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= tolerance * scale


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_is_the_sum_over_taps(case, constant):
    made, feeds, expected = case_model(case, constant=constant, bias=case[0][0] != 2)
    executable = native(made)
    found = executable.run(feeds)["c"]
    assert compiled(executable, feeds)
    assert_near(found, expected)


@pytest.mark.parametrize(("kind", "tolerance"), [(TensorProto.DOUBLE, 1e-13), (TensorProto.FLOAT16, 2e-3)])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[7], CASES[6]], ids=str)
def test_other_kinds(case, kind, tolerance):
    made, feeds, expected = case_model(case, kind=kind)
    executable = native(made)
    found = executable.run(feeds)["c"]
    assert compiled(executable, feeds)
    assert found.dtype == feeds["x"].dtype
    assert_near(found.astype(np.float64), expected, tolerance)


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[4], CASES[7]], ids=str)
def test_what_follows_is_done_where_the_tile_ends(case):
    extra = {
        "scale": np.float32(0.5).reshape(1),
        "shift": np.random.default_rng(1).standard_normal((case[1][0], 1, 1)).astype("f4"),
    }
    tail = [
        helper.make_node("Mul", ["c", "scale"], ["d"]),
        helper.make_node("Add", ["d", "shift"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
    ]
    made, feeds, expected = case_model(case, tail=tail, extra=extra)
    executable = native(made)
    found = executable.run(feeds)["f"]
    assert_near(found, np.maximum(expected * 0.5 + extra["shift"], 0))
    launches = [launch for segment in executable.program(feeds) for launch in segment.launches]
    products = [each for each in launches if each.kernel.template in ("convolution", "window")]
    assert len(products) == 1
    assert products[0].node == "f" or "Relu" in str(products[0].kernel)


@pytest.mark.parametrize("case", [CASES[3], CASES[7]], ids=str)
def test_a_sum_with_another_convolution(case):
    other = helper.make_node(
        "Conv", ["x", "w"], ["o"], strides=case[2], pads=case[3], dilations=case[4], group=case[5]
    )
    tail = [other, helper.make_node("Add", ["o", "c"], ["s"]), helper.make_node("Relu", ["s"], ["f"])]
    made, feeds, expected = case_model(case, tail=tail)
    bias = np.random.default_rng(7)
    bias.standard_normal(case[1])
    shift = bias.standard_normal(case[1][0]).astype("f4").reshape(-1, 1, 1)
    assert_near(native(made).run(feeds)["f"], np.maximum(2 * expected - shift, 0))


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[7], CASES[8]], ids=str)
def test_bits_do_not_depend_on_the_batch_or_the_threads(case):
    case = ((5, *case[0][1:]), *case[1:])
    made, feeds, _ = case_model(case)
    whole = native(made, threads=2).run(feeds)["c"]
    one = native(made, threads=1)
    for n in range(5):
        assert np.array_equal(one.run({"x": feeds["x"][n : n + 1]})["c"][0], whole[n])


def test_padding_sees_zeros_beside_numbers_that_are_not_finite():
    made, feeds, expected = case_model(CASES[0])
    feeds["x"][0, 0, 4, 4] = np.nan
    feeds["x"][0, 1, 0, 0] = np.inf
    found = native(made).run(feeds)["c"]
    touched = np.zeros((9, 11), bool)
    touched[3:6, 3:6] = touched[:2, :2] = True
    assert np.array_equal(~np.isfinite(found[0, 0]), touched)
    assert_near(found[0][:, ~touched], expected[0][:, ~touched])


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(auto):
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((1, 3, 10, 7)).astype("f4"), rng.standard_normal((4, 3, 4, 3)).astype("f4")
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=auto, strides=[2, 2])
    found = native(model([node], {"x": (FLOAT, x.shape)}, ["y"], {"w": w})).run({"x": x})["y"]
    pads = {"SAME_UPPER": (1, 1, 1, 1), "SAME_LOWER": (1, 1, 1, 1), "VALID": (0, 0, 0, 0)}[auto]
    assert_near(found, convolved(x, w, None, (2, 2), pads, (1, 1), 1))


def sent(x, w, strides, pads, dilations, group, more):
    """The transposed convolution's definition: what each input pixel sends, tap by tap."""
    rank = x.ndim - 2
    depth, channels = x.shape[1] // group, w.shape[1]
    sizes = [
        (x.shape[2 + d] - 1) * strides[d] + (w.shape[2 + d] - 1) * dilations[d] + 1 + more[d]
        for d in range(rank)
    ]
    y = np.zeros((x.shape[0], channels * group, *sizes))
    for tap in itertools.product(*(range(k) for k in w.shape[2:])):
        to = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        for g in range(group):
            part = x[:, g * depth : (g + 1) * depth].astype("f8")
            weights = w[(slice(g * depth, (g + 1) * depth), slice(None), *tap)].astype("f8")
            y[(slice(None), slice(g * channels, (g + 1) * channels), *to)] += np.einsum(
                "nc...,co->no...", part, weights
            )
    cut = tuple(slice(pads[d], sizes[d] - pads[rank + d]) for d in range(rank))
    return y[(slice(None), slice(None), *cut)]


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize(
    "case",
    [
        ((2, 6, 5, 7), (6, 9, 2, 2), (2, 2), (0, 0, 0, 0), (1, 1), 1, (0, 0)),
        ((1, 4, 5, 4), (4, 3, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 2, (1, 1)),
        ((1, 8, 6, 6), (8, 1, 4, 4), (2, 2), (1, 1, 1, 1), (1, 1), 8, (0, 0)),
        ((2, 3, 9), (3, 20, 5), (3,), (2, 0), (2,), 1, (2,)),
        ((1, 3, 5, 5), (3, 4, 1, 1), (3, 2), (0, 0, 0, 0), (1, 1), 1, (2, 0)),
        ((1, 2, 3, 3, 4), (2, 5, 2, 3, 3), (2, 1, 2), (0, 1, 0, 1, 0, 1), (1, 1, 1), 1, (0, 0, 0)),
    ],
    ids=str,
)
def test_transposed_convolution_is_what_each_pixel_sends(case, constant):
    x_shape, w_shape, strides, pads, dilations, group, more = case
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal(x_shape).astype("f4"), rng.standard_normal(w_shape).astype("f4")
    bias = rng.standard_normal(w_shape[1] * group).astype("f4")
    shift = rng.standard_normal((bias.size, *[1] * (x.ndim - 2))).astype("f4")
    nodes = [
        helper.make_node(
            "ConvTranspose", ["x", "w", "b"], ["c"], strides=strides, pads=pads, dilations=dilations,
            group=group, output_padding=more,
        ),
        helper.make_node("Add", ["c", "shift"], ["y"]),
    ]  # fmt: skip
    inputs = {"x": (FLOAT, [None] * x.ndim)}
    weights = {"w": w, "b": bias, "shift": shift}
    feeds = {"x": x}
    if not constant:
        feeds = {"x": x, **weights}
        inputs |= {name: (FLOAT, array.shape) for name, array in weights.items()}
    executable = native(model(nodes, inputs, ["y"], weights if constant else {}))
    expected = sent(x, w, strides, pads, dilations, group, more) + shift + bias.reshape(shift.shape)
    found = executable.run(feeds)["y"]
    assert compiled(executable, feeds)
    assert_near(found, expected)


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize("case", [CASES[0], CASES[6], CASES[7]], ids=str)
def test_convolution_of_integers(case, constant):
    rng = np.random.default_rng(9)
    x = rng.integers(0, 256, case[0]).astype(np.uint8)
    weights = {
        "w": rng.integers(-128, 128, case[1]).astype(np.int8),
        "xz": np.uint8(131),
        "wz": rng.integers(-3, 4, case[1][0]).astype(np.int8),
    }
    node = helper.make_node(
        "ConvInteger", ["x", "w", "xz", "wz"], ["y"],
        strides=case[2], pads=case[3], dilations=case[4], group=case[5],
    )  # fmt: skip
    inputs = {"x": (TensorProto.UINT8, x.shape)}
    feeds = {"x": x}
    if not constant:
        inputs |= {
            name: (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in weights.items()
        }
        feeds |= {name: np.asarray(array) for name, array in weights.items()}
    executable = native(model([node], inputs, ["y"], weights if constant else {}))
    found = executable.run(feeds)["y"]
    w = weights["w"].astype(int) - weights["wz"].astype(int).reshape(-1, *[1] * (x.ndim - 1))
    expected = convolved(x.astype(int) - 131, w, None, *case[2:])
    assert compiled(executable, feeds)
    assert found.dtype == np.int32
    assert np.array_equal(found, expected)
