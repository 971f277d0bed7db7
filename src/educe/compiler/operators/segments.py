"""One row for each run of rows: what becomes of the tokens of many sequences, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from educe.compiler.emit import F32, I64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.segments import SEGMENT_WORDS
from educe.compiler.operators.base import Call, NotCompiled, operator
from educe.compiler.tensor import Tensor

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_RANK = 2


@operator("SegmentMean", "SegmentMax", domain="educe")
def segments(low: Lowering, call: Call, x: Tensor, table: Tensor) -> Tensor:
    """The mean, or the largest, of each run of rows.

    Inputs: x of (rows, features); the runs (n, 2), i64: first row and number of rows. A run without rows, or
    of rows that are not there, gives zeros.
    """
    if x.kind is not F32 or table.kind is not I64:
        raise NotCompiled
    if x.rank != _RANK or table.rank != _RANK or table.shape[1] != SEGMENT_WORDS:
        raise ValueError(f"runs {table} of rows of {x}")
    x, table = low.need(x), low.dense(table)
    if x.strides[-1] != 1:
        x = low.dense(x)
    mean = call.operator == "SegmentMean"
    out = low.empty(F32, (table.shape[0], x.shape[1]))
    low.launch(
        Kernel.of("segments", combine="add" if mean else "maximum", mean=mean),
        outputs=[out],
        inputs=[x, table],
        sizes=[x.shape[1], x.shape[0], out.strides[0], x.strides[0]],
        extent=table.shape[0],
        flops=x.size,
        bytes=4 * (x.size + out.size),
    )
    return out
