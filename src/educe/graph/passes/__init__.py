"""Passes: each makes a graph simpler, or names what a group of its nodes computes; the meaning stays."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from educe.graph.normalize import INTERNAL_OPSET, infer_shapes
from educe.graph.passes.activations import Activations
from educe.graph.passes.attention import Attentions
from educe.graph.passes.base import Pass
from educe.graph.passes.einsum import Einsums
from educe.graph.passes.folding import ConstantFolding, KnownShapes, WeightDequantization
from educe.graph.passes.functions import IsCompiled, expand_functions, inline_functions
from educe.graph.passes.movement import MovementChains
from educe.graph.passes.normalizations import Normalizations
from educe.graph.passes.older import OlderSoftmax
from educe.graph.passes.rotary import RotaryEmbeddings
from educe.graph.passes.scaling import ScaleFolding
from educe.graph.passes.simplify import CommonSubexpressions, Constants, DeadCode, Identities
from educe.model.walk import all_graphs

# Passes settle in three or four rounds; the bound is for graphs made to keep them busy.
_MAX_ROUNDS = 12


def passes(is_compiled: IsCompiled) -> tuple[Sequence[Pass], Sequence[Pass]]:
    """Return the passes that simplify, and those that name groups of nodes, each in order.

    Args:
        is_compiled: Tells which operators may be named.
    """
    simplifying = (
        Constants(),
        ConstantFolding(),
        KnownShapes(),
        WeightDequantization(),
        Identities(),
        Einsums(),
        MovementChains(),
        CommonSubexpressions(),
        ScaleFolding(),
        DeadCode(),
    )
    naming = (
        Normalizations(is_compiled),
        Activations(is_compiled),
        RotaryEmbeddings(is_compiled),
        Attentions(is_compiled),
        DeadCode(),
    )
    return simplifying, naming


def optimize(model: ir.Model, is_compiled: IsCompiled = lambda *_: True) -> ir.Model:
    """Return `model`, which is not modified, with every pass applied until none changes anything.

    Shapes that the file declares between inputs and outputs are not believed; passes see those that follow
    from the inputs' own.

    Args:
        model: The graph, of at least `INTERNAL_OPSET`; that of an older set is returned as it is.
        is_compiled: Tells which operators may be named that a file does not name.
    """
    model = model.clone()
    if model.opset_imports.get("", 0) < INTERNAL_OPSET:
        return model
    forget_shapes(model)
    simplifying, naming = passes(is_compiled)
    for _ in range(_MAX_ROUNDS):
        infer_shapes(model)
        # What is simple has one form; so groups are looked for last.
        if not _apply(simplifying, model) and not _apply(naming, model):
            break
    return model


def _apply(chosen: Sequence[Pass], model: ir.Model) -> bool:
    changed = False
    for each in chosen:
        changed |= each.apply(model)
    return changed


def plain(model: ir.Model) -> ir.Model:
    """Return `model`, which is not modified, without functions and with `OlderSoftmax` applied."""
    if not model.functions and model.opset_imports.get("", 0) >= INTERNAL_OPSET:
        return model
    model = model.clone()
    inline_functions(model)
    OlderSoftmax().apply(model)
    return model


def forget_shapes(model: ir.Model) -> None:
    """Remove what `model` declares of the tensors between its inputs and its outputs, in place."""
    for graph in all_graphs(model):
        for node in graph:
            for value in node.outputs:
                if isinstance(value.type, ir.TensorType):
                    value.type = None
                value.shape = None
        if graph is not model.graph:
            for value in graph.inputs:
                value.shape = None


__all__ = [
    "OlderSoftmax",
    "Pass",
    "expand_functions",
    "forget_shapes",
    "inline_functions",
    "optimize",
    "passes",
]
