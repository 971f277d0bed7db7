"""What a pass is, and how it changes a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from educe.model.walk import STANDARD_DOMAINS, all_graphs

NEWEST_OPSET = 24
"""The operator set of operators that passes name and that `INTERNAL_OPSET` lacks."""

_NAMES = "educe.names"


class Pass(Protocol):
    """A change of a graph that keeps its meaning; its class's docstring numbers the cases."""

    def apply(self, model: ir.Model) -> bool:
        """Change `model` in place, and say whether anything was changed."""


class Edit:
    """Changes of one graph of a model.

    Attributes:
        graph: The graph.
        changed: Whether anything was changed.
    """

    def __init__(self, model: ir.Model, graph: ir.Graph) -> None:
        self.graph, self.changed = graph, False
        self._model = model

    def constant(self, array: np.ndarray, base: str) -> ir.Value:
        """Return a new initializer with the content of `array`; `base` tells what it is."""
        value = ir.Value(name=self._fresh(base), shape=ir.Shape(array.shape))
        value.const_value = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
        value.dtype = value.const_value.dtype
        self.graph.register_initializer(value)
        return value

    def insert(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        like: ir.Value | None = None,
        version: int | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node of one output and return that.

        Args:
            before: The node to stand before.
            operator: The operator.
            inputs: Its inputs.
            attributes: Its attributes.
            like: A value that has the type and shape of the output.
            version: The operator's set, if it is not the model's.
            domain: The operator's domain.
        """
        node = ir.node(operator, inputs, attributes, domain=domain, version=version)
        output = node.outputs[0]
        output.name = self._fresh(f"{before.outputs[0].name}/{operator}")
        node.name = output.name
        if like is not None:
            output.type, output.shape = like.type, like.shape
        self.graph.insert_before(before, node)
        self.changed = True
        return output

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Have everything read `new` instead of `old`; a graph's output keeps its name."""
        node = old.producer()
        assert node is not None
        if old.is_graph_output():
            made_here = new.producer() is not None and new.graph is self.graph
            if not made_here or new.is_graph_output():
                if node.op_type == "Identity" and node.inputs[0] is new:
                    return
                new = self.insert(node, "Identity", [new], like=old)
            name = old.name
            old.name = self._fresh(str(name))
            new.name = name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self.changed = True

    def remove(self, nodes: Iterable[ir.Node]) -> None:
        """Remove nodes whose outputs nobody reads."""
        self.graph.remove(nodes, safe=True)
        self.changed = True

    def _fresh(self, base: str) -> str:
        """Return a name that no value of the model has."""
        names: set[str] = self._model.meta.setdefault(_NAMES, set())
        if not names:
            for graph in all_graphs(self._model):
                names.update(str(value.name) for value in (*graph.inputs, *graph.initializers.values()))
                names.update(str(value.name) for node in graph for value in node.outputs)
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base}.{number}"
        names.add(name)
        return name


def edits(model: ir.Model) -> Iterator[Edit]:
    """Yield an edit for the main graph and for each subgraph."""
    for graph in list(all_graphs(model)):
        yield Edit(model, graph)


def visited(model: ir.Model, visit: Callable[[Edit, ir.Node], None], backwards: bool = False) -> bool:
    """Call `visit` for every node of every graph, in order or from the end; say whether that changed any."""
    changed = False
    for edit in edits(model):
        nodes = list(edit.graph)
        for node in reversed(nodes) if backwards else nodes:
            visit(edit, node)
        changed |= edit.changed
    return changed


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the content of an initializer, None for other values and for text."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    if value.const_value.dtype == ir.DataType.STRING:
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | int | bool | None:
    """Return the one element of an initializer, None for other values."""
    array = constant(value)
    return array.item() if array is not None and array.size == 1 else None


def maker(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """Return the node that makes `value` if it is a standard one of `operators`."""
    node = None if value is None else value.producer()
    return node if node is not None and is_call(node, *operators) else None


def is_call(node: ir.Node, *operators: str) -> bool:
    """Say whether `node` is a standard one of `operators`."""
    return node.op_type in operators and node.domain in STANDARD_DOMAINS


def is_read(value: ir.Value) -> bool:
    """Say whether a node reads `value`, or it is an output."""
    return bool(value.uses()) or value.is_graph_output()


def is_read_once(value: ir.Value) -> bool:
    """Say whether one node reads `value`, once, and nothing else does."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def sizes(value: ir.Value | None) -> list[int | None] | None:
    """Return the sizes of `value`, None for those that a run decides; None if its rank is not known."""
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of `value` if all of it is known."""
    found = sizes(value)
    if found is None or any(size is None for size in found):
        return None
    return tuple(size for size in found if size is not None)


def integers(node: ir.Node, name: str) -> list[int] | None:
    """Return an attribute that is a list of integers, None where there is none."""
    attribute = node.attributes.get(name)
    return None if attribute is None else [int(each) for each in attribute.as_ints()]


def has_rank_of(value: ir.Value, other: ir.Value) -> bool:
    """Say whether two values are known to have as many dimensions."""
    a, b = sizes(value), sizes(other)
    return a is not None and b is not None and len(a) == len(b)
