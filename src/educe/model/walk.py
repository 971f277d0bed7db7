"""Walking all of a graph: its nodes, subgraphs, functions and weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

STANDARD_DOMAINS = ("", "ai.onnx")
RANDOM_OPERATORS = frozenset(
    (
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    )
)
"""Operators that give something else at each call, unless a seed is set; Dropout does only in training."""

# The numbers of these types of attributes in an ONNX file.
_GRAPH, _GRAPHS = 5, 10


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that `node` holds as attributes, such as the branches of an If."""
    if not node.attributes:
        return
    # A plain dict is walked several times as fast as the one around it.
    for attribute in node.attributes.data.values():
        if attribute.is_ref():
            continue
        if attribute.type == _GRAPH:
            yield attribute.as_graph()
        elif attribute.type == _GRAPHS:
            yield from attribute.as_graphs()


def graph_nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield the nodes of `graph` and of all subgraphs, each before the nodes it holds."""
    stack: list[Iterator[ir.Node]] = [iter(graph)]
    while stack:
        for node in stack[-1]:
            yield node
            stack.extend(iter(inner) for inner in subgraphs(node))
            break
        else:
            stack.pop()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of the main graph, its subgraphs and the model's functions."""
    yield from graph_nodes(model.graph)
    for function in model.functions.values():
        yield from graph_nodes(function)


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and every subgraph, those of functions included."""
    yield model.graph
    for node in all_nodes(model):
        yield from subgraphs(node)


def all_weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield the tensor of every initializer and of every Constant node."""
    for graph in all_graphs(model):
        yield from (value.const_value for value in graph.initializers.values() if value.const_value)
    for node in all_nodes(model):
        if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS and "value" in node.attributes:
            yield node.attributes["value"].as_tensor()


def operator_name(node: ir.Node) -> str:
    """Return ``Conv``, or ``domain::Name`` outside the standard domain."""
    return node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}::{node.op_type}"


def versioned_operator(node: ir.Node, opset: int) -> str:
    """Return an operator with the operator set that the graph declares for it: ``Conv-11``."""
    return f"{operator_name(node)}-{opset}"


def node_label(node: ir.Node, graph_name: str | None = None) -> str:
    """Return a name for `node`: its own, or that of its first output, as many files leave nodes nameless."""
    name = node.name or next((output.name for output in node.outputs if output.name), "") or node.op_type
    return f"{graph_name}/{name}" if graph_name else name
