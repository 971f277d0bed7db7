"""Bringing every model to one form: one operator set, and shapes known wherever they can be."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import onnx
import onnx.checker
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
import onnx_ir.passes.common

from educe.model import Model
from educe.model.walk import STANDARD_DOMAINS, all_nodes, node_label

INTERNAL_OPSET = 21
"""The standard operator set that models of older ones are brought to."""

_IR_VERSION = 10
# Up to this set a resized pixel is taken from its index over the scale.
_LAST_ASYMMETRIC_OPSET = 10
# A tensor up to this size can be an operand that a conversion must see, such as a shape or a scale.
_SMALL_TENSOR_BYTES = 1024
_SOURCE_PLACE = re.compile(r"^\S+:\d+: \w+: (Assertion `.*?` failed: )?")


def normalize(model: Model) -> Model:
    """Return `model` with standard operators of at least `INTERNAL_OPSET` and with inferred shapes.

    1. Operators of an older set are converted; local functions are inlined first, as they carry sets of
       their own.
    2. Operators of a newer set stay as they are.
    3. Where an operator has no conversion that keeps its meaning, or the conversion fails or gives an
       invalid graph, the graph stays as it was, and the model's notes say so.

    The model given is not modified.
    """
    graph, notes = model.graph, model.notes
    version = graph.opset_imports.get("")
    if version is not None and version < INTERNAL_OPSET:
        try:
            graph = _converted(graph, version)
        except Exception as fault:
            notes = (*notes, f"kept at operator set {version}: {_reason(fault)}")
    return dataclasses.replace(model, graph=_with_shapes(graph), notes=notes)


class _UnfaithfulError(Exception):
    """The converter would change what an operator means."""


def _reason(fault: Exception) -> str:
    """Return the last line of a message, without the place in the converter's own source."""
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    return _SOURCE_PLACE.sub("", lines[-1])


def _converted(graph: ir.Model, version: int) -> ir.Model:
    graph = graph.clone()
    if graph.functions:
        graph = onnx_ir.passes.common.InlinePass()(graph).model
    for node in all_nodes(graph):
        if node.domain not in STANDARD_DOMAINS:
            continue
        if not onnx.defs.has(node.op_type):
            raise _UnfaithfulError(f"{node.op_type} at node {node_label(node)!r} is no standard operator")
        if _is_unfaithful(node, version):
            raise _UnfaithfulError(f"{node.op_type} at node {node_label(node)!r} has no faithful conversion")
    weights = {name: value.const_value for name, value in graph.graph.initializers.items()}
    with without_large_weights(graph) as proto:
        converted = onnx.version_converter.convert_version(proto, INTERNAL_OPSET)
    _check(converted)
    result = ir.serde.deserialize_model(converted)
    if version <= _LAST_ASYMMETRIC_OPSET:
        _keep_sampling(result)
    _restore_weights(result, weights)
    result.ir_version = max(graph.ir_version, _IR_VERSION)
    return result


def _check(proto: onnx.ModelProto) -> None:
    """Raise `onnx.checker.ValidationError` unless every node is a call of its operator."""
    checked = onnx.ModelProto()
    checked.CopyFrom(proto)
    for value in (*checked.graph.input, *checked.graph.output):
        # The checker asks for a shape, which a file may leave out, but does not look at it.
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(checked)


def _is_unfaithful(node: ir.Node, version: int) -> bool:
    """Say whether the converter changes what `node` of set `version` means.

    1. Hardmax before 13 flattens all axes from `axis` on.
    2. Resize 10 takes the nearest pixel by a rule of its own where it shrinks.
    3. Pad before 11 may carry a value beside a mode that has none.
    4. GroupNormalization 18 has one scale for each group, later ones for each channel.
    5. PRelu before 7 aligns its slopes with the channels, later ones with the last axis.
    6. Scan before 9 has a batch dimension.
    """
    changed = {"Hardmax": 13, "PRelu": 7, "Scan": 9}
    if node.op_type in changed:
        return version < changed[node.op_type]
    mode = node.attributes.get_string("mode", "")
    if node.op_type == "Resize":
        return version == 10 and mode != "linear"
    if node.op_type == "Pad":
        return version < 11 and mode not in ("", "constant")
    return node.op_type == "GroupNormalization" and version < 21


def _keep_sampling(graph: ir.Model) -> None:
    """Write down where Upsample and the first Resize sample, in place: later sets default to elsewhere."""
    for node in all_nodes(graph):
        if node.op_type == "Resize" and node.domain in STANDARD_DOMAINS:
            node.attributes.add(ir.AttrString("coordinate_transformation_mode", "asymmetric"))
            node.attributes.add(ir.AttrString("nearest_mode", "floor"))


@contextmanager
def without_large_weights(graph: ir.Model) -> Iterator[onnx.ModelProto]:
    """Yield `graph` as a message in which large weights are inputs: to write them would copy them.

    The graph itself is as it was afterwards.
    """
    main = graph.graph
    large = [
        value
        for value in main.initializers.values()
        if value.const_value is not None and value.const_value.nbytes > _SMALL_TENSOR_BYTES
    ]
    added = [value for value in large if not value.is_graph_input()]
    for value in large:
        assert value.const_value is not None
        value.shape, value.dtype = ir.Shape(value.const_value.shape.numpy()), value.const_value.dtype
        main.initializers.pop(str(value.name))
    main.inputs.extend(added)
    try:
        proto = ir.serde.serialize_model(graph)
    finally:
        for _ in added:
            # Unlike a deletion, this tells the value that it is no input any more.
            main.inputs.pop()
        for value in large:
            main.register_initializer(value)
    proto.ir_version = _IR_VERSION
    yield proto


def _restore_weights(graph: ir.Model, weights: dict[str, ir.TensorProtocol | None]) -> None:
    main = graph.graph
    for value in [value for value in main.inputs if value.name in weights]:
        value.const_value = weights[str(value.name)]
        main.inputs.remove(value)
        main.register_initializer(value)


def _with_shapes(graph: ir.Model) -> ir.Model:
    annotated = graph.clone()
    return annotated if infer_shapes(annotated) else graph


def infer_shapes(graph: ir.Model) -> bool:
    """Write the types and shapes that follow from those of the inputs onto `graph`; say whether any do."""
    with without_large_weights(graph) as proto:
        try:
            # Data propagation would compute values of any size that a hostile graph asks for.
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=False)
        except onnx.shape_inference.InferenceError:
            return False
    _annotate(graph.graph, inferred.graph)
    return True


def _annotate(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    """Write the inferred types and shapes of tensors onto the values of `graph` and of its subgraphs."""
    found = {value.name: value.type for value in (*inferred.value_info, *inferred.output)}
    for node, node_proto in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            kind = found.get(str(value.name))
            if kind is not None and kind.HasField("tensor_type") and kind.tensor_type.elem_type:
                _annotate_value(value, kind)
        for attribute in node_proto.attribute:
            if attribute.HasField("g"):
                _annotate(node.attributes[attribute.name].as_graph(), attribute.g)


def _annotate_value(value: ir.Value, kind: onnx.TypeProto) -> None:
    if value.type is None:
        value.type = ir.TensorType(ir.DataType(kind.tensor_type.elem_type))
    shape = ir.serde.deserialize_type_proto_for_shape(kind)
    if shape is not None and isinstance(value.type, ir.TensorType):
        # A file may declare a shape that contradicts the inferred one: then its own stays.
        with suppress(ValueError):
            value.merge_shapes(shape)
