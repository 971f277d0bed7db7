"""What can be computed without any input."""

from __future__ import annotations

import math
import warnings

import numpy as np
import onnx
import onnx_ir as ir

from educe.graph.passes.base import (
    Edit,
    constant,
    edits,
    is_call,
    is_read,
    maker,
    scalar,
    sizes,
    static_shape,
    visited,
)
from educe.graph.passes.simplify import RANDOM
from educe.model.walk import STANDARD_DOMAINS, all_nodes, subgraphs

# A result may be larger than what it is made from by so much: what only repeats elements stays a node.
_ADDED_BYTES = 64 * 1024
_MAX_BYTES = 64 * 1024 * 1024
# Operators whose time does not follow from the sizes of their inputs and outputs run on small ones only.
_COSTLY = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "DeformConv", "Resize")
_MAX_COSTLY_SIZE = 4096


class ConstantFolding:
    """Computes nodes whose inputs are all initializers, by ONNX's evaluator.

    1. Standard operators whose result has a known and bounded size; never random ones, or those with bodies.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        changed = False
        for edit in edits(model):
            for node in list(edit.graph):
                if _can_fold(node):
                    _fold(edit, node, model.opset_imports)
            changed |= edit.changed
        return changed


class KnownShapes:
    """Makes constants of sizes that do not depend on the run.

    1. Shape of a tensor whose sizes are all known; Size of one.
    2. Gather or Slice of such sizes out of a Shape of which others are not known.
    3. A Reshape whose shape is joined from parts gets the sizes that are constants: no node changes.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        return visited(model, _make_known)


def _make_known(edit: Edit, node: ir.Node) -> None:
    edit.changed |= _learns_sizes(node)
    known = _known_sizes(node)
    if known is not None:
        output = node.outputs[0]
        edit.replace(output, edit.constant(known, str(output.name)))


class WeightDequantization:
    """Dequantizes weights where nothing else is quantized.

    1. DequantizeLinear of an initializer to f32, if no operator of the model quantizes or takes integers for
       numbers, and all such weights together are small enough to be held as f32.
    """

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""
        if any(_is_quantized(node) for node in all_nodes(model)):
            return False
        found = [
            (edit, node) for edit in edits(model) for node in edit.graph if _is_weight_dequantization(node)
        ]
        size_bytes = sum(
            4 * array.size for _, node in found if (array := constant(node.inputs[0])) is not None
        )
        if not found or size_bytes > _MAX_BYTES:
            return False
        for edit, node in found:
            _fold(edit, node, model.opset_imports)
        return any(edit.changed for edit, _ in found)


def _is_quantized(node: ir.Node) -> bool:
    name = node.op_type
    return (
        ("QuantizeLinear" in name and name != "DequantizeLinear")
        or name.startswith("QLinear")
        or "Integer" in name
    )


def _is_weight_dequantization(node: ir.Node) -> bool:
    inputs = [constant(value) for value in node.inputs if value is not None]
    return is_call(node, "DequantizeLinear") and all(array is not None for array in inputs)


def _can_fold(node: ir.Node) -> bool:
    if node.domain not in STANDARD_DOMAINS or node.op_type in RANDOM or any(True for _ in subgraphs(node)):
        return False
    if node.op_type in ("Constant", "DequantizeLinear", "Identity") or not any(map(is_read, node.outputs)):
        return False
    inputs = [constant(value) for value in node.inputs if value is not None]
    known = [array for array in inputs if array is not None]
    if not inputs or len(known) < len(inputs):
        return False
    given = sum(array.nbytes for array in known)
    made = 0
    for output in node.outputs:
        shape = static_shape(output)
        if shape is None or output.dtype is None or output.dtype == ir.DataType.STRING:
            return False
        made += int(np.prod(shape, dtype=np.float64) * max(output.dtype.itemsize, 1))
    if node.op_type in _COSTLY and sum(array.size for array in known) > _MAX_COSTLY_SIZE:
        return False
    return made <= min(given + _ADDED_BYTES, _MAX_BYTES)


