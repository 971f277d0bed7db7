"""`StepGraph`: the graph of one step of a language model, built from its weights.

A step runs some tokens of some sequences. A token's row goes through every layer; attention alone looks at
other tokens, by the keys and values that the cache keeps in pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from educe.compiler.kernels.paged_attention import ITEM_WORDS
from educe.errors import UnsupportedModelError
from educe.model.checkpoint import Weight

OPSET = 24
_MOST_NAMED = 5
_MOST = 127


@dataclass(frozen=True)
class CacheLayout:
    """The sizes of one layer's keys, or values.

    Attributes:
        heads: Heads of keys and values.
        features: Features of a head.
    """

    heads: int
    features: int


class StepGraph:
    """A graph under construction.

    Inputs of the graph, for T tokens of S sequences of which R give logits: `tokens` i64[T]; `cos` and `sin`
    f32[T, rotated / 2]; `slots` i64[T], where a token's keys and values are written; `table` i32[S, pages];
    `items` i64[N, 5], see `kernels.paged_attention`; `rows` i64[R]; `keys.N` and `values.N` for each layer N,
    f32[pages, heads, keys of a page, features], which a run writes to. Output: `logits` f32[R, vocabulary].

    Args:
        weights: The model's weights by name.
        page: Keys of a page.
        precision: ``f32``, or ``int8``: products of weights rounded by outputs and activations by tokens.

    Attributes:
        caches: The layout of each layer's cache.
        num_heads: Heads of queries.
    """

    def __init__(self, weights: Mapping[str, Weight], page: int, precision: str = "f32") -> None:
        self.caches: list[CacheLayout] = []
        self.num_heads = 0
        self._weights, self._page = weights, page
        self._precision = precision
        self._rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        self._used: set[str] = set()
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._inputs: dict[str, ir.Value] = {}
        self.tokens = self._input("tokens", ir.DataType.INT64, ["T"])
        self.rows = self._input("rows", ir.DataType.INT64, ["R"])
        self._slots = self._input("slots", ir.DataType.INT64, ["T"])
        self._table = self._input("table", ir.DataType.INT32, ["S", "P"])
        self._items = self._input("items", ir.DataType.INT64, ["N", ITEM_WORDS])

    # Parts of models -----------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Say whether there is a weight of this name."""
        return name in self._weights

    def weight(self, name: str) -> ir.Value:
        """Return a weight as f32.

        Raises:
            UnsupportedModelError: there is none.
        """
        if name not in self._initializers:
            found = self._weights.get(name)
            if found is None:
                reason = f"the weight {name!r} is missing"
                raise UnsupportedModelError(reason, remedy="download the model again")
            self._used.add(name)
            self._initializers[name] = self._constant(found.array(), name)
        return self._initializers[name]

    def call(self, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Return the output of a node."""
        node = ir.node(operator, inputs, attributes, domain=domain, version=OPSET if not domain else None)
        node.outputs[0].name = f"{operator}.{len(self._nodes)}"
        node.name = node.outputs[0].name
        self._nodes.append(node)
        return node.outputs[0]

    def embedding(self, name: str, indices: ir.Value) -> ir.Value:
        """Return the rows of a table."""
        return self.call("Gather", self.weight(name), indices)

    def linear(self, x: ir.Value, name: str, bias: str = "") -> ir.Value:
        """Return x · Wᵀ + b of a weight [out, in]; `bias` is used if there is such a weight."""
        extra = [self.weight(bias)] if bias and self.has(bias) else []
        if self._precision == "f32":
            return self.call("Gemm", x, self.weight(name), *extra, transB=1)
        weight, scales = self._rounded(name)
        rows, row_scales = self._rounded_rows(x)
        total = self.call("Cast", self.call("MatMulInteger", rows, weight), to=int(ir.DataType.FLOAT))
        product = self.call("Mul", self.call("Mul", total, scales), row_scales)
        return self.call("Add", product, *extra) if extra else product

    def _rounded(self, name: str) -> tuple[ir.Value, ir.Value]:
        """Return a weight as i8[in, out] with the scale of each output."""
        if f"{name}, rounded" not in self._initializers:
            array = self._weights[name].array()
            self._used.add(name)
            scales = np.maximum(np.abs(array).max(axis=1), np.float32(1e-30)) / np.float32(_MOST)
            rounded = np.rint(array / scales[:, None]).astype(np.int8)
            self.number(f"{name}, rounded", rounded.T)
            self.number(f"{name}, scales", scales)
        return self._initializers[f"{name}, rounded"], self._initializers[f"{name}, scales"]

    def _rounded_rows(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return rows as i8 with the scale of each row."""
        if x not in self._rows:
            least = self.number("least", np.array(1e-30, np.float32))
            largest = self.call("ReduceMax", self.call("Abs", x), self.shape(-1), keepdims=1)
            step = self.number("step", np.array(1 / _MOST, np.float32))
            scale = self.call("Mul", self.call("Max", largest, least), step)
            rounded = self.call("Round", self.call("Div", x, scale))
            self._rows[x] = self.call("Cast", rounded, to=int(ir.DataType.INT8)), scale
        return self._rows[x]

    def rms_norm(self, x: ir.Value, name: str, epsilon: float) -> ir.Value:
        """Return x over the root of its mean square, times a weight: arxiv.org/abs/1910.07467."""
        return self.call("RMSNormalization", x, self.weight(name), axis=-1, epsilon=epsilon)

    def silu(self, x: ir.Value) -> ir.Value:
        """Return x · sigmoid(x)."""
        return self.call("Mul", x, self.call("Sigmoid", x))

    def rotate(self, x: ir.Value, heads: int, rotated: int) -> ir.Value:
        """Return [T, heads · features], the first `rotated` features of each head turned by the position."""
        cos, sin = (self._input(name, ir.DataType.FLOAT, ["T", rotated // 2]) for name in ("cos", "sin"))
        whole = self.call(
            "RotaryEmbedding",
            *(self.call("Unsqueeze", each, self.shape(0)) for each in (x, cos, sin)),
            num_heads=heads,
            rotary_embedding_dim=rotated,
        )
        return self.call("Squeeze", whole, self.shape(0))

    def attention(
        self,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        heads: int,
        layout: CacheLayout,
        scale: float,
        window: int = 0,
    ) -> ir.Value:
        """Return attention of [T, heads · features] over the next layer's pages, with k and v written."""
        number, self.num_heads = len(self.caches), heads
        self.caches.append(layout)
        pools = []
        for name, new in (("keys", k), ("values", v)):
            shape: list[int | str] = ["B", layout.heads, self._page, layout.features]
            pool = self._input(f"{name}.{number}", ir.DataType.FLOAT, shape)
            split = self.call("Reshape", new, self.shape(-1, layout.heads, layout.features))
            pools.append(self.call("CacheWrite", pool, split, self._slots, domain="educe"))
        out = self.call(
            "PagedAttention",
            self.call("Reshape", q, self.shape(-1, heads, layout.features)),
            *pools,
            self._table,
            self._items,
            domain="educe",
            scale=scale,
            window=window,
        )
        return self.call("Reshape", out, self.shape(-1, heads * layout.features))

    # The graph -----------------------------------------------------------------------------------------

    def number(self, name: str, array: np.ndarray) -> ir.Value:
        """Return a constant under a name of its own."""
        if name not in self._initializers:
            self._initializers[name] = self._constant(array, name)
        return self._initializers[name]

    def shape(self, *sizes: int) -> ir.Value:
        """Return a list of sizes, as Reshape and others take it."""
        return self.number(f"sizes {sizes}", np.array(sizes, np.int64))

    def finish(self, logits: ir.Value) -> ir.Model:
        """Return the graph, whose output is `logits`.

        Raises:
            UnsupportedModelError: weights are left over.
        """
        left = sorted(self._weights.keys() - self._used)
        if left:
            named = ", ".join(left[:_MOST_NAMED])
            raise UnsupportedModelError(f"{len(left)} weights have no place in this architecture: {named}")
        logits.name = "logits"
        logits.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            list(self._inputs.values()),
            [logits],
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET, "educe": 1},
            name="step",
        )
        return ir.Model(graph, ir_version=10)

    def _input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        if name not in self._inputs:
            self._inputs[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        return self._inputs[name]

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
        kind = ir.TensorType(tensor.dtype)
        return ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
