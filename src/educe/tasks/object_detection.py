"""Object detection: a picture, or each frame of a video, to boxes with labels and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from educe.model import Model
from educe.model.card import BoxesOutput
from educe.tasks.answer import Prediction
from educe.tasks.base import Findings, Item, Outputs, TaskOptions
from educe.tasks.boxes import RawOutputs, decode, suppress
from educe.tasks.image_input import Placement
from educe.tasks.pictures import PictureTask
from educe.tasks.scores import check_finite

# Candidates that enter non-maximum suppression, best first: bounds the work on a hostile picture.
_MAX_CANDIDATES = 5000


class ObjectDetection(PictureTask):
    """Pictures to boxes, in pixels of the original picture."""

    name = "object-detection"

    def __init__(self, model: Model, options: TaskOptions) -> None:
        super().__init__(model, options)
        if self.card.boxes is None:
            raise self.card_error("the card has no [boxes] section", "say how outputs become boxes")
        self._spec: BoxesOutput = self.card.boxes
        self._boxes = self.tensor_output(self._spec.boxes)
        has_scores = self._spec.decoder in ("ssd", "ultraface")
        self._scores = self.tensor_output(self._spec.scores, 1) if has_scores else None

    def postprocess(self, outputs: Outputs, items: Sequence[Item[Image.Image]]) -> list[Findings]:
        """Return the boxes in each picture, best first.

        Raises:
            CardError: the outputs do not fit the card's decoder.
            EngineError: a score, or a box that reaches the threshold, is not finite.
        """
        boxes = self._rows(outputs[self._boxes], len(items))
        scores = self._rows(outputs[self._scores], len(items)) if self._scores else [None] * len(items)
        return [
            Findings(self._detect(RawOutputs(raw, raw_scores, self.image.size), item.memory["placement"]))
            for raw, raw_scores, item in zip(boxes, scores, items, strict=True)
        ]

    def _rows(self, output: np.ndarray, count: int) -> np.ndarray:
        if output.ndim < 2 or len(output) != count:
            raise self.card_error(
                f"an output of shape {list(output.shape)} does not begin with the {count} pictures run",
                "name another output in [boxes]",
            )
        return output

    def _detect(self, raw: RawOutputs, placement: Placement) -> list[Prediction]:
        try:
            boxes, scores = decode(raw, self._spec)
        except ValueError as fault:
            raise self.card_error(
                f"the decoder {self._spec.decoder!r} does not fit an output of shape "
                f"{list(raw.boxes.shape)}: {fault}",
                "name another decoder in [boxes]",
            ) from None
        check_finite(scores, "scores")
        rows, classes = self._candidates(scores)
        boxes, best = placement.to_original(boxes[rows]), scores[rows, classes]
        check_finite(boxes, "boxes")
        kept = self._kept(boxes, best, classes, self.options.top or self._spec.max_boxes)
        if self._spec.clip:
            boxes = np.clip(boxes, 0, np.array(placement.size * 2, np.float32))
        return self._predictions(boxes[kept], best[kept], classes[kept])

    def _candidates(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and classes of `scores` that reach the threshold: the best of each row, or all."""
        threshold = self._spec.score_threshold if self.options.threshold is None else self.options.threshold
        if self._spec.multi_label:
            rows, classes = np.nonzero(scores >= threshold)
        else:
            best = scores.argmax(1)
            rows = np.flatnonzero(scores[np.arange(len(scores)), best] >= threshold)
            classes = best[rows]
        if len(rows) > _MAX_CANDIDATES:
            order = np.argsort(-scores[rows, classes], kind="stable")[:_MAX_CANDIDATES]
            rows, classes = rows[order], classes[order]
        return rows, classes

    def _kept(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, most: int) -> np.ndarray:
        if self._spec.nms:
            return suppress(boxes, scores, classes, self._spec.iou_threshold, most)
        return np.argsort(-scores, kind="stable")[:most]

    def _predictions(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> list[Prediction]:
        return [
            Prediction(
                label=self.card.label(int(index)),
                index=int(index),
                score=float(score),
                box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            )
            for box, score, index in zip(boxes, scores, classes, strict=True)
        ]


class FaceDetection(ObjectDetection):
    """Pictures to faces: object detection with one class."""

    name = "face-detection"