def _fold(edit: Edit, node: ir.Node, opsets: dict[str, int]) -> None:
    results = _evaluated(node, opsets)
    if results is None:
        return
    for output, array in zip(node.outputs, results, strict=True):
        if output.uses() or output.is_graph_output():
            edit.replace(output, edit.constant(array, str(output.name)))
    if not any(value.uses() or value.is_graph_output() for value in node.outputs):
        edit.remove([node])


def _evaluated(node: ir.Node, opsets: dict[str, int]) -> list[np.ndarray] | None:
    """Return the outputs of a node of initializers, None if the evaluator cannot compute them."""
    from onnx.reference import ReferenceEvaluator

    proto = ir.serde.serialize_node(node)
    feeds = {str(value.name): constant(value) for value in node.inputs if value is not None}
    graph = onnx.helper.make_graph(
        [proto],
        "constant",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(str(value.name)) for value in node.outputs],
    )
    imports = [onnx.helper.make_opsetid(*each) for each in {**opsets, "": node.version or opsets[""]}.items()]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            evaluator = ReferenceEvaluator(
                onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
            )
            results = [np.asarray(each) for each in evaluator.run(None, feeds)]
        except Exception:
            # What is wrong with the node is for the engine that runs it to say.
            return None
    for output, array in zip(node.outputs, results, strict=True):
        shape = static_shape(output)
        kind = None if output.dtype is None else output.dtype.numpy()
        if (shape is not None and array.shape != shape) or (kind is not None and array.dtype != kind):
            return None
    return results


def _known_sizes(node: ir.Node) -> np.ndarray | None:
    if is_call(node, "Shape"):
        return _shape_array(node)
    if is_call(node, "Size"):
        shape = static_shape(node.inputs[0])
        size = None if shape is None else math.prod(shape)
        return None if size is None or size >= 2**63 else np.array(size, np.int64)
    if is_call(node, "Gather"):
        return _gathered_sizes(node)
    return _sliced_sizes(node) if is_call(node, "Slice") else None


def _learns_sizes(node: ir.Node) -> bool:
    """Write the constant parts of the shape of a Reshape onto its output; say whether any is new."""
    join = maker(node.inputs[1], "Concat") if is_call(node, "Reshape") else None
    if join is None:
        return False
    wanted: list[int | None] = []
    for part in join.inputs:
        array = constant(part)
        if array is not None:
            wanted += [int(size) if size > 0 else None for size in array.ravel()]
        elif static_shape(part) == (1,):
            wanted.append(None)
        else:
            return False
    output = node.outputs[0]
    known = sizes(output)
    if known is None or len(known) != len(wanted):
        known = [None] * len(wanted)
    elif all(new is None or old is not None for old, new in zip(known, wanted, strict=True)):
        return False
    output.shape = ir.Shape([old if old is not None else new for old, new in zip(known, wanted, strict=True)])
    return any(size is not None for size in wanted)


def _shape_slice(node: ir.Node) -> list[int | None] | None:
    found = sizes(node.inputs[0])
    if found is None:
        return None
    end = node.attributes.get("end")
    return found[node.attributes.get_int("start", 0) : None if end is None else end.as_int()]


def _shape_array(node: ir.Node) -> np.ndarray | None:
    found = _shape_slice(node)
    if found is None or any(size is None for size in found):
        return None
    return np.array(found, np.int64)


def _gathered_sizes(node: ir.Node) -> np.ndarray | None:
    shape = maker(node.inputs[0], "Shape")
    index = scalar(node.inputs[1])
    found = None if shape is None else _shape_slice(shape)
    if found is None or index is None or not -len(found) <= index < len(found):
        return None
    size = found[int(index)]
    indices = constant(node.inputs[1])
    return None if size is None or indices is None else np.full(indices.shape, size, np.int64)


def _sliced_sizes(node: ir.Node) -> np.ndarray | None:
    shape = maker(node.inputs[0], "Shape")
    found = None if shape is None else _shape_slice(shape)
    bounds = [scalar(value) for value in node.inputs[1:]]
    if found is None or any(bound is None for bound in bounds) or len(bounds) < 2:
        return None
    start, end, step = int(bounds[0] or 0), int(bounds[1] or 0), int(bounds[3] or 0) if len(bounds) > 3 else 1
    chosen = found[start:end:step] if step > 0 else [None]
    return np.array(chosen, np.int64) if all(size is not None for size in chosen) else None
