"""Products with weights of 4 and 8 bits at the sizes of two language models, beside MatMulInteger.

All take turns; the fastest run of each is printed: its time, the GB/s of weights that it reads, its GOP/s,
and the ratio of MatMulInteger's time to its own. The GB/s that the machine reads at most are the scale. Each
product has several weights, so that the second cache holds none of them.

Run by ``make bench``, or ``python -m benchmarks.quantized_linear``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

import educe
from benchmarks.integers import model, random
from educe.bench.peaks import measure_peaks
from educe.engines.base import Options
from educe.engines.native import NativeEngine
from educe.formats.onnx_types import read_signature
from educe.machine import usable_cores
from educe.model import Model
from educe.model.digest import Digest
from educe.model.quantized import QuantizedWeight, pack

ROWS = (1, 4, 16, 64, 512)
ROUNDS, SECONDS = 5, 0.05
WEIGHTS_BYTES = 2**26
SHAPES = {
    "Qwen2.5-0.5B gate and up": (9728, 896),
    "Qwen2.5-0.5B down": (896, 4864),
    "Qwen2.5-0.5B logits": (151936, 896),
    "Llama-3.2-1B gate and up": (16384, 2048),
    "Llama-3.2-1B down": (2048, 8192),
}
"""Outputs and inputs."""


@dataclass(frozen=True)
class Format:
    """How a weight is held: bits, numbers of a block (0 for one block), whether groups have multipliers."""

    bits: int
    block: int = 0
    has_multipliers: bool = False

    def weight(self, outputs: int, inputs: int) -> QuantizedWeight:
        """Return a random weight."""
        rng = np.random.default_rng(0)
        low, high, dtype = (-127, 128, np.int8) if self.bits == 8 else (0, 16, np.uint8)
        block = self.block or inputs
        scales = np.full((outputs, -(-inputs // block)), 0.01, np.float16 if self.block else np.float32)
        multipliers = rng.integers(1, 16, (outputs, -(-inputs // 32)), np.uint8)
        codes = rng.integers(low, high, (outputs, inputs), dtype)
        return QuantizedWeight(codes, scales, block, multipliers if self.has_multipliers else None, 32)


FORMATS = {"int8": Format(8), "int4": Format(4, 0, True), "Q8_0": Format(8, 32), "Q4_0": Format(4, 32)}


class Contestant:
    """A product over several weights, which runs use in turn.

    Attributes:
        weight_bytes: Size of one of them.
        fastest: The least time of a run since the last call of `start`.
    """

    def __init__(self, executables: list[Any], weight_bytes: int) -> None:
        self._executables, self.weight_bytes, self._next = executables, weight_bytes, 0
        self.fastest = float("inf")

    def start(self) -> None:
        """Forget what was measured, and meet a new number of rows."""
        self.fastest = float("inf")

    def turn(self, x: np.ndarray) -> None:
        """Run for some time."""
        end = time.perf_counter() + SECONDS
        while (begin := time.perf_counter()) < end or self.fastest == float("inf"):
            self._executables[self._next].run({"x": x})
            self.fastest = min(self.fastest, time.perf_counter() - begin)
            self._next = (self._next + 1) % len(self._executables)


def main() -> None:
    """Print a line for each product, number of rows, and format."""
    print(f"{usable_cores()} threads; memory: {measure_peaks().read_gigabytes_per_second:.1f} GB/s")
    for name, (outputs, inputs) in SHAPES.items():
        own = {each: quantized(form.weight(outputs, inputs)) for each, form in FORMATS.items()}
        other = integers(outputs, inputs)
        for rows in ROWS:
            compare(f"{name:<26}{rows:>5} rows", own, other, rows, outputs, inputs)


def compare(
    name: str, own: dict[str, Contestant], other: Contestant, rows: int, outputs: int, inputs: int
) -> None:
    """Print how fast all are for a number of rows."""
    x = np.random.default_rng(rows).standard_normal((rows, inputs), np.float32)
    codes = random((rows, inputs), np.uint8)
    every = [*own.values(), other]
    for each in every:
        each.start()
    for _ in range(ROUNDS):
        for each in every:
            each.turn(codes if each is other else x)
    for form, each in own.items():
        rate = each.weight_bytes / each.fastest / 1e9
        operations = 2 * rows * outputs * inputs / each.fastest / 1e9
        ratio = other.fastest / each.fastest
        print(
            f"{name} {form:5}{each.fastest * 1e6:9.0f} us{rate:7.1f} GB/s{operations:7.0f} GOP/s{ratio:6.2f}"
        )


def quantized(weight: QuantizedWeight) -> Contestant:
    """Return the product with a weight, and check what it gives."""
    packed = pack(weight)
    parts = [each for each in (packed.codes, packed.scales, packed.multipliers) if each is not None]
    size = sum(each.nbytes for each in parts)
    executables = [compiled(weight, [each.copy() for each in parts]) for _ in range(copies(size))]
    x = np.random.default_rng(1).standard_normal((2, weight.codes.shape[1]), np.float32)
    expected, found = x @ weight.dequantize().T, executables[0].run({"x": x})["y"]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    return Contestant(executables, size)


def compiled(weight: QuantizedWeight, parts: list[np.ndarray]) -> Any:
    """Compile a graph that rounds rows and multiplies them with a packed weight."""
    (outputs, inputs), kind = weight.codes.shape, ir.TensorType(ir.DataType.FLOAT)
    constants = [
        ir.Value(name=f"w{number}", const_value=ir.Tensor(part, name=f"w{number}"))
        for number, part in enumerate(parts)
    ]
    x = ir.Value(name="x", shape=ir.Shape(["rows", inputs]), type=kind)
    attributes = {"block": weight.block, **({"group": weight.group} if len(parts) > 2 else {})}
    sizes = {"in_features": inputs, "out_features": outputs}
    rows = ir.node("QuantizeRows", [x], attributes, domain="educe", num_outputs=3)
    given = [*rows.outputs, *constants]
    product = ir.node("QuantizedLinear", given, {**attributes, **sizes}, domain="educe")
    for number, value in enumerate(rows.outputs):
        value.name = f"rows{number}"
    product.outputs[0].name, product.outputs[0].type = "y", kind
    opsets = {"": 24, "educe": 1}
    graph = ir.Graph(
        [x], product.outputs, nodes=[rows, product], initializers=constants, opset_imports=opsets
    )
    whole = ir.Model(graph, ir_version=10)
    signature = read_signature(ir.to_proto(whole).graph)
    return NativeEngine().compile(Model(whole, signature, "product", None, Digest([]), 0, {}), Options())


def integers(outputs: int, inputs: int) -> Contestant:
    """Return MatMulInteger of the same size."""
    weights = {"w": random((inputs, outputs), np.int8)}
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    made = model([node], TensorProto.UINT8, ("rows", inputs), TensorProto.INT32, weights)
    size = outputs * inputs
    return Contestant([educe.compile(made, engine="native") for _ in range(copies(size))], size)


def copies(size_bytes: int) -> int:
    """Return of how many weights a product has its choice."""
    return 1 + WEIGHTS_BYTES // size_bytes


if __name__ == "__main__":
    main()
