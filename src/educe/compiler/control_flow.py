"""Control flow: loops over bodies that are compiled once and run for each iteration.

An If needs no call: the branch chosen takes its place in the plan. A Loop, Scan or SequenceMap is a step of
the host, which runs the body's own program with the outer values that it reads as further inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from educe.compiler.operators.base import Call
from educe.compiler.tensor import Tensor, dtype_of
from educe.model.walk import graph_nodes, subgraphs

if TYPE_CHECKING:
    from educe.compiler.code import Code

# The first set in which Scan has no batch dimension.
_SCAN_WITHOUT_BATCH = 9


def defined_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the values that `graph` itself defines, without those of its subgraphs."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def captured_values(graph: ir.Graph) -> tuple[str, ...]:
    """Return the names of the outer values that `graph` reads, with those that its subgraphs read."""
    bodies = [graph, *(inner for node in graph_nodes(graph) for inner in subgraphs(node))]
    own = {id(value) for body in bodies for value in defined_values(body)}
    read = [value for body in bodies for node in body for value in node.inputs]
    read += [value for body in bodies for value in body.outputs]
    return tuple(
        dict.fromkeys(str(value.name) for value in read if value is not None and id(value) not in own)
    )


def chosen_branch(node: ir.Node, condition: bool) -> ir.Graph:
    """Return the branch that an If takes."""
    return node.attributes["then_branch" if condition else "else_branch"].as_graph()


class Body:
    """The compiled body of a node that runs it again and again.

    Args:
        node: The node, whose attribute `body` is the graph.
        code: The code that the node belongs to.
        captured: Names of the outer values that the body reads, whose values follow the node's inputs.
        known: Outer values that are known beforehand, by name.
    """

    def __init__(
        self, node: ir.Node, call: Call, code: Code, captured: Sequence[str], known: Mapping[str, Any]
    ) -> None:
        self.graph = node.attributes["body"].as_graph()
        self.call = call
        self.num_outputs = len(call.outputs)
        self._num_captured = len(captured)
        self._runner = code.runner(code.inner(self.graph, captured, known))

    def split(self, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the node's own inputs and the captured values."""
        count = len(inputs) - self._num_captured
        return list(inputs[:count]), list(inputs[count:])

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the body once."""
        return self._runner.run(inputs)

    def stacked(
        self, rows: Sequence[Sequence[Any]], inputs: Sequence[Any], axes: Sequence[int] | None = None
    ) -> list[Any]:
        """Return what the body's last outputs gave in each iteration, along new dimensions.

        Args:
            rows: For each of these outputs, its values.
            inputs: What an iteration would be given: it tells the sizes where there was none.
            axes: The new dimensions.
        """
        axes = axes or [0] * len(rows)
        if all(rows):
            return [np.stack(row, axis) for row, axis in zip(rows, axes, strict=True)]
        first = len(self.graph.outputs) - len(rows)
        return [
            np.stack([item], axis).take([], axis)
            for item, axis in zip(self._empty(inputs)[first:], axes, strict=True)
        ]

    def _empty(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        """Return arrays of the types and sizes of the body's outputs, sizes unknown before a run as 0."""
        program = self._runner.program(inputs)
        tensors = [each for each in program.outputs if isinstance(each, Tensor)]
        if len(tensors) == len(self.graph.outputs):
            return [np.empty(each.shape, dtype_of(each.kind)) for each in tensors]
        arrays = []
        for value in self.graph.outputs:
            sizes = [size if isinstance(size, int) else 0 for size in value.shape or ()]
            arrays.append(np.empty(sizes, np.float32 if value.dtype is None else value.dtype.numpy()))
        return arrays


class LoopCall(Body):
    """Loop: the body as often as the trip count and the condition allow."""

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the carried values, and what each iteration gave, stacked."""
        (trips, condition, *carried), captured = self.split(inputs)
        count = None if trips is None else int(np.asarray(trips).item())
        proceed = np.array(True) if condition is None else np.asarray(condition)
        rows: list[list[Any]] = [[] for _ in self.graph.outputs[1 + len(carried) :]]
        number = 0
        # The condition keeps the body's shape for it, which may be [] or [1].
        while bool(proceed.item()) and (count is None or number < count):
            found = self.run([np.array(number, np.int64), proceed, *carried, *captured])
            proceed = found[0]
            carried, given = found[1 : 1 + len(carried)], found[1 + len(carried) :]
            for row, item in zip(rows, given, strict=True):
                row.append(item)
            number += 1
        following = [np.array(number, np.int64), proceed, *carried, *captured]
        return [*carried, *self.stacked(rows, following)]


class ScanCall(Body):
    """Scan: the body for each slice of some inputs."""

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the last states, and what each slice gave, stacked."""
        own, captured = self.split(inputs)
        if self.call.version >= _SCAN_WITHOUT_BATCH:
            return self._scan(own, captured)
        lengths, *batched = own
        each = []
        for item in range(len(batched[0])):
            scanned = [value[item] for value in batched]
            each.append(self._scan(scanned, captured, None if lengths is None else int(lengths[item])))
        return [np.stack(values) for values in zip(*each, strict=True)]

    def _scan(self, inputs: list[Any], captured: list[Any], length: int | None = None) -> list[Any]:
        count = int(self.call.get("num_scan_inputs"))
        num_states = len(inputs) - count
        states, sources = inputs[:num_states], inputs[num_states:]
        has_batch = self.call.version < _SCAN_WITHOUT_BATCH
        axes = self._listed("scan_input_axes", count)
        steps = self._listed("directions" if has_batch else "scan_input_directions", count)
        sources = [
            np.moveaxis(source, axis, 0)[:length][:: -1 if backward else 1]
            for source, axis, backward in zip(sources, axes, steps, strict=True)
        ]
        if len({len(source) for source in sources}) > 1:
            raise ValueError(f"Scan: inputs of lengths {[len(source) for source in sources]}")
        rows: list[list[Any]] = [[] for _ in self.graph.outputs[num_states:]]
        for slices in zip(*sources, strict=True):
            found = self.run([*states, *(np.array(each) for each in slices), *captured])
            states = found[:num_states]
            for row, item in zip(rows, found[num_states:], strict=True):
                row.append(item)
        for row, backward in zip(rows, self._listed("scan_output_directions", len(rows)), strict=True):
            if backward:
                row.reverse()
        empty = [np.empty(source.shape[1:], source.dtype) for source in sources]
        axes = self._listed("scan_output_axes", len(rows))
        return [*states, *self.stacked(rows, [*states, *empty, *captured], axes)]

    def _listed(self, name: str, count: int) -> list[int]:
        return [int(value) for value in self.call.get(name) or [0] * count]


class SequenceMapCall(Body):
    """SequenceMap: the body for each item of a sequence."""

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Return a sequence for each output of the body."""
        (first, *others), captured = self.split(inputs)
        rows: list[list[Any]] = [[] for _ in self.graph.outputs]
        for index, item in enumerate(first):
            more = [other[index] if isinstance(other, list) else other for other in others]
            for row, value in zip(rows, self.run([item, *more, *captured]), strict=True):
                row.append(value)
        return list(rows)


BODY_CALLS: dict[str, Callable[..., Callable[[Sequence[Any]], list[Any]]]] = {
    "Loop": LoopCall,
    "Scan": ScanCall,
    "SequenceMap": SequenceMapCall,
}
"""What runs each operator that has a body."""
