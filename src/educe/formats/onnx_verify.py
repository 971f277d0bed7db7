"""Verifying an ONNX message before anything is built from it.

Checked, with the place of every fault:

1. all text is UTF-8, and no name holds a NUL character;
2. there is a graph with nodes or outputs, and an operator set for every domain used;
3. the bounds on nodes, on nesting and on chains of functions hold, and functions do not call themselves;
4. every name that a node or an output reads is an input, an initializer, or made by an earlier node of the
   graph or of one around it, and no name is made twice;
5. every tensor's data has the size that its shape and type say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from educe.errors import LimitError, ModelFileError
from educe.limits import Limits

_BITS = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8,
    "FLOAT16": 16, "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128,
    "BFLOAT16": 16, "FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8,
    "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "FLOAT8E8M0": 8, "UINT2": 2, "INT2": 2,
}  # fmt: skip
# Fields of TensorProto that hold one element an entry, and those that hold parts of one or several.
_WHOLE_FIELDS = {
    "FLOAT": "float_data", "DOUBLE": "double_data", "INT64": "int64_data",
    "STRING": "string_data", "UINT32": "uint64_data", "UINT64": "uint64_data",
}  # fmt: skip
# Attribute values that are messages, and so are present or not.
_MESSAGE_FIELDS = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}

_NAMES = ("name", "input", "output")
# Its operators trust what they are given, such as numbers of pages.
_OWN_DOMAIN = "educe"


def verify(proto: onnx.ModelProto, limits: Limits, weights: Mapping[int, np.ndarray]) -> None:
    """Raise `ModelFileError` or `LimitError` for the first fault in `proto`.

    Args:
        weights: The data of initializers of the main graph that are empty in `proto`, by their number.
    """
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelFileError(
            "holds no graph: the file ends early, or is not a model", remedy="download or export it again"
        )
    _check_text(proto, "")
    _Verifier(proto, limits, weights).run()


_Scopes: TypeAlias = tuple[set[str], ...]
"""The names that a node may read: those of its own graph first, then those of each graph around it."""


def _is_known(name: str, scopes: _Scopes) -> bool:
    return any(name in scope for scope in scopes)


class _Verifier:
    def __init__(self, proto: onnx.ModelProto, limits: Limits, weights: Mapping[int, np.ndarray]) -> None:
        self._proto = proto
        self._weights = {
            proto.graph.initializer[number].name: data.nbytes for number, data in weights.items()
        }
        self._limits = limits
        self._num_nodes = 0
        self._functions = {(f.domain, f.name): f for f in proto.functions}
        # Before operator sets had domains (IR version 2) the standard one was understood.
        self._opsets = {entry.domain for entry in proto.opset_import} or {""}

    def run(self) -> None:
        self._check_functions()
        self._check_graph(self._proto.graph, (), 1, "")
        for function in self._proto.functions:
            domains = {entry.domain for entry in function.opset_import} | self._opsets
            self._check_nodes(
                function.node, (set(function.input),), domains, 1, f"function {function.name!r}, "
            )
            self._check_read(function.output, (self._made(function),), f"function {function.name!r}, output")

    def _check_functions(self) -> None:
        """Refuse functions that call themselves, or each other more deeply than the limit."""
        depth: dict[tuple[str, str], int] = {}
        open_calls: set[tuple[str, str]] = set()

        def visit(key: tuple[str, str]) -> int:
            if key in open_calls:
                raise ModelFileError("calls itself", place=f"function {key[1]!r}")
            if len(open_calls) > self._limits.graph_depth:
                raise LimitError(
                    f"functions call each other more than {self._limits.graph_depth} deep",
                    place=f"function {key[1]!r}",
                )
            if key not in depth:
                open_calls.add(key)
                called = {
                    (n.domain, n.op_type) for n in _nodes(self._functions[key].node)
                } & self._functions.keys()
                depth[key] = 1 + max((visit(inner) for inner in called), default=0)
                open_calls.remove(key)
            return depth[key]

        for key in self._functions:
            visit(key)

    def _check_graph(self, graph: onnx.GraphProto, outer: _Scopes, depth: int, prefix: str) -> None:
        known = {value.name for value in graph.input}
        names: set[str] = set()
        for tensor in graph.initializer:
            place = f"{prefix}initializer {tensor.name!r}"
            if tensor.name in names:
                raise ModelFileError("is defined twice", place=place)
            names.add(tensor.name)
            self._check_tensor(tensor, place, self._weights.get(tensor.name) if depth == 1 else None)
        known |= names
        for sparse in graph.sparse_initializer:
            raise ModelFileError(
                "is sparse, which Educe does not read",
                place=f"{prefix}initializer {sparse.values.name!r}",
                remedy="export the model with dense weights",
            )
        scopes = (known, *outer)
        self._check_nodes(graph.node, scopes, self._opsets, depth, prefix)
        self._check_read([value.name for value in graph.output], scopes, f"{prefix}output")

    def _check_nodes(
        self, nodes: Sequence[onnx.NodeProto], scopes: _Scopes, domains: set[str], depth: int, prefix: str
    ) -> None:
        self._num_nodes += len(nodes)
        self._limits.check("num_nodes", self._num_nodes)
        if depth > self._limits.graph_depth:
            raise LimitError(f"graphs are nested more than {self._limits.graph_depth} deep", place=prefix)
        later = {name for node in nodes for name in node.output if name}
        made: set[str] = set()
        for position, node in enumerate(nodes):
            place = f"{prefix}node {_label(node, position)} ({node.op_type})"
            self._check_operator(node, domains, place)
            for index, name in enumerate(node.input):
                if name and not _is_known(name, scopes):
                    raise _unknown(name, f"{place}, input {index}", name in later)
            self._check_attributes(node, scopes, depth, place)
            for name in filter(None, node.output):
                if name in made:
                    raise ModelFileError(f"makes {name!r}, which an earlier node makes", place=place)
                made.add(name)
                scopes[0].add(name)

    def _check_operator(self, node: onnx.NodeProto, domains: set[str], place: str) -> None:
        if not node.op_type:
            raise ModelFileError("names no operator", place=place)
        if node.domain == _OWN_DOMAIN and (node.domain, node.op_type) not in self._functions:
            raise ModelFileError(
                f"is of the domain {_OWN_DOMAIN!r}, which is for graphs that Educe makes itself",
                place=place,
                remedy="export the model with standard operators",
            )
        standard = node.domain in ("", "ai.onnx") and domains & {"", "ai.onnx"}
        if not (standard or node.domain in domains or (node.domain, node.op_type) in self._functions):
            raise ModelFileError(
                f"is of the domain {node.domain or 'ai.onnx'!r}, for which the file declares no operator set",
                place=place,
                remedy="export the model with its opset_import",
            )

    def _check_attributes(self, node: onnx.NodeProto, scopes: _Scopes, depth: int, place: str) -> None:
        for attribute in node.attribute:
            field = _MESSAGE_FIELDS.get(attribute.type)
            if attribute.type == onnx.AttributeProto.UNDEFINED or (field and not attribute.HasField(field)):
                raise ModelFileError(
                    "has no value of its type",
                    place=f"{place}, attribute {attribute.name!r}",
                    remedy="export the model again",
                )
            for tensor in (*([attribute.t] if attribute.HasField("t") else ()), *attribute.tensors):
                self._check_tensor(tensor, f"{place}, attribute {attribute.name!r}")
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    raise ModelFileError(
                        "keeps its data in another file, which only initializers may",
                        place=f"{place}, attribute {attribute.name!r}",
                    )
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                self._check_graph(graph, scopes, depth + 1, f"{place}, {attribute.name}: ")

    def _check_read(self, names: Iterable[str], scopes: _Scopes, place: str) -> None:
        for name in names:
            if not _is_known(name, scopes):
                raise _unknown(name, f"{place} {name!r}", later=False)

    def _made(self, function: onnx.FunctionProto) -> set[str]:
        return {*function.input, *(name for node in function.node for name in node.output)}

    def _check_tensor(self, tensor: onnx.TensorProto, place: str, held_bytes: int | None = None) -> None:
        kind = _type_name(tensor.data_type)
        if kind not in _BITS and kind != "STRING":
            raise ModelFileError(f"has the element type {kind}, which is unknown", place=place)
        if any(dim < 0 for dim in tensor.dims):
            raise ModelFileError(f"has a negative size in its shape {list(tensor.dims)}", place=place)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return
        expected = math.prod(tensor.dims)
        if tensor.HasField("raw_data"):
            size_bytes = -(-expected * _BITS.get(kind, 8) // 8)
            held_bytes = len(tensor.raw_data) if held_bytes is None else held_bytes
            if kind == "STRING" or held_bytes != size_bytes:
                raise ModelFileError(
                    f"holds {held_bytes:,} bytes, where {kind}{list(tensor.dims)} takes {size_bytes:,}",
                    place=place,
                    remedy="download or export the model again",
                )
            return
        found = self._num_elements(tensor, kind)
        if found != expected:
            raise ModelFileError(
                f"holds {found:,} elements, where its shape {list(tensor.dims)} takes {expected:,}",
                place=place,
                remedy="download or export the model again",
            )

    def _num_elements(self, tensor: onnx.TensorProto, kind: str) -> int:
        entries = len(getattr(tensor, _WHOLE_FIELDS.get(kind, "int32_data")))
        if kind in ("COMPLEX64", "COMPLEX128"):
            return len(tensor.float_data if kind == "COMPLEX64" else tensor.double_data) // 2
        per_entry = 8 // _BITS.get(kind, 8) or 1
        if per_entry == 1:
            return entries
        elements = math.prod(tensor.dims)
        return elements if entries == -(-elements // per_entry) else entries * per_entry


def _check_text(message: Message, place: str) -> None:
    """Refuse text that is not UTF-8, which the parser hands out as bytes, and NUL characters in names.

    The parser has bounded how deep messages nest.
    """
    for field, value in message.ListFields():
        entries = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_STRING:
            if any(isinstance(entry, bytes) for entry in entries):
                raise ModelFileError(
                    "is not valid UTF-8",
                    place=f"{place}{field.name}",
                    remedy="the file was altered: download or export it again",
                )
            if field.name in _NAMES and any("\0" in entry for entry in entries):
                raise ModelFileError(
                    "holds a NUL character",
                    place=f"{place}{field.name}",
                    remedy="export the model with other names",
                )
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for index, entry in enumerate(entries):
                position = f"[{index}]" if field.is_repeated else ""
                _check_text(entry, f"{place}{field.name}{position}.")


def _unknown(name: str, place: str, later: bool) -> ModelFileError:
    if later:
        return ModelFileError(
            f"reads {name!r} before the node that makes it", place=place, remedy="export it again"
        )
    return ModelFileError(
        f"reads {name!r}, which is no input, no initializer and no node's output",
        place=place,
        remedy="the file lost a weight: export the model again, with its parameters",
    )


def _label(node: onnx.NodeProto, position: int) -> str:
    return repr(node.name or next(filter(None, node.output), "") or f"#{position}")


def _type_name(number: int) -> str:
    known = onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(number)) if number in known else str(number)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield `nodes` and those of their subgraphs; the parser bounds how deep these nest."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)
