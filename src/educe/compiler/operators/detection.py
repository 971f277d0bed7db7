"""Detection and sampling: `NonMaxSuppression`, `RoiAlign`, `GridSample`, `AffineGrid`."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from educe.compiler.emit import F32, F64, I32, I64
from educe.compiler.kernel import Kernel
from educe.compiler.kernels.detection import FIELDS
from educe.compiler.kernels.sampling import BLOCK
from educe.compiler.operators.base import Call, NeedsValue, NotCompiled, operator
from educe.compiler.operators.movement import integers
from educe.compiler.operators.product import cast, matrix_product
from educe.compiler.tensor import Tensor, dtype_of

if TYPE_CHECKING:
    from educe.compiler.lowering import Lowering

_SET_OF_LINEAR = 20
_SET_OF_HALF_PIXEL = 16
_MAX_CUBIC_RANK = 2
_MAX_RANK = 3


@operator("NonMaxSuppression")
def non_max_suppression(
    low: Lowering,
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    overlap: Tensor | None = None,
    least: Tensor | None = None,
) -> Tensor:
    """The (item, class, box) of the boxes that no better one of their class overlaps too much."""
    if boxes.rank != 3 or scores.rank != 3 or boxes.shape[2] != 4 or boxes.kind is not F32:
        raise ValueError(f"boxes {boxes!r} are not (items, boxes, 4)")
    items, _, number = scores.shape
    if boxes.shape[:2] != (items, number) or scores.kind is not F32:
        raise ValueError(f"boxes {boxes!r} and scores {scores!r} do not fit each other")
    if any(each is not None and each.size > 1 for each in (most, overlap, least)):
        raise ValueError("a limit of the suppression is not one number")
    if most is None or not most.size or not scores.size:
        return low.empty(I64, (0, 3))
    places = number if most.value is None else max(0, min(number, int(most.value.ravel()[0])))
    if not low.kept:
        _suppress(low, call, boxes, scores, (most, overlap, least), places)
    rows: Tensor = low.kept["rows"]
    total: np.ndarray = low.kept["total"].value
    return rows.view((int(total.ravel()[0]), 3), rows.strides)


def _suppress(
    low: Lowering,
    call: Call,
    boxes: Tensor,
    scores: Tensor,
    limits: Sequence[Tensor | None],
    places: int,
) -> None:
    """Launch the choice of boxes, and ask how many there are."""
    items, classes, number = scores.shape
    units = items * classes
    most, overlap, least = limits
    bounded = least is not None and least.size == 1
    nothing = low.constant(low.constants.made("no threshold", lambda: np.zeros(1, np.float32)))
    given = [
        low.dense(each) if each is not None and each.size else nothing for each in (most, overlap, least)
    ]
    chosen, count = low.empty(I32, (units, places)), low.empty(I32, (units,))
    low.launch(
        Kernel.of("suppression", centred=bool(call.get("center_point_box", 0)), bounded=bounded),
        outputs=[chosen, count],
        inputs=[low.dense(boxes), low.dense(scores), *given],
        sizes=[number, classes, places],
        extent=units,
        flops=20 * scores.size,
        bytes=4 * (scores.size + units),
        scratch_bytes=4 * FIELDS * (number + low.target.lanes),
    )
    rows, total = low.empty(I64, (units * places, 3)), low.empty(I64, (1,))
    low.launch(
        Kernel.of("suppression_rows"),
        outputs=[rows, total],
        inputs=[chosen, count],
        sizes=[units, classes, places],
        extent=1,
        bytes=4 * units,
    )
    raise NeedsValue(total, kept={"rows": rows, "total": total})


@operator("RoiAlign")
def roi_align(low: Lowering, call: Call, x: Tensor, regions: Tensor, items: Tensor) -> Tensor:
    """The pooled samples of each region of an image."""
    if x.kind is not F32 or regions.kind is not F32:
        raise NotCompiled
    if x.rank != 4 or regions.shape[1:] != (4,) or items.shape != regions.shape[:1]:
        raise ValueError(f"{regions!r} and {items!r} are not regions of {x!r}")
    mode = _text(call.get("mode", "avg")).lower()
    default = "half_pixel" if call.version >= _SET_OF_HALF_PIXEL else "output_half_pixel"
    shifted = _text(call.get("coordinate_transformation_mode", default)).lower() == "half_pixel"
    height, width = int(call.get("output_height", 1)), int(call.get("output_width", 1))
    if mode not in ("avg", "max") or min(height, width) < 1:
        raise ValueError(f"the mode {mode!r} for {height} by {width} cells")
    number, channels = regions.shape[0], x.shape[1]
    out = low.empty(F32, (number, channels, height, width))
    if not x.size or math.prod(x.shape[2:]) >= 1 << 31:
        raise NotCompiled
    samples = int(call.get("sampling_ratio", 0))
    scale = struct.unpack("<i", struct.pack("<f", call.get("spatial_scale", 1.0)))[0]
    low.launch(
        Kernel.of("roi_align", pooling=mode),
        outputs=[out],
        inputs=[low.dense(x), low.dense(regions), low.dense(cast(low, items, I64))],
        sizes=[*x.shape, height, width, samples, shifted, scale],
        extent=number * channels,
        flops=50 * max(samples, 2) ** 2 * out.size,
        bytes=4 * out.size,
    )
    return out


@operator("GridSample")
def grid_sample(low: Lowering, call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """The values of an image or volume at the places of a grid."""
    rank = x.rank - 2
    if grid.rank != x.rank or grid.shape[-1] != rank or grid.shape[0] != x.shape[0]:
        raise ValueError(f"{grid!r} is not a grid of places in {x!r}")
    mode = _text(call.get("mode", "linear" if call.version >= _SET_OF_LINEAR else "bilinear"))
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    padding = _text(call.get("padding_mode", "zeros"))
    if mode not in ("nearest", "linear", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise ValueError(f"the mode {mode!r} with the padding {padding!r}")
    most = _MAX_CUBIC_RANK if mode == "cubic" else _MAX_RANK
    plane = math.prod(x.shape[2:])
    if x.kind is not F32 or grid.kind is not F32 or rank > most or not plane or plane >= 1 << 31:
        raise NotCompiled
    places = math.prod(grid.shape[1:-1])
    blocks = -(-places // BLOCK)
    out = low.empty(F32, (*x.shape[:2], *grid.shape[1:-1]))
    taps = {"nearest": 1, "linear": 2, "cubic": 4}[mode] ** rank
    low.launch(
        Kernel.of(
            "grid_sample",
            rank=rank,
            mode=mode,
            padding=padding,
            corners=bool(call.get("align_corners", 0)),
        ),
        outputs=[out],
        inputs=[low.dense(x), low.dense(grid)],
        sizes=[x.shape[1], places, blocks, plane, *x.shape[2:]],
        extent=x.shape[0] * blocks,
        flops=40 * taps * out.size,
        bytes=4 * (out.size + grid.size),
    )
    return out


@operator("AffineGrid")
def affine_grid(low: Lowering, call: Call, theta: Tensor, size: Tensor) -> Tensor:
    """The places at which an affine map of an image or volume reads it."""
    items, _, *sizes = integers(low, size)
    rank = len(sizes)
    if theta.shape != (items, rank, rank + 1) or rank not in (2, 3) or min(sizes) < 0:
        raise ValueError(f"{theta!r} are not {items} maps of {rank} dimensions")
    if theta.kind not in (F32, F64):
        raise NotCompiled
    corners, dtype = bool(call.get("align_corners", 0)), dtype_of(theta.kind)

    def places() -> np.ndarray:
        lines = [_places(count, corners) for count in sizes]
        grid = np.meshgrid(*lines, indexing="ij")
        return np.stack([*grid[::-1], np.ones(sizes)], -1).reshape(-1, rank + 1).astype(dtype)

    table = low.shared(("affine", tuple(sizes), corners, dtype.name), places)
    found = matrix_product(low, table, low.permute(theta, (0, 2, 1)))
    return low.reshape(cast(low, found, F32), (items, *sizes, rank))


def _places(count: int, corners: bool) -> np.ndarray:
    """Return the places of pixels between -1 and 1."""
    if corners:
        return np.arange(count) * (2 / max(count - 1, 1)) - 1
    return (np.arange(count) * 2 + 1) / max(count, 1) - 1


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
