"""What is known of lists of sizes before the run: which is a number, and which is a size of which tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from educe.graph.passes.base import constant, maker, sizes


@dataclass(frozen=True)
class SizeOf:
    """The size of a dimension that only the run knows.

    Attributes:
        tensor: The tensor, by its identity.
        axis: The dimension.
    """

    tensor: int
    axis: int


Length: TypeAlias = "int | SizeOf"

_MAX_DEPTH, _MAX_LENGTHS = 16, 64
_SAME = ("Identity", "Unsqueeze", "Squeeze", "Reshape")


def lengths_of(tensor: ir.Value | None) -> list[Length] | None:
    """Return the sizes of `tensor`, None if its rank is not known."""
    found = sizes(tensor)
    if found is None:
        return None
    return [SizeOf(id(tensor), axis) if size is None else size for axis, size in enumerate(found)]


def lengths(value: ir.Value | None) -> list[Length] | None:
    """Return what the elements of a list of sizes are, or of one size; None where that is not known."""
    return _Reader().read(value)


class _Reader:
    """Reads each value once, and no deeper than exporters nest them."""

    def __init__(self) -> None:
        self._found: dict[int, list[Length] | None] = {}
        self._depth = 0

    def read(self, value: ir.Value | None) -> list[Length] | None:
        if value is None or self._depth == _MAX_DEPTH:
            return None
        if id(value) not in self._found:
            self._depth += 1
            found = self._read(value)
            self._found[id(value)] = None if found is None or len(found) > _MAX_LENGTHS else found
            self._depth -= 1
        return self._found[id(value)]

    def _read(self, value: ir.Value) -> list[Length] | None:
        array = constant(value)
        if array is not None:
            fits = array.dtype.kind == "i" and array.size <= _MAX_LENGTHS
            return [int(each) for each in array.ravel()] if fits else None
        node = maker(value, "Shape", "Concat", "Gather", "Slice", *_SAME)
        if node is None:
            return None
        if node.op_type == "Shape":
            whole, end = lengths_of(node.inputs[0]), node.attributes.get("end")
            start = node.attributes.get_int("start", 0)
            return None if whole is None else whole[start : None if end is None else end.as_int()]
        if node.op_type == "Concat":
            parts = [self.read(each) for each in node.inputs]
            return None if None in parts else [size for part in parts if part is not None for size in part]
        found = self.read(node.inputs[0])
        if found is None or node.op_type == "Identity":
            return found
        if node.op_type in _SAME:
            return found if len(found) == 1 else None
        return self._chosen(node, found)

    def _chosen(self, node: ir.Node, found: list[Length]) -> list[Length] | None:
        """Return what a Gather or Slice takes of `found`."""
        numbers = [self.read(each) for each in node.inputs[1:]]
        chosen = [int(each[0]) for each in numbers if each and len(each) == 1 and isinstance(each[0], int)]
        if len(chosen) != len(numbers):
            return None
        if node.op_type == "Gather":
            return [found[chosen[0]]] if -len(found) <= chosen[0] < len(found) else None
        start, stop, *rest = chosen
        step = rest[1] if len(rest) > 1 else 1
        return found[start:stop:step] if step > 0 else None
