"""Scores of ai.onnx.ml's operators after their post transform, with labels for classifiers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from educe.compiler.emit import F32, I64
from educe.compiler.kernel import Kernel
from educe.compiler.operators.base import NotCompiled
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_COMPILED = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")


def transformed(low: Lowering, raw: Tensor, transform: str) -> Tensor:
    """Return `raw`, (rows, targets), after a post transform, as f32."""
    if transform == "NONE":
        return raw if raw.kind is F32 else low.apply("Cast", raw, to="f32")
    return classified(low, raw, np.arange(max(raw.shape[1], 1)), transform, "")[1]


def classified(low: Lowering, raw: Tensor, labels: np.ndarray, transform: str, pair: str) -> list[Tensor]:
    """Return the label of each row's highest score, and the scores after a post transform.

    Args:
        low: The lowering.
        raw: The scores, (rows, classes).
        labels: The number that each class has.
        transform: The name of the post transform.
        pair: How two scores are made of a single one; see `class_scores`.

    Raises:
        NotCompiled: the post transform is PROBIT.
    """
    if transform not in _COMPILED:
        raise NotCompiled
    raw = low.need(raw)
    rows, classes = raw.shape[0], labels.size
    label, scores = low.empty(I64, (rows,)), low.empty(F32, (rows, classes))
    table = low.constants.made(("labels", tuple(labels.tolist())), lambda: labels.astype(np.int64))
    low.launch(
        Kernel.of("class_scores", kind=raw.kind, transform=transform, pair=pair),
        outputs=[scores, label],
        inputs=[raw, low.constant(table)],
        sizes=[rows, classes, *raw.strides],
        extent=-(-rows // low.target.lanes),
        flops=40 * scores.size,
        bytes=8 * scores.size + 8 * rows,
    )
    return [label, scores]
