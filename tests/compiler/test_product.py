"""Matrix products against NumPy in f64."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from educe.errors import InputError
from tests.compiler.models import FLOAT, model, native

KINDS = {
    "f4": TensorProto.FLOAT,
    "f8": TensorProto.DOUBLE,
    "f2": TensorProto.FLOAT16,
    "i4": TensorProto.INT32,
    "u4": TensorProto.UINT32,
    "i8": TensorProto.INT64,
    "u1": TensorProto.UINT8,
    "i1": TensorProto.INT8,
    "V2": TensorProto.BFLOAT16,
}


def random(shape, dtype="f4", seed=0):
    rng = np.random.default_rng([seed, *shape])
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    low = 0 if np.dtype(dtype).kind == "u" else -100
    return rng.integers(low, 100, shape).astype(dtype)


def run(nodes, feeds, weights=None, threads=1, opset=21):
    """Run nodes on the kernels alone, and return the last output with the launches."""
    inputs = {name: (KINDS[array.dtype.str[1:]], [None] * array.ndim) for name, array in feeds.items()}
    executable = native(model(nodes, inputs, [nodes[-1].output[0]], weights, opset), threads=threads)
    segments = executable.program(feeds)
    assert all(segment.step is None for segment in segments)
    found = executable.run(feeds)[nodes[-1].output[0]]
    return found, [launch for segment in segments for launch in segment.launches]


def assert_near(found, expected, tolerance=1e-5):
    assert found.shape == expected.shape
    error = np.abs(found.astype("f8") - expected).max(initial=0)
    assert error <= tolerance * np.abs(expected).max(initial=1)


MATMUL = helper.make_node("MatMul", ["a", "b"], ["y"])
SHAPES = [
    ((1, 50), (50, 256)),
    ((5, 7), (7, 3)),
    ((13, 65), (65, 50)),
    ((29, 40), (40, 48)),
    ((6, 3), (3, 1)),
    ((37, 19), (19, 1)),
    ((1, 1), (1, 1)),
    ((4, 1), (1, 70)),
    ((0, 4), (4, 5)),
    ((3, 0), (0, 5)),
    ((3, 0), (0, 1)),
    ((3, 4), (4, 0)),
    ((7,), (7,)),
    ((7,), (7, 40)),
    ((20, 7), (7,)),
    ((2, 3, 7), (7,)),
    ((7,), (3, 7, 33)),
    ((2, 5, 7), (7, 9)),
    ((3, 4, 5, 6), (3, 4, 6, 33)),
    ((3, 1, 5, 6), (4, 6, 64)),
    ((2, 1, 3, 1, 5, 6), (1, 2, 1, 4, 6, 7)),
    ((2, 1, 3, 1, 5, 6), (1, 2, 1, 4, 6, 1)),
    ((5, 6), (3, 6, 32)),
    ((0, 5, 6), (6, 7)),
]


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_mat_mul(shapes, constant):
    a, b = (random(shape) for shape in shapes)
    found, _ = run([MATMUL], {"a": a} if constant else {"a": a, "b": b}, {"b": b} if constant else None)
    assert_near(found, np.matmul(a.astype("f8"), b.astype("f8")))


@pytest.mark.parametrize("rows", range(1, 21))
def test_every_number_of_rows(rows):
    for depth, columns in ((33, 10), (17, 40), (9, 70)):
        a, b = random((rows, depth)), random((depth, columns))
        found, _ = run([MATMUL], {"a": a}, {"b": b})
        assert_near(found, a.astype("f8") @ b)


@pytest.mark.parametrize("dtype", ["f8", "f2", "i4", "u4", "i8"])
@pytest.mark.parametrize("shapes", [SHAPES[2], SHAPES[5], SHAPES[18]], ids=str)
def test_other_kinds(dtype, shapes):
    a, b = (random(shape, dtype) for shape in shapes)
    found, _ = run([MATMUL], {"a": a}, {"b": b})
    assert found.dtype == a.dtype
    expected = np.matmul(a.astype("f8"), b.astype("f8"))
    assert_near(found, expected, {"f8": 1e-14, "f2": 1e-3}.get(dtype, 0))


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
@pytest.mark.parametrize("shapes", [SHAPES[2], SHAPES[5], SHAPES[18], ((40, 70), (70, 50))], ids=str)
def test_bfloat16_is_summed_in_f32(shapes, constant):
    a, b = (random(shape).astype(ml_dtypes.bfloat16) for shape in shapes)
    found, _ = run([MATMUL], {"a": a} if constant else {"a": a, "b": b}, {"b": b} if constant else None)
    assert found.dtype == a.dtype
    # What is rounded in the end is half a unit of 8 bits off at most.
    assert_near(found.astype("f4"), np.matmul(a.astype("f8"), b.astype("f8")), 2.0**-8)


def test_bits_of_bfloat16_do_not_depend_on_the_batch_or_the_threads():
    a, b = (random(shape).astype(ml_dtypes.bfloat16) for shape in ((70, 77), (77, 40)))
    nodes = [MATMUL, helper.make_node("Cast", ["y"], ["z"], to=FLOAT)]
    whole, _ = run(nodes, {"a": a}, {"b": b})
    for first, rows in ((0, 1), (69, 1), (5, 15), (3, 16), (1, 17), (20, 33)):
        part, _ = run(nodes, {"a": a[first : first + rows]}, {"b": b}, threads=2)
        assert np.array_equal(part, whole[first : first + rows])


ORDERS = ([0, 1, 2, 3], [0, 2, 1, 3], [3, 0, 2, 1])


@pytest.mark.parametrize(("left", "right"), list(itertools.product(ORDERS, repeat=2)))
def test_strided_matrices(left, right):
    a, b = random((2, 5, 8, 16)), random((2, 16, 8, 5))
    nodes = [
        helper.make_node("Transpose", ["a"], ["at"], perm=left),
        helper.make_node("Transpose", ["b"], ["bt"], perm=right),
        helper.make_node("Slice", ["at", "from", "to", "axes"], ["as"]),
        helper.make_node("Slice", ["bt", "from", "to", "axes"], ["bs"]),
        helper.make_node("MatMul", ["as", "bs"], ["y"]),
    ]
    a_t, b_t = a.transpose(left), b.transpose(right)
    # Both have the same sizes again where the batch or k would not fit.
    size = min(*a_t.shape, *b_t.shape)
    weights = {"from": np.zeros(4, "i8"), "to": np.full(4, size), "axes": np.arange(4)}
    window = (slice(0, size),) * 4
    found, _ = run(nodes, {"a": a, "b": b}, weights)
    assert_near(found, np.matmul(a_t[window].astype("f8"), b_t[window]))


@pytest.mark.parametrize("shapes", [((7, 20), (20, 33)), ((7, 20), (20, 1)), ((1, 5), (5, 8))], ids=str)
@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("of_c", [None, (), (1,), (-1,), (1, -1), (-2, 1), (-2, -1)], ids=str)
def test_gemm(shapes, transposed, of_c):
    a, b = (random(shape) for shape in shapes)
    sizes = {1: 1, -1: b.shape[1], -2: a.shape[0]}
    c = None if of_c is None else random(tuple(sizes[each] for each in of_c), seed=3)
    node = helper.make_node(
        "Gemm", ["a", "b", "c"][: 2 if c is None else 3], ["y"],
        transA=transposed[0], transB=transposed[1], alpha=0.5, beta=-2.0,
    )  # fmt: skip
    given_a, given_b = (each.T.copy() if t else each for each, t in zip((a, b), transposed, strict=True))
    expected = 0.5 * (a.astype("f8") @ b) - (0 if c is None else 2.0 * c)
    weights = {"b": given_b} if c is None else {"b": given_b, "c": c}
    found, launches = run([node], {"a": given_a}, weights)
    assert_near(found, expected)
    assert launches[-1].kernel.template in ("product", "dots")
    found, _ = run([node], {"a": given_a, **weights})
    assert_near(found, expected)


def test_what_follows_is_done_where_the_tile_ends():
    a, b, residual = random((2, 19, 24)), random((24, 40)), random((2, 19, 40), seed=1)
    bias, by_row = random((40,)), random((2, 19, 1))
    nodes = [
        MATMUL,
        helper.make_node("Add", ["y", "bias"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Mul", ["r", "by_row"], ["m"]),
        helper.make_node("Add", ["residual", "m"], ["z"]),
    ]
    found, launches = run(nodes, {"a": a, "residual": residual, "by_row": by_row}, {"b": b, "bias": bias})
    assert_near(found, np.maximum(a.astype("f8") @ b + bias, 0) * by_row + residual)
    assert len(launches) == 1


def test_what_cannot_be_read_where_the_tile_ends_is_added_after_it():
    a, b = random((2, 3, 5, 8)), random((8, 40))
    for shape in ((3, 1, 40), (2, 1, 5, 40), (5, 1), (1, 40), (2, 1, 1, 1)):
        other = random(shape)
        nodes = [MATMUL, helper.make_node("Add", ["y", "c"], ["z"])]
        found, _ = run(nodes, {"a": a, "c": other}, {"b": b})
        assert_near(found, a.astype("f8") @ b + other)
    turned = random((40, 5, 3, 2))
    nodes = [
        MATMUL,
        helper.make_node("Transpose", ["c"], ["t"], perm=[3, 2, 1, 0]),
        helper.make_node("Add", ["y", "t"], ["z"]),
    ]
    found, _ = run(nodes, {"a": a, "c": turned}, {"b": b})
    assert_near(found, a.astype("f8") @ b + turned.T)


def test_a_vector_product_ends_with_its_expression():
    a, b = random((3, 21, 18)), random((18, 1))
    nodes = [
        MATMUL,
        helper.make_node("Add", ["y", "bias"], ["s"]),
        helper.make_node("Add", ["s", "c"], ["z"]),
    ]
    feeds = {"a": a, "c": random((3, 21, 1))}
    found, launches = run(nodes, feeds, {"b": b, "bias": np.ones(1, "f4")})
    assert_near(found, a.astype("f8") @ b + 1 + feeds["c"])
    assert len(launches) == 1


@pytest.mark.parametrize(("depth", "columns"), [(77, 10), (300, 256), (129, 96), (64, 1), (50, 33)])
def test_bits_do_not_depend_on_the_batch_or_the_threads(depth, columns):
    a, b = random((64, depth)), random((depth, columns))
    nodes = [MATMUL, helper.make_node("Relu", ["y"], ["z"])]
    whole, _ = run(nodes, {"a": a}, {"b": b})
    assert np.array_equal(run(nodes, {"a": a}, {"b": b}, threads=2)[0], whole)
    for first, rows in ((0, 1), (63, 1), (5, 2), (20, 3), (1, 11), (7, 13), (0, 25)):
        part = a[first : first + rows]
        assert np.array_equal(run(nodes, {"a": part}, {"b": b}, threads=2)[0], whole[first : first + rows])


def test_threads_share_a_large_product():
    a, b = random((150, 200)), random((200, 700))
    two, launches = run([MATMUL], {"a": a}, {"b": b}, threads=2)
    assert launches[0].extent > launches[0].chunk
    assert np.array_equal(two, run([MATMUL], {"a": a}, {"b": b})[0])


def test_another_batch_compiles_nothing():
    weights = {"b": random((20, 40))}
    inputs = {"a": (FLOAT, [None, 20])}
    executable = native(model([MATMUL], inputs, ["y"], weights))
    kernels = {
        str(launch.kernel)
        for rows in (1, 2, 7, 12, 100)
        for segment in executable.program({"a": random((rows, 20))})
        for launch in segment.launches
    }
    assert len(kernels) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_that_are_not_finite_stay_in_their_row_and_column(threads):
    a, b = random((30, 20)), random((20, 50))
    a[3, 4], b[7, 9] = np.nan, np.inf
    found, _ = run([MATMUL], {"a": a}, {"b": b}, threads=threads)
    touched = np.zeros((30, 50), bool)
    touched[3], touched[:, 9] = True, True
    assert np.array_equal(~np.isfinite(found), touched)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_q_linear_mat_mul(by_row, batch):
    a, b = random((*batch, 5, 20), "u1"), random((*batch, 20, 33), "i1")
    rows = (*batch, 5, 1) if by_row else ()
    weights = {
        "as": np.float32(0.01) + random(rows) ** 2 / 100,
        "az": random((1, *rows), "u1")[0] if by_row else np.array(100, "u1"),
        "bs": np.array(0.03, "f4"),
        "bz": np.array(-7, "i1"),
        "ys": np.array(0.5, "f4"),
        "yz": np.array(120, "u1"),
    }
    weights["as"] = np.asarray(weights["as"], "f4")
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    found, _ = run([node], {"a": a, "b": b}, weights)
    sums = (a.astype("i4") - weights["az"]) @ (b.astype("i4") + 7)
    scaled = np.rint(sums * (weights["as"].astype("f8") * 0.03 / 0.5)) + 120
    assert found.dtype == np.uint8
    # A product just between two integers may fall to either.
    assert np.abs(found - np.clip(scaled, 0, 255)).max() <= 1
    assert (found == np.clip(scaled, 0, 255)).mean() > 0.99


def test_shapes_that_do_not_fit_are_refused():
    for a, b in (((3, 4), (5, 6)), ((2, 3, 4), (3, 4, 5)), ((), (3, 4))):
        with pytest.raises(InputError):
            run([MATMUL], {"a": random(a), "b": random(b)})


def test_products_read_and_write_only_their_own(monkeypatch):
    monkeypatch.setenv("EDUCE_GUARD", "1")
    for a, b in (
        ((13, 65), (65, 50)),
        ((37, 19), (19, 1)),
        ((3, 4, 5, 6), (3, 4, 6, 33)),
        ((1, 9), (9, 100)),
    ):
        nodes = [
            helper.make_node("Relu", ["a"], ["p"]),
            helper.make_node("Relu", ["b"], ["q"]),
            helper.make_node("MatMul", ["p", "q"], ["y"]),
        ]
        left, right = random(a), random(b)
        found, _ = run(nodes, {"a": left, "b": right})
        assert_near(found, np.matmul(np.maximum(left, 0).astype("f8"), np.maximum(right, 0)))
