"""`mixture`: a feed-forward part of experts, of whom a router chooses some for each token."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from educe.generate.architectures.base import StepGraph

MOST_EXPERTS = 4096
"""Experts that a configuration may ask for."""


def mixture(
    step: StepGraph,
    x: ir.Value,
    router: str,
    expert: Callable[[int, str], str],
    *,
    sizes: tuple[int, int],
    count: int,
    chosen: int,
    normalised: bool,
    activation: str,
) -> ir.Value:
    """Return the weighted sum of what a token's experts give; those that no token chose are not run.

    The router stays f32 in every precision. A token's sum is in the order of its experts' shares.

    Args:
        step: The graph under construction.
        x: The rows, [T, hidden].
        router: The name of what weighs experts.
        expert: The name of an expert's ``gate``, ``up`` or ``down`` projection, by its number.
        sizes: The features of a row and of an expert.
        count: How many experts there are.
        chosen: How many of them a token has.
        normalised: Whether the shares of the chosen are 1 in all.
        activation: The activation of gates.
    """
    hidden, inner = sizes

    def product(rows: ir.Value, part: str, shape: tuple[int, int]) -> ir.Value:
        names = [expert(number, part) for number in range(count)]
        return step.expert_linear(rows, ends, names, shape)

    weighing = step.weight(f"{router}.weight", (count, hidden))
    scores = step.call("Softmax", step.call("Gemm", x, weighing, transB=1), axis=-1)
    shares, choices = step.outputs(2, "TopK", scores, step.shape(chosen), axis=-1)
    if normalised:
        shares = step.call("Div", shares, step.call("ReduceSum", shares, step.shape(-1), keepdims=1))
    places, sources, ends = step.outputs(3, "ExpertOrder", choices, domain="educe", num_experts=count)
    rows = step.call("Gather", x, sources)
    gate, up = (product(rows, part, (inner, hidden)) for part in ("gate", "up"))
    given = product(step.call("Mul", step.activation(gate, activation), up), "down", (hidden, inner))
    by_token = step.call("Reshape", step.call("Gather", given, places), step.shape(-1, chosen, hidden))
    weighted = step.call("Mul", by_token, step.call("Unsqueeze", shares, step.shape(-1)))
    return step.call("ReduceSum", weighted, step.shape(1), keepdims=0)
