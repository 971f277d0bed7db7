"""An item's answer has the same bits whatever else is in its batch, and on any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.compiler.models import FLOAT, model, native

BATCH = 64

Nodes = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]
Made = tuple[Nodes, list[int], int]
"""Nodes from x to y with their weights, the shape of x without its batch, and the place of the batch."""

Case = Callable[[Random], Made]


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def odd(random: Random, largest: int) -> int:
    """Return a size up to `largest`, small ones and odd ones more often."""
    return random.choice([1, 2, 3, random.randint(1, largest), random.randint(1, largest) | 1])


def along(axes: list[int], places: str, operator: str, **attributes: Any) -> Case:
    """Return a reduction of `axes`; `places` names the dimensions, of which n is the batch."""

    def make(random: Random) -> Made:
        node = helper.make_node(operator, ["x", "axes"], ["y"], **attributes)
        shape = [odd(random, 300 if len(places) < 3 else 40) for _ in places[1:]]
        return ([node], {"axes": np.array(axes)}), shape, places.index("n")

    return make


def single(operator: str, shape: list[int], batch: int = 0, *given: np.ndarray, **attributes: Any) -> Case:
    """Return one node; sizes of 0 in `shape` are chosen at random."""

    def make(random: Random) -> Made:
        names = [f"w{index}" for index in range(len(given))]
        node = helper.make_node(operator, ["x", *names], ["y"], **attributes)
        sizes = [size or odd(random, 70) for size in shape]
        return ([node], dict(zip(names, given, strict=True))), sizes, batch

    return make


def product(left: bool, batch: int, extra: int = 0) -> Case:
    """Return a product with weights on either side; the batch is rows, columns, or matrices."""

    def make(random: Random) -> Made:
        k, m = odd(random, 300), odd(random, 90)
        w = weights(k, m) if left else weights(m, k)
        node = helper.make_node("MatMul", ["x", "w"] if left else ["w", "x"], ["y"])
        return ([node], {"w": w}), [k] if not extra else [extra, k], batch

    return make


def convolution(group: int = 1, taps: int = 3, operator: str = "Conv", **attributes: Any) -> Case:
    """Return a convolution of two dimensions."""

    def make(random: Random) -> Made:
        depth, count = group * (1 if group > 1 else odd(random, 40)), group * odd(random, 9)
        ins, outs = (depth, count) if operator == "Conv" else (count, depth)
        w = weights(outs, ins // group, taps, taps)
        node = helper.make_node(operator, ["x", "w"], ["y"], group=group, **attributes)
        return ([node], {"w": w}), [depth, taps + odd(random, 12), taps + odd(random, 20)], 0

    return make


def recurrent(operator: str, gates: int, **attributes: Any) -> Case:
    """Return a recurrent layer, whose batch is the second dimension."""

    def make(random: Random) -> Made:
        size, hidden = odd(random, 40), odd(random, 40)
        node = helper.make_node(operator, ["x", "w", "r"], ["y", ""], hidden_size=hidden, **attributes)
        w, r = weights(1, gates * hidden, size), weights(1, gates * hidden, hidden)
        return ([node], {"w": w, "r": r}), [odd(random, 6), size], 1

    return make


def attention(random: Random) -> Made:
    """Return attention of x to itself."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["y"]),
    ]
    return (nodes, {}), [odd(random, 4), odd(random, 70), odd(random, 40)], 0


def turned(first: list[int], *operators: str, **attributes: Any) -> Case:
    """Return nodes after a transposition."""

    def make(random: Random) -> Made:
        names = ["x", *(f"t{index}" for index in range(len(operators))), "y"]
        nodes = [helper.make_node("Transpose", names[:1], names[1:2], perm=first)]
        for index, operator in enumerate(operators, 1):
            last = attributes if index == len(operators) else {}
            nodes.append(helper.make_node(operator, [names[index]], [names[index + 1]], **last))
        return (nodes, {}), [odd(random, 90) for _ in first[1:]], 0

    return make


