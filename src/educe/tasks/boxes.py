"""Box decoders and non-maximum suppression: a detector's raw outputs to boxes, in plain NumPy.

Each decoder returns boxes f32[N, 4] as left, top, right, bottom in pixels of the input tensor, and scores
f32[N, C], for one picture. `docs/cards.md` gives the formula of each. `decode` calls the one a card names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from educe.model.card import AnchorGrid, BoxesOutput
from educe.tasks.scores import activate


@dataclass(frozen=True)
class RawOutputs:
    """The outputs of one picture, of any float type.

    Attributes:
        boxes: The first output, or the one that the card names, without its batch axis.
        scores: The second output, for decoders that have two.
        size: Width and height of the input tensor.
    """

    boxes: np.ndarray
    scores: np.ndarray | None
    size: tuple[int, int]


Decoder = Callable[[RawOutputs, BoxesOutput], tuple[np.ndarray, np.ndarray]]


def decode(raw: RawOutputs, spec: BoxesOutput) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes f32[N, 4] and scores f32[N, C], as the decoder that `spec` names gives them.

    Either may hold numbers that are not finite.

    Raises:
        ValueError: the outputs do not have the decoder's shape.
    """
    # Logits of any size are legal, and those that overflow are judged by their boxes and scores.
    with np.errstate(over="ignore", invalid="ignore"):
        single = RawOutputs(_single(raw.boxes), None if raw.scores is None else _single(raw.scores), raw.size)
        try:
            boxes, scores = DECODERS[spec.decoder](single, spec)
        except IndexError as fault:
            raise ValueError(str(fault)) from None
    if boxes.shape != (len(scores), 4):
        raise ValueError(f"{list(boxes.shape)} boxes and {list(scores.shape)} scores")
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError("no class has a score")
    return boxes, scores


def decode_yolox(raw: RawOutputs, spec: BoxesOutput) -> tuple[np.ndarray, np.ndarray]:
    """YOLOX (Ge et al. 2021): [cells, 5 + C] offsets from a grid, for each stride."""
    cells, strides = _grid(raw.size, spec.strides)
    centre = (raw.boxes[:, 0:2] + cells) * strides
    extent = np.exp(raw.boxes[:, 2:4]) * strides
    return _corners(centre, extent), raw.boxes[:, 4:5] * raw.boxes[:, 5:]


def decode_yolov5(raw: RawOutputs, spec: BoxesOutput) -> tuple[np.ndarray, np.ndarray]:
    """YOLOv5 and v7: [N, 5 + C] with centre and extent in pixels, objectness, classes."""
    return _corners(raw.boxes[:, 0:2], raw.boxes[:, 2:4]), raw.boxes[:, 4:5] * raw.boxes[:, 5:]


def decode_yolov8(raw: RawOutputs, spec: BoxesOutput) -> tuple[np.ndarray, np.ndarray]:
    """YOLOv8, v9 and 11: [4 + C, N] with centre and extent in pixels, classes."""
    if raw.boxes.ndim == 2 and raw.boxes.shape[0] > raw.boxes.shape[1]:
        raise ValueError("more rows than boxes: is it [boxes, 5 + classes]?")
    rows = raw.boxes.T
    return _corners(rows[:, 0:2], rows[:, 2:4]), rows[:, 4:]


def decode_fastestdet(raw: RawOutputs, spec: BoxesOutput) -> tuple[np.ndarray, np.ndarray]:
    """FastestDet: [5 + C, H, W]; objectness, box, classes for each cell of one map."""
    channels, height, width = raw.boxes.shape
    rows = raw.boxes.reshape(channels, -1).T
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    size = np.array(raw.size, np.float32)
    centre = (np.tanh(rows[:, 1:3]) + cells) / np.array([width, height], np.float32) * size
    extent = activate(rows[:, 3:5], "sigmoid") * size
    return _corners(centre, extent), rows[:, 0:1] ** 0.6 * rows[:, 5:] ** 0.4


