"""Predictions drawn on pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from educe.tasks.answer import Prediction
from educe.tasks.draw import annotate

GREY = (90, 90, 90)


def box(*corners: float, label: str = "cat", index: int = 0, score: float = 0.9) -> Prediction:
    return Prediction(label=label, index=index, score=score, box=corners)


def changed(image: Image.Image, drawn: Image.Image) -> np.ndarray:
    return (np.asarray(image.convert("RGB")) != np.asarray(drawn)).any(2)


def test_a_box_is_drawn_and_the_picture_is_left_alone():
    image = Image.new("RGB", (200, 150), GREY)
    drawn = annotate(image, [box(50, 60, 120, 110)])
    assert set(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata()) == {
        GREY
    }
    assert drawn is not image
    assert (drawn.mode, drawn.size) == ("RGB", image.size)
    marks = changed(image, drawn)
    for x, y in ((50, 90), (120, 90), (80, 60), (80, 110)):
        assert marks[y, x]
    assert not marks[80:100, 60:110].any()
    assert not marks[115:].any()
    assert marks[:60, 50:].any()  # the label stands above


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_every_mode(mode):
    image = Image.new(mode, (60, 40))
    copy = image.copy()
    for predictions in ([box(5, 5, 30, 30)], [Prediction(label="cat", score=0.5)], []):
        drawn = annotate(image, predictions)
        assert drawn.mode == "RGB"
        # For its caption the small picture is enlarged.
        assert drawn.size == ((300, 200) if predictions and predictions[0].box is None else (60, 40))
        assert changed(image.convert("RGB").resize(drawn.size), drawn).any() == bool(predictions)
    assert image == copy


def test_no_predictions_change_nothing():
    image = Image.new("RGB", (20, 20), GREY)
    drawn = annotate(image, [])
    assert drawn == image
    assert drawn is not image


numbers = st.one_of(st.floats(-300, 300), st.sampled_from([-1e38, -1e9, -0.0, 1e9, 1e38, 3.4e38]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=3),
    st.integers(1, 80),
    st.integers(1, 80),
)
def test_boxes_anywhere(corners, width, height):
    """Beyond the edges, far away, inverted, without area; pictures down to one pixel."""
    image = Image.new("RGB", (width, height), GREY)
    drawn = annotate(image, [box(*one, index=index) for index, one in enumerate(corners)])
    assert drawn.size == image.size


def test_a_box_at_the_border_keeps_its_label_in_the_picture():
    image = Image.new("RGB", (300, 200), GREY)
    for corners in (
        (0, 0, 300, 200),
        (250, 180, 300, 200),
        (-20, -20, 40, 40),
        (280, 0, 400, 30),
        (0, 199, 9, 250),
    ):
        drawn = annotate(image, [box(*corners, label="elephant")])
        letters = np.asarray(drawn).min(2) > 200
        assert letters.sum() > 40, corners
        assert changed(image, drawn).sum() > 400, corners


def test_a_box_far_outside_draws_no_edge():
    image = Image.new("RGB", (100, 100), GREY)
    marks = changed(image, annotate(image, [box(300, 300, 400, 400, label="", score=None)]))
    assert not marks.any()


@pytest.mark.parametrize("label", ["", " ", "x" * 100_000, "two\nlines\tand more", "猫", "\0", "é" * 60])
@pytest.mark.parametrize("size", [(1, 1), (40, 30), (640, 480)])
def test_labels_of_every_length(label, size):
    image = Image.new("RGB", size, GREY)
    for prediction in (
        box(0, 0, *size, label=label),
        Prediction(label=label, score=0.5),
        Prediction(label=label),
    ):
        drawn = annotate(image, [prediction])
        # A picture too small for a caption is enlarged; one with boxes never is.
        factor = 1 if prediction.box is not None else max(1, -(-192 // min(size)))
        assert drawn.size == (factor * size[0], factor * size[1])


def test_a_long_label_is_cut():
    image = Image.new("RGB", (2000, 400), GREY)
    marks = changed(image, annotate(image, [box(10, 200, 60, 260, label="word " * 500)]))
    assert marks[:195, 1500:].sum() == 0


def test_the_best_box_lies_on_top():
    image = Image.new("RGB", (100, 100), GREY)
    best, worst = box(20, 40, 80, 90, index=0), box(20, 40, 80, 90, index=1, score=0.2)
    assert annotate(image, [best, worst]).getpixel((20, 80)) == annotate(image, [best]).getpixel((20, 80))
    assert annotate(image, [best]).getpixel((20, 80)) != annotate(image, [worst]).getpixel((20, 80))


def test_neighbouring_classes_have_other_colors():
    image = Image.new("RGB", (100, 100), GREY)
    colors = [annotate(image, [box(20, 40, 80, 90, index=k)]).getpixel((20, 80)) for k in range(6)]
    for first in range(6):
        for second in range(first):
            assert math.dist(colors[first], colors[second]) > 60


def test_a_caption_lists_the_best_classes():
    image = Image.new("RGB", (300, 200), GREY)
    scores = (0.7, 0.2, 0.1, 0.05)
    classes = [Prediction(label=f"class {k}", index=k, score=score) for k, score in enumerate(scores)]
    heights = [
        np.flatnonzero(changed(image, annotate(image, classes[:k])).any(1)).max() for k in (1, 2, 3, 4)
    ]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    certain = [classes[0], Prediction(label="class 9", index=9, score=0.0001)]
    assert annotate(image, certain) == annotate(image, classes[:1])


def test_many_boxes(rng):
    image = Image.new("RGB", (320, 240), GREY)
    corners = rng.uniform(-20, 320, (300, 4))
    assert annotate(image, [box(*one, index=index) for index, one in enumerate(corners)]).size == (320, 240)