SCALE = np.abs(weights(24)) + 0.5
NONE = np.empty(0, np.float32)
CASES: dict[str, Case] = {
    **{
        f"{operator} of {axes} in {places}": along(axes, places, operator)
        for operator in ("ReduceSum", "ReduceMean", "ReduceL2", "ReduceProd", "ReduceLogSumExp")
        for axes, places in (
            ([0], "kn"),
            ([1], "nk"),
            ([0, 2], "anb"),
            ([0, 1], "abn"),
            ([1], "bkn"),
            ([1, 2], "nab"),
            ([0], "knb"),
        )
    },
    "long columns": single("ReduceSum", [9001], 1, np.array([0])),
    "columns after a transposition": turned([1, 0], "Exp", "Softmax", axis=0),
    "rows after a transposition": turned([0, 2, 1], "Softmax", axis=1),
    "mean after a transposition": turned([0, 2, 1], "Abs", "GlobalAveragePool"),
    "softmax of rows": single("Softmax", [0], axis=1),
    "softmax of columns": single("Softmax", [0], 1, axis=0),
    "log of softmax of columns": single("LogSoftmax", [0, 0], 2, axis=0),
    "layer normalization": single("LayerNormalization", [0, 24], 0, SCALE, SCALE, axis=-1),
    "layer normalization of a batch in the middle": single("LayerNormalization", [0, 24], 1, SCALE, axis=-1),
    "group normalization": single("GroupNormalization", [24, 0, 0], 0, SCALE, SCALE, num_groups=4),
    "instance normalization": single("InstanceNormalization", [24, 0, 0], 0, SCALE, SCALE),
    "lp normalization": single("LpNormalization", [0], 1, axis=0),
    "mean and variance": single("MeanVarianceNormalization", [5, 0, 0], 0, axes=[2, 3]),
    "mean and variance of columns": single("MeanVarianceNormalization", [0], 1, axes=[0]),
    "local response": single("LRN", [7, 0, 0], 0, size=3),
    "global mean": single("GlobalAveragePool", [0, 0, 0]),
    "mean of windows": single("AveragePool", [0, 21, 33], 0, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "norm of windows": single("LpPool", [0, 21, 33], 0, kernel_shape=[3, 2]),
    "resizing": single("Resize", [3, 17, 9], 0, NONE, np.float32([1, 1, 1.7, 2.3]), mode="linear"),
    "sums along": single("CumSum", [0, 0], 1, np.array(2)),
    "transform": single("DFT", [49, 1], 0),
    "product of rows": product(True, 0),
    "product of matrices": product(True, 0, 5),
    "product of a batch in the middle": product(True, 1, 7),
    "product of columns": product(False, 1),
    "product of turned columns": single("Gemm", [77], 1, weights(77, 24), transA=1),
    "convolution": convolution(),
    "convolution of points": convolution(taps=1),
    "strided convolution": convolution(strides=[2, 2], pads=[1, 1, 1, 1]),
    "depthwise convolution": convolution(group=6),
    "transposed convolution": convolution(operator="ConvTranspose"),
    "attention": attention,
    "LSTM": recurrent("LSTM", 4),
    "GRU": recurrent("GRU", 3, linear_before_reset=1),
    "RNN": recurrent("RNN", 1, direction="reverse"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_item_has_the_same_bits_in_every_batch(name: str) -> None:
    random = Random(name)
    rng = np.random.default_rng(random.randint(0, 2**32))
    for _ in range(2):
        (nodes, given), shape, batch = CASES[name](random)
        while BATCH in shape:
            shape = [size + (size == BATCH) for size in shape]
        declared = [*shape[:batch], "n", *shape[batch:]]
        made = model(nodes, {"x": (FLOAT, declared)}, ["y"], given)
        runs = [native(made, threads=threads) for threads in (1, 2)]
        x = rng.standard_normal([*shape[:batch], BATCH, *shape[batch:]], np.float32)
        whole = runs[0].run({"x": x})["y"]
        axis = whole.shape.index(BATCH)
        for count in (1, 2, random.randint(3, 63), BATCH):
            first = random.randint(0, BATCH - count)
            mates = rng.standard_normal(x.shape, np.float32)
            chosen = np.arange(first, first + count)
            few = np.ascontiguousarray(x.take(chosen, batch))
            among = np.moveaxis(mates, batch, 0)
            among[chosen] = np.moveaxis(x, batch, 0)[chosen]
            for run in runs:
                expected = whole.take(chosen, axis)
                np.testing.assert_array_equal(run.run({"x": few})["y"], expected, strict=True)
                found = run.run({"x": np.ascontiguousarray(mates)})["y"].take(chosen, axis)
                np.testing.assert_array_equal(found, expected, strict=True)
