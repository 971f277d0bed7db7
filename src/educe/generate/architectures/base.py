"""`StepGraph`: the graph of one step of a language model, built from its weights.

A step runs some tokens of some sequences. A token's row goes through every layer; attention alone looks at
other tokens, by the keys and values that the cache keeps in pages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from educe.compiler.kernels.attention_items import ITEM_WORDS
from educe.errors import UnsupportedModelError, nearest
from educe.generate.cache import CacheFormat, CacheLayout
from educe.generate.configuration import Configuration
from educe.generate.parameters import Matrix, Parameters, Progress
from educe.generate.rotary import Rotary
from educe.model.binding import Binding
from educe.model.checkpoint import Checkpoint

OPSET = 24

ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_fast": ("Gelu", {"approximate": "tanh"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "silu": ("Swish", {}),
    "swish": ("Swish", {}),
}
"""The operator of each activation, as Hugging Face names it."""


class StepGraph:
    """A graph under construction.

    Inputs of the graph, those that it uses, for T tokens of S sequences of which R give logits: `tokens`
    i64[T] and their places in their texts, `positions` i64[T]; `cos.NAME` and `sin.NAME`
    f32[T, features / 2] for each of `rotaries`; `slots` i64[T], where a token's keys and values are written;
    `table` i32[S, pages]; `items` i64[N, 5], see `kernels.paged_attention`; `rows` i64[R]; `cache.N` for
    each layer N, [pages, heads, elements], see `CacheFormat`, which a run writes to. Output: `logits`
    f32[R, vocabulary].

    Args:
        checkpoint: Whose weights they are.
        cache: How keys and values are held.
        precision: How weights are held and products computed, one of `PRECISIONS`.
        weights: The weights that a graph before this one left, if the model has several.
        progress: What is told of the packing of weights.

    Attributes:
        caches: The layout of each layer's cache.
        num_heads: Heads of queries.
        rotaries: The angles that positions are turned by, by name.
        weights: The weights that are not used yet, and those that are missing.
    """

    causal: ClassVar[bool] = True
    """Whether tokens see only those before them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        cache: CacheFormat,
        precision: str = "f32",
        *,
        weights: Binding | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.caches: list[CacheLayout] = []
        self.num_heads = 0
        self.rotaries: dict[str, Rotary] = {}
        self.weights = weights or Binding(checkpoint)
        self._cache = cache
        self._parameters = Parameters(checkpoint, precision, progress)
        self._rows: dict[tuple[Any, ...], Sequence[ir.Value]] = {}
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}
        self._inputs: dict[str, ir.Value] = {}

    @property
    def tokens(self) -> ir.Value:
        """The tokens, i64[T]."""
        return self._input("tokens", ir.DataType.INT64, ["T"])

    @property
    def positions(self) -> ir.Value:
        """Their places in their texts, i64[T]."""
        return self._input("positions", ir.DataType.INT64, ["T"])

    @property
    def rows(self) -> ir.Value:
        """Which of the tokens give an output, i64[R]."""
        return self._input("rows", ir.DataType.INT64, ["R"])

    # Parts of models -----------------------------------------------------------------------------------

    def weight(self, name: str, shape: Sequence[int], *, plus: float = 0.0) -> ir.Value:
        """Return a weight of a shape as f32, with a number added to it; `finish` says if it is missing."""
        found = self.weights.take(name, shape)
        return ir.Value(name=name) if found is None else self._parameters.array(found, plus)

    def call(self, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Return the output of a node."""
        return self.outputs(1, operator, *inputs, domain=domain, **attributes)[0]

    def outputs(
        self, count: int, operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Return the outputs of a node that has so many."""
        version = None if domain else OPSET
        node = ir.node(operator, inputs, attributes, domain=domain, version=version, num_outputs=count)
        node.name = f"{operator}.{len(self._nodes)}"
        for number, output in enumerate(node.outputs):
            output.name = f"{node.name}.{number}" if number else node.name
        self._nodes.append(node)
        return node.outputs

    def embedding(self, name: str, shape: Sequence[int], indices: ir.Value) -> ir.Value:
        """Return the rows of the table ``name.weight``, f32."""
        table = self._matrix([f"{name}.weight"], shape)
        if table.attributes is None:
            rows = self.call("Gather", *table.values, indices)
            return self._cast(rows, ir.DataType.FLOAT) if table.is_bfloat16 else rows
        return self.call("DequantizeRows", indices, *table.values, domain="educe", **table.attributes)

    def linear(self, x: ir.Value, name: str, shape: Sequence[int], *, bias: bool = False) -> ir.Value:
        """Return x · Wᵀ + b: W is ``name.weight`` [out, in], b is ``name.bias`` [out] or 0."""
        extra = [self.weight(f"{name}.bias", shape[:1])] if bias else []
        matrix = self._matrix([f"{name}.weight"], shape)
        if matrix.is_bfloat16:
            given = self._cast(x, ir.DataType.BFLOAT16)
            product = self._cast(self.call("Gemm", given, *matrix.values, transB=1), ir.DataType.FLOAT)
        elif matrix.attributes is None:
            return self.call("Gemm", x, *matrix.values, *extra, transB=1)
        else:
            rows = self._rounded(x, matrix.of_rows)
            product = self.call("QuantizedLinear", *rows, *matrix.values, domain="educe", **matrix.attributes)
        return self.call("Add", product, *extra) if extra else product

    def _cast(self, x: ir.Value, kind: ir.DataType) -> ir.Value:
        return self.call("Cast", x, to=int(kind))

    def expert_linear(
        self, x: ir.Value, ends: ir.Value, names: Sequence[str], shape: Sequence[int]
    ) -> ir.Value:
        """Return x · Wᵀ where each row meets the weight ``name.weight`` [out, in] of its expert.

        Args:
            x: The rows in the order of experts.
            ends: Where the rows of each expert end.
            names: The weight of each expert.
            shape: That of all of them.
        """
        matrix = self._matrix([f"{name}.weight" for name in names], shape)
        if matrix.attributes is None:
            return self.call("ExpertLinear", x, ends, *matrix.values, domain="educe")
        rows = [*self._rounded(x, matrix.of_rows), ends]
        return self.call("QuantizedExpertLinear", *rows, *matrix.values, domain="educe", **matrix.attributes)

    def _matrix(self, names: Sequence[str], shape: Sequence[int]) -> Matrix:
        """Return a matrix, or those of experts."""
        found = [self.weights.take(name, shape) for name in names]
        there = [weight for weight in found if weight is not None]
        if len(there) < len(names):
            return Matrix([ir.Value(name=name) for name in names])
        return self._parameters.matrix(*there)

    def _rounded(self, x: ir.Value, attributes: Mapping[str, int]) -> Sequence[ir.Value]:
        """Return rows in 8 bits, as `QuantizedLinear` reads them; once for all products alike."""
        key = x, *attributes.items()
        if key not in self._rows:
            self._rows[key] = self.outputs(3, "QuantizeRows", x, domain="educe", **attributes)
        return self._rows[key]

    def rms_norm(
        self, x: ir.Value, name: str, features: int, epsilon: float, *, plus: float = 0.0
    ) -> ir.Value:
        """Return x over the root of its mean square, times ``name.weight`` + `plus`: arxiv:1910.07467.

        Args:
            x: The rows; the last dimension is normed.
            name: The norm.
            features: Its size.
            epsilon: What is added to the mean square.
            plus: What is added to the weight.
        """
        weight = self.weight(f"{name}.weight", [features], plus=plus)
        return self.call("RMSNormalization", x, weight, axis=-1, epsilon=epsilon)

    def layer_norm(self, x: ir.Value, name: str, features: int, epsilon: float) -> ir.Value:
        """Return x without its mean, over its deviation, times ``name.weight``, plus ``name.bias``."""
        scale, bias = (self.weight(f"{name}.{part}", [features]) for part in ("weight", "bias"))
        return self.call("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def activation(self, x: ir.Value, name: str) -> ir.Value:
        """Return the activation of `ACTIVATIONS` that has this name.

        Raises:
            UnsupportedModelError: there is none.
        """
        if name not in ACTIVATIONS:
            reason = f"the activation {name!r} is not run yet"
            raise UnsupportedModelError(reason, remedy=nearest(name, ACTIVATIONS))
        operator, attributes = ACTIVATIONS[name]
        return self.call(operator, x, **attributes)

    def head(
        self, x: ir.Value, name: str, table: str, shape: Sequence[int], config: Configuration
    ) -> ir.Value:
        """Return logits by the weight ``name.weight``, or by that of the embeddings if they are tied."""
        tied = config.truth("tie_word_embeddings", f"{name}.weight" not in self.weights)
        if tied:
            self.weights.ignore(re.escape(f"{name}.weight"))
        return self.linear(x, table if tied else name, shape)

    def scaled(self, x: ir.Value, factor: float) -> ir.Value:
        """Return x times a number."""
        if factor == 1:
            return x
        return self.call("Mul", x, self.number(f"times {factor}", np.array(factor, np.float32)))

    def softcapped(self, x: ir.Value, bound: float) -> ir.Value:
        """Return bound · tanh(x / bound); x itself if the bound is 0."""
        return self.scaled(self.call("Tanh", self.scaled(x, 1 / bound)), bound) if bound else x

    def by_head(self, x: ir.Value, features: int) -> ir.Value:
        """Return [T, heads · features] as [T, heads, features]."""
        return self.call("Reshape", x, self.shape(0, -1, features))

    def joined(self, x: ir.Value) -> ir.Value:
        """Return [T, heads, features] as [T, heads · features]."""
        return self.call("Reshape", x, self.shape(0, -1))

    def rotate(self, x: ir.Value, heads: int, name: str) -> ir.Value:
        """Return [T, heads · features], the first features of each head turned by one of `rotaries`."""
        rotated = self.rotaries[name].features
        cos, sin = (
            self._input(f"{part}.{name}", ir.DataType.FLOAT, ["T", rotated // 2]) for part in ("cos", "sin")
        )
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
        softcap: float = 0.0,
        bias: ir.Value | None = None,
    ) -> ir.Value:
        """Return attention of [T, heads · features] over the next layer's pages, with k and v written.

        `window`, `softcap` and `bias` are those of the operator `PagedAttention`.
        """
        self.num_heads = heads
        pool = self.written(k, v, f".{self._next_cache(layout)}", layout)
        attributes = {"scale": scale, "window": window, "softcap": softcap, "causal": int(self.causal)}
        return self.attended(q, pool, "", layout, bias, **attributes)

    def _next_cache(self, layout: CacheLayout) -> int:
        """Return the number of the next layer's cache."""
        self.caches.append(layout)
        return len(self.caches) - 1

    def pool(self, name: str, layout: CacheLayout) -> ir.Value:
        """Return the input ``cacheNAME`` of keys and values."""
        dtype = ir.DataType.from_numpy(self._cache.dtype)
        return self._input(f"cache{name}", dtype, ["B", *self._cache.shape(layout)])

    def written(
        self, k: ir.Value, v: ir.Value, name: str, layout: CacheLayout, slots: str = "slots"
    ) -> ir.Value:
        """Return the cache NAME with keys and values [T, heads · features] written to the input `slots`."""
        places = self._input(slots, ir.DataType.INT64, ["T"])
        split = (self.call("Reshape", each, self.shape(-1, layout.heads, layout.features)) for each in (k, v))
        pool, page = self.pool(name, layout), self._cache.page
        return self.call("CacheWrite", pool, *split, places, domain="educe", page=page)

    def attended(
        self,
        q: ir.Value,
        pool: ir.Value,
        name: str,
        layout: CacheLayout,
        bias: ir.Value | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Return attention over the pages in the inputs ``tableNAME``, by ``itemsNAME``."""
        out = self.call(
            "PagedAttention",
            self.by_head(q, layout.features),
            pool,
            self._input(f"table{name}", ir.DataType.INT32, ["S", f"P{name}"]),
            self._input(f"items{name}", ir.DataType.INT64, [f"N{name}", ITEM_WORDS]),
            *([] if bias is None else [bias]),
            domain="educe",
            page=self._cache.page,
            **attributes,
        )
        return self.joined(out)

    # The graph -----------------------------------------------------------------------------------------

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the weights' precision."""
        return self._parameters.notes

    def number(self, name: str, array: np.ndarray) -> ir.Value:
        """Return a constant under a name of its own."""
        if name not in self._initializers:
            self._initializers[name] = self._constant(array, name)
        return self._initializers[name]

    def shape(self, *sizes: int) -> ir.Value:
        """Return a list of sizes, as Reshape and others take it."""
        return self.number(f"sizes {sizes}", np.array(sizes, np.int64))

    def finish(self, output: ir.Value, name: str = "logits") -> ir.Model:
        """Return the graph of all nodes so far, whose output has the given name.

        Raises:
            ModelFileError: weights are missing or misshapen.
            UnsupportedModelError: weights are left over.
        """
        self.weights.finish()
        self._parameters.fill()
        output.name = name
        output.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            list(self._inputs.values()),
            [output],
            nodes=self._nodes,
            initializers=[*self._initializers.values(), *self._parameters.values],
            opset_imports={"": OPSET, "educe": 1},
            name="step",
        )
        return ir.Model(graph, ir_version=10)

    def _input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        if name not in self._inputs:
            self._inputs[name] = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        return self._inputs[name]

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
        kind = ir.TensorType(tensor.dtype)
        return ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
