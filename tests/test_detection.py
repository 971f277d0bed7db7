"""The trained vision models of the zoo, from the picture to the answer."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import educe
from educe.limits import Limits
from educe.media.image import read_image
from educe.tasks.answer import Prediction


@pytest.fixture(scope="module")
def predictors(zoo):
    made: dict[tuple, educe.Predictor] = {}

    def get(name: str, **options) -> educe.Predictor:
        key = (name, *options.items())
        if key not in made:
            made[key] = educe.predictor(zoo / name / "model.onnx", threads=1, **options)
        return made[key]

    return get


def assert_same_boxes(found: list[Prediction], expected: list[dict], pixels: float, score: float) -> None:
    assert len(found) == len(expected)
    for box in expected:
        assert any(
            one.label == box.get("class", "face")
            and abs(one.score - box["score"]) <= score
            and np.abs(np.array(one.box) - box["box_xyxy"]).max() <= pixels
            for one in found
        ), f"no {box} among {found}"


@pytest.mark.parametrize("name", ["yolox_nano", "fastestdet"])
def test_detectors(zoo, predictors, name):
    expected = json.loads((zoo / name / "expected.json").read_text())
    predictor = predictors(name, threshold=expected["score_threshold"])
    assert expected["detections"]
    for photo, boxes in expected["detections"].items():
        found = predictor(zoo / "detection" / photo).predictions
        with Image.open(zoo / "detection" / photo) as image:
            size = image.size
        if predictor.task.card.boxes.clip:
            boxes = [{**box, "box_xyxy": np.clip(box["box_xyxy"], 0, size * 2)} for box in boxes]
        assert_same_boxes(found, boxes, pixels=1.6, score=0.01)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_faces(zoo, predictors):
    expected = json.loads((zoo / "face_detection" / "expected.json").read_text())["cases"]
    counts = {}
    for photo, boxes in expected.items():
        found = predictors("face_detection")(zoo / "face_detection" / photo).predictions
        counts[Path(photo).name] = len(found)
        assert_same_boxes(found, boxes, pixels=2.0, score=0.01)
    assert counts == {
        "faces_four.jpg": 4,
        "people2.jpeg": 2,
        "people3.jpeg": 3,
        "cat.bmp": 0,
        "zebra.jpeg": 0,
    }


def test_mobilenet_names_every_photo(zoo, predictors):
    """Class 0 of this model is the background, so that its indices are those of ImageNet plus one."""
    with (zoo / "images" / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    answers = predictors("mobilenet_v2").map(zoo / "images" / row["file"] for row in rows)
    for row, answer in zip(rows, answers, strict=True):
        right = [int(index) + 1 for index in row["imagenet_indices"].split(";")]
        assert answer.top()[0].index in right, (row, answer)


def test_mobilenet_scores(zoo, predictors):
    """The expected scores were made with the longer side rounded up or down, ours with it cut off."""
    expected = json.loads((zoo / "mobilenet_v2" / "expected.json").read_text())["cases"]
    differences = []
    for photo, case in expected.items():
        found = predictors("mobilenet_v2")(zoo / "images" / photo).top(5)
        assert found[0].index == case["top5_label_index"][0]
        assert len({one.index for one in found} & set(case["top5_label_index"])) >= 4
        differences.append(abs(found[0].score - case["top5_score"][0]))
    assert max(differences) < 0.08
    assert np.median(differences) < 1e-3


@pytest.mark.parametrize("name", ["gtsrb", "mnist"])
def test_drawn_signs_and_digits(zoo, predictors, name):
    expected = json.loads((zoo / name / "expected.json").read_text())
    answers = predictors(name).map(zoo / name / "inputs" / file for file in expected)
    for (file, case), answer in zip(expected.items(), answers, strict=True):
        (best,) = answer.top()
        assert best.label == case["label"], file
        if "score" in case:
            assert best.score == pytest.approx(case["score"], abs=2e-3)
        assert answer.model.name
        assert not answer.card.guessed


def plain(answer: educe.Answer) -> list[tuple]:
    return [(one.index, one.score, one.box) for one in answer.predictions]


def test_answers_do_not_depend_on_the_batch(zoo, predictors):
    photos = sorted((zoo / "images").glob("*.jp*g"))
    alone = [plain(answer) for answer in predictors("mobilenet_v2", batch=1).map(photos)]
    together = [plain(answer) for answer in predictors("mobilenet_v2", batch=8).map(photos)]
    assert len(alone) == len(together) == len(photos)
    for one, other in zip(alone, together, strict=True):
        assert [index for index, _, _ in one] == [index for index, _, _ in other]
        np.testing.assert_allclose([s for _, s, _ in one], [s for _, s, _ in other], atol=1e-4)


@pytest.mark.parametrize("name", ["yolox_nano", "mobilenet_v2"])
def test_answers_do_not_depend_on_the_kind_of_source(zoo, predictors, name):
    path = zoo / "detection" / "000000160012.jpg"
    image = read_image(path, Limits())
    png = io.BytesIO()
    image.save(png, "PNG")
    sources = [path, str(path), path.read_bytes(), image, np.asarray(image), png.getvalue()]
    answers = [plain(predictors(name)(source)) for source in sources]
    assert answers[0]
    assert answers.count(answers[0]) == len(answers)


@pytest.mark.parametrize("shape", ["4:1", "1:4"])
def test_boxes_follow_a_padded_photo(zoo, predictors, shape):
    """The photo stands at the end of a strip, and the model sees it at a quarter of its size."""
    photo = read_image(zoo / "detection" / "000000160012.jpg", Limits())
    width, height = photo.size
    side = max(photo.size)
    strip = (4 * side, side) if shape == "4:1" else (side, 4 * side)
    left, top = strip[0] - width, strip[1] - height
    canvas = Image.new("RGB", strip, (114, 114, 114))
    canvas.paste(photo, (left, top))
    predictor = predictors("yolox_nano", threshold=0.3)
    before = [
        one for one in predictor(photo).predictions if one.score > 0.6 and area(one) > 0.04 * width * height
    ]
    after = predictor(canvas).predictions
    assert before
    moved = [(one.index, np.array(one.box) + (left, top) * 2) for one in before]
    followed = [
        any(other.index == index and overlap(box, other.box) > 0.7 for other in after) for index, box in moved
    ]
    assert any(followed), (moved, after)
    for other in after:
        assert 0 <= other.box[0] <= other.box[2] <= strip[0]
        assert 0 <= other.box[1] <= other.box[3] <= strip[1]


def area(one: Prediction) -> float:
    return (one.box[2] - one.box[0]) * (one.box[3] - one.box[1])


def overlap(a, b) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / both
