"""Products and convolutions of 8-bit integers beside ONNX Runtime, on one and two threads.

Both take turns; the fastest run and the median of each are printed in GOP/s, and the ratios of ours to
theirs. Answers are compared first, bit for bit.

Run by ``make bench``, or ``python -m benchmarks.integers``.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import educe

ROUNDS, CALLS = 6, 30
TYPES = {"u8": (np.uint8, TensorProto.UINT8), "s8": (np.int8, TensorProto.INT8)}
PRODUCTS = [
    ("u8", "s8", (1024, 1024, 1024)),
    ("u8", "s8", (1, 1024, 1024)),
    ("u8", "s8", (128, 768, 768)),
    ("u8", "s8", (128, 768, 3072)),
    ("s8", "s8", (128, 768, 768)),
    ("u8", "u8", (128, 768, 768)),
]
CONVOLUTIONS = [
    # channels, size, channels of the output, kernel, stride, groups
    (3, 224, 64, 7, 2, 1),
    (64, 56, 64, 3, 1, 1),
    (64, 56, 64, 1, 1, 1),
    (24, 56, 24, 1, 1, 1),
    (256, 14, 256, 1, 1, 1),
    (512, 7, 512, 3, 1, 1),
    (96, 56, 96, 3, 1, 96),
]


def main() -> None:
    """Print a line for each case."""
    for threads in (1, 2):
        print(f"{threads} threads: native GOP/s, onnxruntime GOP/s, ratio; fastest (median)")
        for left, right, sizes in PRODUCTS:
            compare(f"{left} x {right} {sizes}", *product(left, right, sizes), threads)
        for case in CONVOLUTIONS:
            compare(f"QLinearConv {case}", *convolution(*case), threads)


def product(left: str, right: str, sizes: tuple[int, int, int]) -> tuple[onnx.ModelProto, np.ndarray, float]:
    """Return a MatMulInteger, its input, and its operations."""
    m, k, n = sizes
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    made = model([node], TYPES[left][1], (m, k), TensorProto.INT32, {"w": random((k, n), TYPES[right][0])})
    return made, random((m, k), TYPES[left][0]), 2.0 * m * k * n


def convolution(
    depth: int, size: int, channels: int, kernel: int, stride: int, groups: int
) -> tuple[onnx.ModelProto, np.ndarray, float]:
    """Return a chain of QLinearConv as long as its shapes allow up to four, its input, and its operations."""
    length = 4 if depth == channels and stride == 1 else 1
    weights = {
        "xs": np.float32(0.02), "xz": np.uint8(128),
        "w": random((channels, depth // groups, kernel, kernel), np.int8),
        "ws": np.float32(0.005), "wz": np.int8(0), "ys": np.float32(0.5), "yz": np.uint8(120),
        "b": np.arange(channels, dtype=np.int32),
    }  # fmt: skip
    values = ["x", *(f"y{i}" for i in range(1, length)), "y"]
    nodes = [
        helper.make_node(
            "QLinearConv", [given, *weights], [result],
            strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups,
        )
        for given, result in itertools.pairwise(values)
    ]  # fmt: skip
    shape = (1, depth, size, size)
    made = model(nodes, TensorProto.UINT8, shape, TensorProto.UINT8, weights)
    outputs = channels * (-(-size // stride)) ** 2
    return made, random(shape, np.uint8), 2.0 * length * outputs * (depth // groups) * kernel**2


def model(
    nodes: list[onnx.NodeProto], given: int, shape: tuple[int, ...], result: int, weights: dict[str, Any]
) -> onnx.ModelProto:
    """Return a model from ``x`` to ``y``."""
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", given, shape)],
        [helper.make_tensor_value_info("y", result, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def random(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return random integers of all values."""
    bounds = np.iinfo(dtype)
    return np.random.default_rng(0).integers(bounds.min, bounds.max + 1, shape).astype(dtype)


def compare(name: str, made: onnx.ModelProto, x: np.ndarray, operations: float, threads: int) -> None:
    """Print how fast both run a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    own = educe.compile(made, engine="native", threads=threads)
    assert np.array_equal(own.run({"x": x})["y"], session.run(None, {"x": x})[0]), name
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for seconds, call in zip(
            times, (lambda: own.run({"x": x}), lambda: session.run(None, {"x": x})), strict=True
        ):
            seconds += [timed(call) for _ in range(CALLS)]
    least, median = ([how(each) for each in times] for how in (min, statistics.median))
    rates = [
        f"{operations / a / 1e9:.0f} ({operations / b / 1e9:.0f})" for a, b in zip(least, median, strict=True)
    ]
    ratio = f"{least[1] / least[0]:.2f} ({median[1] / median[0]:.2f})"
    print(f"{name:<40}{rates[0]:>14}{rates[1]:>14}{ratio:>14}")


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