def decode_ssd(raw: RawOutputs, spec: BoxesOutput) -> tuple[np.ndarray, np.ndarray]:
    """SSD (Liu et al. 2016): offsets [N, 4] (x, y, width, height) from anchors, and scores [N, C]."""
    assert spec.anchors is not None
    assert raw.scores is not None
    anchors = ssd_anchors(spec.anchors)
    centre_variance, extent_variance = spec.anchors.variances
    size = np.array(raw.size, np.float32)
    centre = (raw.boxes[:, 0:2] * centre_variance * anchors[:, 2:4] + anchors[:, 0:2]) * size
    extent = np.exp(raw.boxes[:, 2:4] * extent_variance) * anchors[:, 2:4] * size
    return _corners(centre, extent), _foreground(raw.scores, spec)


def decode_ultraface(raw: RawOutputs, spec: BoxesOutput) -> tuple[np.ndarray, np.ndarray]:
    """Ultra-light face detectors (RFB, slim): corners [N, 4] as shares of the picture, and scores [N, C]."""
    assert raw.scores is not None
    return raw.boxes * np.array(raw.size * 2, np.float32), _foreground(raw.scores, spec)


DECODERS: Mapping[str, Decoder] = {
    "yolox": decode_yolox,
    "yolov5": decode_yolov5,
    "yolov8": decode_yolov8,
    "fastestdet": decode_fastestdet,
    "ssd": decode_ssd,
    "ultraface": decode_ultraface,
}


def ssd_anchors(grid: AnchorGrid) -> np.ndarray:
    """Return the anchors of `grid` as f32[N, 4]: centre x, centre y, width, height, as shares of the picture.

    For each map, for each cell row by row, for each aspect ratio; see `AnchorGrid`.
    """
    anchors = []
    for index, (columns, rows) in enumerate(grid.maps):
        scale = grid.scales[index]
        extents = [
            (scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for ratio in grid.aspect_ratios[index]
        ]
        if grid.extra_scale:
            extents.append((math.sqrt(scale * grid.scales[index + 1]),) * 2)
        x, y = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
        centres = np.stack([x, y], -1).reshape(-1, 1, 2).repeat(len(extents), 1)
        sizes = np.broadcast_to(np.array(extents), (columns * rows, len(extents), 2))
        anchors.append(np.concatenate([centres, sizes], -1).reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)


def suppress(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou_threshold: float, most: int
) -> np.ndarray:
    """Return the positions of the boxes to keep, best first: greedy non-maximum suppression by class.

    Args:
        boxes: f32[N, 4] corners.
        scores: f32[N].
        classes: i64[N]; boxes of different classes never suppress each other.
        iou_threshold: A box that overlaps a better one of its class by more is dropped; the overlap is the
            area shared over the area of both. Boxes without area overlap nothing.
        most: How many to keep.
    """
    boxes = boxes.astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    area = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)
    kept: list[int] = []
    while order.size and len(kept) < most:
        best, rest = order[0], order[1:]
        kept.append(best)
        corner = np.maximum(boxes[best, :2], boxes[rest, :2])
        extent = np.maximum(np.minimum(boxes[best, 2:], boxes[rest, 2:]) - corner, 0)
        shared = extent[:, 0] * extent[:, 1]
        union = area[best] + area[rest] - shared
        overlaps = shared > iou_threshold * union
        order = rest[~(overlaps & (classes[rest] == classes[best]))]
    return np.array(kept, np.int64)


def _single(output: np.ndarray) -> np.ndarray:
    return output.astype(np.float32, copy=False)


def _grid(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    cells, scales = [], []
    for stride in strides:
        columns, rows = size[0] // stride, size[1] // stride
        x, y = np.meshgrid(np.arange(columns), np.arange(rows))
        cells.append(np.stack([x, y], -1).reshape(-1, 2))
        scales.append(np.full((columns * rows, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(scales).astype(np.float32)


def _corners(centre: np.ndarray, extent: np.ndarray) -> np.ndarray:
    return np.concatenate([centre - extent / 2, centre + extent / 2], 1).astype(np.float32)


def _foreground(scores: np.ndarray, spec: BoxesOutput) -> np.ndarray:
    probabilities = activate(scores, spec.activation)
    return probabilities[:, 1:] if spec.background else probabilities
