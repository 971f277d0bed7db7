"""Box decoders against the formulas of the cards, suppression against its definition, and their answers."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import educe
from educe.errors import CardError, EngineError
from educe.model.card import AnchorGrid, BoxesOutput, Card, ImageInput
from educe.tasks.boxes import RawOutputs, decode, ssd_anchors, suppress

SIZE = (64, 32)
SSD300 = AnchorGrid(
    maps=((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1)),
    scales=(0.1, 0.2, 0.375, 0.55, 0.725, 0.9, 1.075),
    aspect_ratios=(
        (1, 2, 0.5),
        (1, 2, 0.5, 3, 1 / 3),
        (1, 2, 0.5, 3, 1 / 3),
        (1, 2, 0.5, 3, 1 / 3),
        (1, 2, 0.5),
        (1, 2, 0.5),
    ),
)
SMALL = AnchorGrid(maps=((3, 2), (1, 1)), scales=(0.2, 0.5, 0.9), aspect_ratios=((1, 2), (1, 0.5, 3)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def corners(x: float, y: float, w: float, h: float) -> list[float]:
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def slow_yolox(raw, spec):
    boxes, scores, row = [], [], 0
    for stride in spec.strides:
        for gy in range(SIZE[1] // stride):
            for gx in range(SIZE[0] // stride):
                tx, ty, tw, th, obj, *classes = raw.boxes[row].tolist()
                boxes.append(
                    corners(
                        (tx + gx) * stride, (ty + gy) * stride, math.exp(tw) * stride, math.exp(th) * stride
                    )
                )
                scores.append([obj * score for score in classes])
                row += 1
    return boxes, scores


def slow_yolov5(raw, spec):
    rows = raw.boxes.tolist()
    return [corners(*row[:4]) for row in rows], [[row[4] * score for score in row[5:]] for row in rows]


def slow_yolov8(raw, spec):
    rows = raw.boxes.T.tolist()
    return [corners(*row[:4]) for row in rows], [row[4:] for row in rows]


def slow_fastestdet(raw, spec):
    boxes, scores = [], []
    _, height, width = raw.boxes.shape
    for gy in range(height):
        for gx in range(width):
            obj, tx, ty, tw, th, *classes = raw.boxes[:, gy, gx].tolist()
            x, y = (math.tanh(tx) + gx) / width, (math.tanh(ty) + gy) / height
            box = corners(x * SIZE[0], y * SIZE[1], sigmoid(tw) * SIZE[0], sigmoid(th) * SIZE[1])
            boxes.append(box)
            scores.append([obj**0.6 * score**0.4 for score in classes])
    return boxes, scores


def slow_anchors(grid: AnchorGrid) -> list[list[float]]:
    anchors = []
    for k, (columns, rows) in enumerate(grid.maps):
        for row in range(rows):
            for column in range(columns):
                x, y, scale = (column + 0.5) / columns, (row + 0.5) / rows, grid.scales[k]
                for ratio in grid.aspect_ratios[k]:
                    anchors.append([x, y, scale * ratio**0.5, scale / ratio**0.5])
                if grid.extra_scale:
                    extra = (scale * grid.scales[k + 1]) ** 0.5
                    anchors.append([x, y, extra, extra])
    return anchors


def slow_ssd(raw, spec):
    v0, v1 = spec.anchors.variances
    boxes = []
    for (tx, ty, tw, th), (ax, ay, aw, ah) in zip(
        raw.boxes.tolist(), slow_anchors(spec.anchors), strict=True
    ):
        x, y, w, h = tx * v0 * aw + ax, ty * v0 * ah + ay, math.exp(tw * v1) * aw, math.exp(th * v1) * ah
        boxes.append(corners(x * SIZE[0], y * SIZE[1], w * SIZE[0], h * SIZE[1]))
    return boxes, slow_foreground(raw, spec)


def slow_ultraface(raw, spec):
    boxes = [[left * SIZE[0], t * SIZE[1], r * SIZE[0], b * SIZE[1]] for left, t, r, b in raw.boxes.tolist()]
    return boxes, slow_foreground(raw, spec)


def slow_foreground(raw, spec):
    rows = []
    for row in raw.scores.tolist():
        if spec.activation == "softmax":
            powers = [math.exp(score) for score in row]
            row = [power / sum(powers) for power in powers]
        elif spec.activation == "sigmoid":
            row = [sigmoid(score) for score in row]
        rows.append(row[1:] if spec.background else row)
    return rows


CELLS = 8 * 4 + 4 * 2 + 2 * 1
SLOW = {
    "yolox": (slow_yolox, (CELLS, 5 + 3), None),
    "yolov5": (slow_yolov5, (21, 5 + 4), None),
    "yolov8": (slow_yolov8, (4 + 6, 33), None),
    "fastestdet": (slow_fastestdet, (5 + 2, 4, 8), None),
    "ssd": (slow_ssd, (3 * 6 + 4, 4), 5),
    "ultraface": (slow_ultraface, (17, 4), 2),
}


def random_raw(rng: np.random.Generator, decoder: str, dtype=np.float32) -> RawOutputs:
    _, shape, classes = SLOW[decoder]
    boxes = rng.normal(size=shape).astype(dtype)
    if decoder == "fastestdet":
        boxes = np.abs(boxes)
    scores = None if classes is None else rng.normal(size=(shape[0], classes)).astype(dtype)
    return RawOutputs(boxes, scores, SIZE)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("decoder", SLOW)
def test_decoders_follow_the_formulas(rng, decoder, dtype):
    for activation in ("none", "softmax", "sigmoid") if decoder in ("ssd", "ultraface") else ("none",):
        for background in (True, False):
            spec = BoxesOutput(decoder=decoder, activation=activation, background=background, anchors=SMALL)
            raw = random_raw(rng, decoder, dtype)
            boxes, scores = decode(raw, spec)
            slow_boxes, slow_scores = SLOW[decoder][0](raw, spec)
            assert boxes.dtype == scores.dtype == np.float32
            np.testing.assert_allclose(boxes, slow_boxes, rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(scores, slow_scores, rtol=1e-4, atol=1e-6)


def test_yolox_with_other_strides(rng):
    spec = BoxesOutput(decoder="yolox", strides=(16,))
    raw = RawOutputs(rng.normal(size=(8, 7)).astype(np.float32), None, SIZE)
    np.testing.assert_allclose(decode(raw, spec)[0], slow_yolox(raw, spec)[0], rtol=1e-5, atol=1e-4)


def test_anchors():
    for grid in (
        SMALL,
        SSD300,
        AnchorGrid(maps=((2, 3),), scales=(0.3,), aspect_ratios=((1, 4),), extra_scale=False),
    ):
        anchors = ssd_anchors(grid)
        assert anchors.dtype == np.float32
        np.testing.assert_allclose(anchors, slow_anchors(grid), rtol=1e-6)


def test_the_anchors_of_ssd300():
    anchors = ssd_anchors(SSD300)
    assert anchors.shape == (8732, 4)
    np.testing.assert_allclose(anchors[0], [0.5 / 38, 0.5 / 38, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(anchors[1, 2:], [0.1 * 2**0.5, 0.1 / 2**0.5], rtol=1e-6)
    np.testing.assert_allclose(anchors[3, 2:], [0.02**0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(anchors[4, :2], [1.5 / 38, 0.5 / 38], rtol=1e-6)
    np.testing.assert_allclose(anchors[-1], [0.5, 0.5, (0.9 * 1.075) ** 0.5, (0.9 * 1.075) ** 0.5], rtol=1e-6)


def test_ssd_boxes_there_and_back(rng):
    """Boxes encoded as in training (Liu et al. 2016, section 2.2) come out of the decoder again."""
    spec = BoxesOutput(decoder="ssd", anchors=SSD300)
    anchors = ssd_anchors(SSD300).astype(np.float64)
    low = rng.uniform(0, 0.7, (len(anchors), 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, low.shape)], 1)
    centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = np.concatenate(
        [(centre - anchors[:, :2]) / anchors[:, 2:] / 0.1, np.log(extent / anchors[:, 2:]) / 0.2], 1
    )
    decoded, _ = decode(
        RawOutputs(offsets.astype(np.float32), np.zeros((8732, 3), np.float32), (300, 300)), spec
    )
    np.testing.assert_allclose(decoded, boxes * 300, atol=0.01)


@pytest.mark.parametrize(
    ("decoder", "boxes", "scores"),
    [
        ("yolox", (CELLS - 1, 8), None),
        ("yolox", (1, 8), None),
        ("yolox", (CELLS, 5), None),
        ("yolox", (CELLS,), None),
        ("yolox", (CELLS, 3), None),
        ("yolov5", (9, 4), None),
        ("yolov5", (3, 9, 9), None),
        ("yolov8", (4, 9), None),
        ("yolov8", (9,), None),
        ("fastestdet", (9, 9), None),
        ("fastestdet", (5, 4, 4), None),
        ("ssd", (21, 4), (21, 5)),
        ("ssd", (1, 4), (1, 5)),
        ("ssd", (22, 4), (21, 5)),
        ("ssd", (22, 4), (22, 1)),
        ("ultraface", (22, 4), (21, 2)),
        ("ultraface", (22, 4), (22, 1)),
        ("ultraface", (22, 5), (22, 2)),
    ],
)
def test_outputs_of_another_shape_are_refused(rng, decoder, boxes, scores):
    spec = BoxesOutput(decoder=decoder, anchors=SMALL)
    raw = RawOutputs(
        np.ones(boxes, np.float32), None if scores is None else np.ones(scores, np.float32), SIZE
    )
    with pytest.raises(ValueError, match=r"."):
        decode(raw, spec)


def test_no_rows_are_no_boxes():
    boxes, scores = decode(
        RawOutputs(np.zeros((0, 9), np.float32), None, SIZE), BoxesOutput(decoder="yolov5")
    )
    assert boxes.shape == (0, 4)
    assert scores.shape == (0, 4)
    assert suppress(boxes, np.zeros(0, np.float32), np.zeros(0, np.int64), 0.5, 10).tolist() == []


def overlap(a: list[float], b: list[float]) -> float:
    def area(box):
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    shared = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    both = area(a) + area(b) - shared
    return shared / both if both > 0 else 0.0


def slow_suppress(boxes, scores, classes, threshold) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(classes[i] != classes[k] or overlap(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


whole = st.integers(-5, 40).map(float)
found = st.tuples(st.tuples(whole, whole, whole, whole), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 2))


@settings(max_examples=300, deadline=None)
@given(st.lists(found, max_size=25), st.sampled_from([0.0, 0.3, 0.45, 0.7, 1.0]), st.integers(1, 25))
def test_suppression_against_its_definition(candidates, threshold, most):
    """Inverted boxes and boxes without area are among them, and many ties, which fall to the first."""
    boxes = [list(box) for box, _, _ in candidates]
    scores = [score for _, score, _ in candidates]
    classes = [index for _, _, index in candidates]
    kept = suppress(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int64),
        threshold,
        most,
    )
    assert kept.tolist() == slow_suppress(boxes, scores, classes, threshold)[:most]


def test_suppression_of_giant_and_infinite_boxes():
    boxes = np.array([[-3e38, -3e38, 3e38, 3e38], [0, 0, 1, 1], [-3e38, -3e38, 3e38, 3e38]], np.float32)
    kept = suppress(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64), 0.5, 10)
    assert kept.tolist() == [0, 1]


def detector(rows: np.ndarray, **boxes) -> educe.Predictor:
    return educe.predictor(detector_model(rows[None], **boxes))


def detector_model(outputs: np.ndarray, *, size=(100, 50), fit="stretch", **boxes) -> educe.Model:
    """A model whose output, for any picture, is `outputs` f32[1, N, 5 + C]."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["constant"], ["boxes"])],
        "detector",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, size[1], size[0]])],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, list(outputs.shape))],
        [onnx.numpy_helper.from_array(outputs.astype(np.float32), "constant")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    card = Card(
        task="object-detection",
        image=ImageInput(size=size, fit=fit),
        boxes=BoxesOutput(**{"decoder": "yolov5", **boxes}),
    )
    return educe.load(proto, card=card)


PICTURE = np.zeros((100, 200, 3), np.uint8)
ROWS = np.array(
    [
        [20, 20, 10, 10, 1, 0.9, 0.6],
        [21, 20, 10, 10, 1, 0.8, 0.1],
        [60, 20, 10, 10, 1, 0.1, 0.7],
        [99, 49, 10, 10, 0.5, 0.6, 0.9],
        [5, 5, 4, 4, 1, 0.2, 0.1],
    ]
)


def answers(predictor: educe.Predictor) -> list[tuple[int, float, list[float]]]:
    found = predictor(PICTURE).predictions
    return [(one.index, round(one.score, 4), [round(x, 3) for x in one.box]) for one in found]


def test_boxes_are_scaled_to_the_picture_clipped_and_sorted():
    assert answers(detector(ROWS)) == [
        (0, 0.9, [30, 30, 50, 50]),
        (1, 0.7, [110, 30, 130, 50]),
        (1, 0.45, [188, 88, 200, 100]),
    ]


def test_without_clipping():
    assert answers(detector(ROWS, clip=False))[2] == (1, 0.45, [188, 88, 208, 108])


def test_without_suppression():
    assert [score for _, score, _ in answers(detector(ROWS, nms=False))] == [0.9, 0.8, 0.7, 0.45]


def test_ties_keep_the_order_of_the_model():
    rows = np.array([[10 + 30 * k, 20, 10, 10, 1, 0.5] for k in range(3)])
    for nms in (True, False):
        assert [box[0] for _, _, box in answers(detector(rows, nms=nms))] == [10, 70, 130]


def test_several_labels_for_one_box():
    assert [(index, score) for index, score, _ in answers(detector(ROWS, multi_label=True))] == [
        (0, 0.9),
        (1, 0.7),
        (1, 0.6),
        (1, 0.45),
        (0, 0.3),
    ]


def test_thresholds_are_inclusive_and_the_callers_comes_first():
    model = detector_model(ROWS[None], score_threshold=0.45, iou_threshold=1.0)
    assert [score for _, score, _ in answers(educe.predictor(model))] == [0.9, 0.8, 0.7, 0.45]
    assert len(answers(educe.predictor(model, threshold=0.75))) == 2
    assert len(answers(educe.predictor(model, threshold=0))) == 5
    exact = float(np.float32(0.7))
    assert answers(educe.predictor(model, threshold=exact))[-1][1] == 0.7
    assert answers(educe.predictor(model, threshold=1)) == []


def test_the_number_of_boxes():
    model = detector_model(ROWS[None], max_boxes=2)
    assert [score for _, score, _ in answers(educe.predictor(model))] == [0.9, 0.7]
    assert [score for _, score, _ in answers(educe.predictor(model, top=1))] == [0.9]
    assert len(answers(educe.predictor(model, top=50))) == 3


def test_many_candidates_are_answered_in_time(rng):
    rows = np.concatenate(
        [rng.uniform(0, 50, (20_000, 2)), rng.uniform(1, 9, (20_000, 2)), np.ones((20_000, 2))], 1
    )
    assert len(answers(detector(rows))) == 300


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_error(value):
    box, score = ROWS.copy(), ROWS.copy()
    box[2, 0] = score[4, 6] = value
    with pytest.raises(EngineError, match="boxes that are not finite"):
        answers(detector(box))
    with pytest.raises(EngineError, match="scores that are not finite"):
        answers(detector(score))


def test_a_box_below_the_threshold_may_be_anything():
    rows = ROWS.copy()
    rows[4, :4] = np.inf
    assert len(answers(detector(rows))) == 3


def test_an_overflowing_size_is_an_error_and_no_warning():
    rows = np.zeros((8 * 4 + 4 * 2 + 2, 6))
    rows[3] = [0, 0, 1000, 0, 1, 1]
    model = detector_model(rows[None], decoder="yolox", size=(64, 32))
    with pytest.raises(EngineError, match="boxes that are not finite"):
        educe.predictor(model)(PICTURE)


def test_an_inverted_box_is_answered_as_it_is():
    rows = np.array([[50, 25, -10, 10, 1, 0.9], [50, 25, -10, 10, 1, 0.8]])
    assert [box for _, _, box in answers(detector(rows))] == [[110, 40, 90, 60]] * 2


@pytest.mark.parametrize(
    ("outputs", "decoder", "cause"),
    [
        (np.zeros((1, 17, 8)), "yolox", r"'yolox' does not fit an output of shape \[17, 8\]"),
        (np.zeros((1, 17, 5)), "yolov5", "no class has a score"),
        (np.zeros((1, 17)), "yolov5", "does not fit"),
        (np.zeros((3, 17, 8)), "yolov5", r"\[3, 17, 8\] does not begin with the 1 pictures"),
        (np.zeros(17), "yolov5", "does not begin with"),
        (np.zeros((1, 17, 8)), "fastestdet", "does not fit"),
    ],
)
def test_a_decoder_that_does_not_fit_is_the_cards_fault(outputs, decoder, cause):
    with pytest.raises(CardError, match=cause) as caught:
        educe.predictor(detector_model(outputs, decoder=decoder))(PICTURE)
    assert "[boxes]" in caught.value.remedy


@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
def test_boxes_stand_where_the_fit_puts_them(fit):
    """The model sees a box of 20 by 10 in the middle of its 100 by 50 pixels."""
    rows = np.array([[50, 25, 20, 10, 1, 0.9]])
    predictor = educe.predictor(detector_model(rows[None], fit=fit))
    expected = {
        "stretch": [(80, 40, 120, 60), (40, 160, 60, 240)],
        # The shorter side becomes 100.
        "crop": [(90, 45, 110, 55), (40, 195, 60, 205)],
        # 12 of 100 columns show the tall picture, so that it lies within the box.
        "letterbox": [(80, 40, 120, 60), (0, 160, 100, 240)],
    }[fit]
    for shape, box in zip([(100, 200, 3), (400, 100, 3)], expected, strict=True):
        (found,) = predictor(np.zeros(shape, np.uint8)).predictions
        np.testing.assert_allclose(found.box, box, atol=1e-3)
