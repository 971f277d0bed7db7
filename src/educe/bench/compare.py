"""Comparing two engines on one model: how far their outputs part, and at which node they begin to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common

from educe import engines
from educe.engines.base import Executable
from educe.model import Model, Signature, TensorType
from educe.model.signature import short_name
from educe.model.walk import node_label, operator_name

DEFAULT_TOLERANCE = 1e-4
"""Largest relative difference between engines that agree: rounding, and the order of sums."""

_CHUNK_BYTES = 256 * 2**20
_UNKNOWN_SIZE = 16
_TEXT_BYTES = 64


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far one value of two engines is apart.

    Attributes:
        output: The value's name.
        max_absolute: Largest difference of an element; infinite if only one is a number, or finite.
        mean_absolute: Mean difference of the elements.
        max_relative: `max_absolute` over the largest finite magnitude that the second engine found.
        reason: What keeps the values from being compared, such as another shape.
    """

    output: str
    max_absolute: float
    mean_absolute: float
    max_relative: float
    reason: str | None = None


class Comparison(msgspec.Struct, frozen=True):
    """The outputs of two engines for the same inputs.

    Attributes:
        tolerance: Largest `max_relative` of engines that agree.
    """

    engine: str
    against: str
    tolerance: float
    differences: tuple[Difference, ...]

    @property
    def agree(self) -> bool:
        """Whether every output stays within the tolerance."""
        return all(each.max_relative <= self.tolerance for each in self.differences)

    @property
    def worst(self) -> Difference | None:
        """The output that is furthest apart, if there are outputs."""
        return max(self.differences, key=lambda each: each.max_relative, default=None)


class FirstDifference(msgspec.Struct, frozen=True):
    """The first node, in the order of the graph, where two engines part."""

    node: str
    operator: str
    difference: Difference


def compare(
    executable: Executable,
    against: Executable,
    feeds: Mapping[str, Any],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Comparison:
    """Run one model on two engines and compare all outputs.

    Args:
        executable: The model as the engine in question compiled it.
        against: The same model, as the engine that counts as right compiled it.

    Raises:
        InputError: the inputs do not fit.
    """
    differences = differences_of(executable.run(feeds), against.run(feeds))
    return Comparison(executable.engine, against.engine, tolerance, differences)


def first_difference(
    model: Model,
    engine: str,
    against: str,
    feeds: Mapping[str, Any],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    **options: Any,
) -> FirstDifference | None:
    """Return the first node whose outputs part by more than `tolerance`, or None if none does.

    The tensors of the main graph become outputs of a copy of the model, as many at a time as fit into
    256 MiB by their declared sizes. An engine cannot fuse what it must show: where the outputs of the whole
    model part and no node does, a fusion is the cause.
    """
    for nodes in _chunks(model.graph):
        part = _exposing(model, [value for node in nodes for value in _shown(node)])
        pair = [engines.compile(part, name, **options) for name in (engine, against)]
        differences = {each.output: each for each in differences_of(*_run_both(pair, part, feeds))}
        for node in nodes:
            for value in _shown(node):
                difference = differences[str(value.name)]
                if not difference.max_relative <= tolerance:
                    return FirstDifference(node_label(node), operator_name(node), difference)
    return None


def differences_of(outputs: Mapping[str, Any], against: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return the difference of every output; sequences and maps are compared item by item."""
    return tuple(_difference(name, outputs[name], against[name]) for name in against)


def _difference(name: str, found: Any, expected: Any) -> Difference:
    if isinstance(expected, Mapping):
        keys = list(expected)
        if not isinstance(found, Mapping) or list(found) != keys:
            return _incomparable(name, f"the keys are not {keys}")
        return _difference(name, [found[key] for key in keys], [expected[key] for key in keys])
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return _incomparable(name, f"not a list of {len(expected)}")
        each = [_difference(name, a, b) for a, b in zip(found, expected, strict=True)]
        return max(each, key=lambda one: one.max_relative, default=Difference(name, 0.0, 0.0, 0.0))
    if found is None or expected is None:
        return Difference(name, 0.0, 0.0, 0.0) if found is expected else _incomparable(name, "one is absent")
    return _array_difference(name, np.asarray(found), np.asarray(expected))


def _array_difference(name: str, found: np.ndarray, expected: np.ndarray) -> Difference:
    if found.shape != expected.shape:
        return _incomparable(name, f"the shapes are {list(found.shape)} and {list(expected.shape)}")
    types = short_name(found.dtype), short_name(expected.dtype)
    if types[0] != types[1]:
        return _incomparable(name, f"the types are {types[0]} and {types[1]}")
    if types[0] == "str":
        apart = np.atleast_1d(found != expected).astype(np.float64)
        scale = 1.0
    else:
        apart, scale = _distance(found, expected)
    worst = float(apart.max(initial=0.0))
    mean = float(apart.mean()) if apart.size else 0.0
    return Difference(name, worst, mean, worst / scale if worst else 0.0)


def _distance(found: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the distance of every element, and the largest finite magnitude expected."""
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = np.atleast_1d(found).astype(wide), np.atleast_1d(expected).astype(wide)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
    apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    apart[np.isnan(apart)] = np.inf
    magnitudes = np.abs(b[np.isfinite(b)])
    return apart, float(magnitudes.max(initial=0.0)) or 1.0


def _incomparable(name: str, reason: str) -> Difference:
    return Difference(name, np.inf, np.inf, np.inf, reason)


def _chunks(graph: ir.Model) -> Iterator[list[ir.Node]]:
    chunk: list[ir.Node] = []
    size_bytes = 0
    for node in graph.graph:
        needed = sum(_size_bytes(value) for value in _shown(node))
        if chunk and size_bytes + needed > _CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
        if _shown(node):
            chunk.append(node)
            size_bytes += needed
    if chunk:
        yield chunk


def _shown(node: ir.Node) -> list[ir.Value]:
    return [
        value
        for value in node.outputs
        if value.name and value.dtype is not None and isinstance(value.type, ir.TensorType)
    ]


def _size_bytes(value: ir.Value) -> int:
    elements = 1
    for dim in value.shape or ():
        elements *= dim if isinstance(dim, int) else _UNKNOWN_SIZE
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return elements * _TEXT_BYTES
    return elements * value.dtype.bitwidth // 8


def _exposing(model: Model, values: Sequence[ir.Value]) -> Model:
    """Return a copy of `model` whose outputs are `values`, without the nodes that they do not need."""
    names = [str(value.name) for value in values]
    graph = model.graph.clone()
    by_name = {output.name: output for node in graph.graph for output in node.outputs}
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(by_name[name] for name in names)
    graph = onnx_ir.passes.common.RemoveUnusedNodesPass()(graph).model
    types = {str(value.name): value.dtype for value in values}
    outputs = {name: TensorType(short_name(dtype.numpy()), None) for name, dtype in types.items() if dtype}
    inputs = {str(value.name): model.signature.inputs[str(value.name)] for value in graph.graph.inputs}
    card = msgspec.structs.replace(model.card, state={})
    return dataclasses.replace(model, graph=graph, signature=Signature(inputs, dict(outputs)), card=card)


def _run_both(
    pair: Sequence[Executable], model: Model, feeds: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    needed = {name: feeds[name] for name in model.signature.inputs}
    return pair[0].run(needed), pair[1].run(needed)
