"""Which operators ONNX Runtime has, asked of the library itself."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir

from educe.errors import Problem
from educe.model.walk import STANDARD_DOMAINS, graph_nodes, node_label, versioned_operator

_OPEN_END = 2**31 - 1

Key = tuple[str, str]
"""Domain and name of an operator."""


@dataclass(frozen=True)
class Operators:
    """The operators of one version of ONNX Runtime.

    Attributes:
        versions: The operator sets that brought or changed an operator.
        kernels: The first and last of those that each CPU kernel of an operator serves.
        newest: The newest operator set of each domain.
    """

    versions: Mapping[Key, tuple[int, ...]]
    kernels: Mapping[Key, tuple[tuple[int, int], ...]]
    newest: Mapping[str, int]

    def refusal(self, domain: str, name: str, opset: int) -> str | None:
        """Return why an operator cannot run, or None if it can, at least for some element types."""
        key = (domain, name)
        if domain not in self.newest:
            return f"ONNX Runtime knows no operators of the domain {domain!r}"
        if opset > self.newest[domain]:
            return f"operator set {opset} is newer than {self.newest[domain]}, the newest it knows"
        if key not in self.versions:
            return "ONNX Runtime has no such operator"
        since = max((version for version in self.versions[key] if version <= opset), default=None)
        if since is None:
            return f"the operator came with set {self.versions[key][0]}, the model declares {opset}"
        if _is_composed(key, since) or any(_serves(kernel, since) for kernel in self.kernels.get(key, ())):
            return None
        return f"ONNX Runtime has no CPU kernel for its form of operator set {since}"


@functools.cache
def operators() -> Operators | None:
    """Return the operators of the installed library, or None if its build does not tell them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as library

    if not hasattr(library, "get_all_operator_schema") or not hasattr(library, "get_all_opkernel_def"):
        return None
    versions, newest = defaultdict(set), dict.fromkeys(STANDARD_DOMAINS[:1], 0)
    for schema in library.get_all_operator_schema():
        versions[schema.domain, schema.name].add(schema.since_version)
        newest[schema.domain] = max(newest.get(schema.domain, 0), schema.since_version)
    kernels = defaultdict(set)
    for kernel in library.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            kernels[kernel.domain, kernel.op_name].add(tuple(kernel.version_range))
    return Operators(
        {key: tuple(sorted(found)) for key, found in versions.items()},
        {key: tuple(sorted(found)) for key, found in kernels.items()},
        newest,
    )


def problems(graph: ir.Model) -> Iterator[Problem]:
    """Yield the nodes of the graph, its subgraphs and its functions that the installed library cannot run."""
    known = operators()
    if known is None:
        return
    bodies: list[ir.Graph | ir.Function] = [graph.graph, *graph.functions.values()]
    for body in bodies:
        for node in graph_nodes(body):
            if node.op_identifier() in graph.functions:
                continue
            domain = "" if node.domain in STANDARD_DOMAINS else node.domain
            opset = body.opset_imports.get(node.domain, 1)
            reason = known.refusal(domain, node.op_type, opset)
            if reason:
                yield Problem(node_label(node), versioned_operator(node, opset), reason)


def _serves(kernel: tuple[int, int], since: int) -> bool:
    # A kernel without a last set serves only the form it was written for: the next one may differ.
    first, last = kernel
    return first == since or (first < since <= last and last != _OPEN_END)


def _is_composed(key: Key, since: int) -> bool:
    """Say whether the library can replace an operator by others, or settles it while loading."""
    domain, name = key
    if domain not in ("", "ai.onnx.ml"):
        # Of its own operators the library does not tell which are composed.
        return True
    if key == ("", "Constant"):
        return True
    try:
        schema: Any = onnx.defs.get_schema(name, since, domain)
    except onnx.defs.SchemaError:
        return True
    return bool(schema.has_function or schema.has_context_dependent_function)
