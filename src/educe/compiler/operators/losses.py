"""Losses of classification, as expressions and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.operators.base import Call, operator
from educe.compiler.operators.normalization import normalized_exponentials
from educe.compiler.operators.reduction import MEAN, SUM, reduced, scalar
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood(
    low: Lowering, call: Call, x: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """The negative of the logarithm that stands at the class of each target."""
    return _loss(low, call, x, target, weight)


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    low: Lowering, call: Call, x: Tensor, target: Tensor, weight: Tensor | None = None
) -> list[Tensor]:
    """The negative log-likelihood of softmax, and the logarithms of softmax."""
    logarithms = low.need(normalized_exponentials(low, x, min(1, x.rank - 1), log=True))
    return [_loss(low, call, logarithms, target, weight), logarithms]


def _loss(low: Lowering, call: Call, x: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Return the loss; a target that is no class has none."""
    if x.rank < 2 or target.shape != (x.shape[0], *x.shape[2:]):
        raise ValueError(f"targets of shape {list(target.shape)} are not of {list(x.shape)}")
    x, behind = low.need(x), [1] * (x.rank - 2)
    zero = scalar(low, 0, x.kind)
    wanted = low.reshape(target, (x.shape[0], 1, *x.shape[2:]))
    numbers = low.constant(np.arange(x.shape[1], dtype=dtype_of(target.kind)))
    is_class = low.need(low.apply("Equal", low.reshape(numbers, (x.shape[1], *behind)), wanted))
    chosen = reduced(low, low.apply("Where", is_class, x, zero), [1], SUM)
    weights = None
    if weight is not None:
        each = low.expand(low.reshape(weight, (x.shape[1], *behind)), x.shape)
        weights = reduced(low, low.apply("Where", is_class, each, zero), [1], SUM)
    ignored = call.get("ignore_index")
    if ignored is not None:
        is_ignored = low.need(low.apply("Equal", wanted, scalar(low, int(ignored), target.kind)))
        one = scalar(low, 1, x.kind)
        weights = low.need(low.apply("Where", is_ignored, zero, weights or one))
        chosen = low.apply("Where", is_ignored, zero, chosen)
    losses = low.apply("Sub", zero, chosen)
    if weights is not None:
        losses = low.apply("Mul", losses, weights)
    losses = low.need(losses)
    reduction = call.get("reduction", "mean")
    if reduction == "none":
        return low.reshape(losses, target.shape)
    axes = range(losses.rank)
    total = reduced(low, losses, axes, MEAN if reduction == "mean" and weights is None else SUM)
    if reduction == "mean" and weights is not None:
        total = low.apply("Div", total, reduced(low, weights, axes, SUM))
    return low.reshape(total, ())
