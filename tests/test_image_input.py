"""From pictures to tensors and back, against a plain slow reference."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from educe.model.card import ImageInput
from educe.tasks.image_input import ImageTransform, Placement

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
FITS = (
    {"fit": "stretch"},
    {"fit": "crop"},
    {"fit": "crop", "shorter_side": 13},
    {"fit": "letterbox", "anchor": "center", "fill": 7},
    {"fit": "letterbox", "anchor": "top-left"},
)
VALUES = (
    {},
    {"range": (0.0, 255.0)},
    {"range": (-1.0, 1.0)},
    {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    {"range": (0.0, 255.0), "mean": (127.0,), "std": (128.0,)},
)
SIZES = ((23, 17), (17, 23), (9, 9), (4, 30), (1, 1), (1, 40), (40, 1))
KERNELS = {
    "nearest": (0.0, lambda x: 1.0),
    "box": (0.5, lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0),
    "bilinear": (1.0, lambda x: max(0.0, 1 - abs(x))),
    "hamming": (
        1.0,
        lambda x: (
            1.0
            if x == 0
            else 0.0
            if abs(x) >= 1
            else math.sin(math.pi * x) / (math.pi * x) * (0.54 + 0.46 * math.cos(math.pi * x))
        ),
    ),
    "bicubic": (
        2.0,
        lambda x: (
            ((1.5 * abs(x) - 2.5) * x * x + 1)
            if abs(x) < 1
            else (((abs(x) - 5) * abs(x) + 8) * abs(x) - 4) * -0.5
            if abs(x) < 2
            else 0.0
        ),
    ),
    "lanczos": (3.0, lambda x: float(np.sinc(x) * np.sinc(x / 3)) if -3 <= x < 3 else 0.0),
}
"""Half the width of each filter, and its weight at a distance."""


@dataclass(frozen=True)
class Choice:
    """What a right program may choose: the sides that ties fall to, and the axis that is resized first."""

    across_first: bool
    nudges: tuple[float, float]


NUDGES = tuple(itertools.product((1e-9, -1e-9), repeat=2))


@functools.cache
def weights(found: int, wanted: int, name: str, antialias: bool, nudge: float) -> np.ndarray:
    """How much each of `found` pixels counts in each of `wanted`, computed one by one."""
    matrix = np.zeros((wanted, found))
    scale = found / wanted
    half, kernel = KERNELS[name]
    width = max(1.0, scale) if antialias else 1.0
    for row in range(wanted):
        centre = (row + 0.5) * scale + nudge
        if name == "nearest":
            matrix[row, min(found - 1, int(centre))] = 1
        elif antialias:
            low, high = max(0, int(centre - half * width + 0.5)), min(found, int(centre + half * width + 0.5))
            for column in range(low, high):
                matrix[row, column] = kernel((column + 0.5 - centre) / width)
            matrix[row] /= matrix[row].sum()
        else:
            left = math.floor(centre - 0.5)
            share = centre - 0.5 - left
            matrix[row, min(max(left, 0), found - 1)] += 1 - share
            matrix[row, min(max(left + 1, 0), found - 1)] += share
    return matrix


def resized(pixels: np.ndarray, size: tuple[int, int], spec: ImageInput, choice: Choice) -> np.ndarray:
    """[height, width, channels] at another size, rounded after each axis, as Pillow does."""
    across = weights(pixels.shape[1], size[0], spec.filter, spec.antialias, choice.nudges[0])
    down = weights(pixels.shape[0], size[1], spec.filter, spec.antialias, choice.nudges[1])
    if not spec.antialias:
        # Here Pillow cuts off rather than rounds, and does so once.
        return np.floor(np.einsum("ij,kl,jlc->ikc", down, across, pixels) + 1e-6)
    steps = [("kl,jlc->jkc", across), ("ij,jkc->ikc", down)]
    for rule, matrix in steps if choice.across_first else reversed(steps):
        pixels = np.clip(np.floor(np.einsum(rule, matrix, pixels) + 0.5 + 1e-9), 0, 255)
    return pixels


def expected(image: Image.Image, spec: ImageInput, choice: Choice = Choice(True, NUDGES[0])) -> np.ndarray:
    """The pixels of the tensor before scaling, [height, width, channels] in the order of the card."""
    width, height = spec.size
    pixels = np.asarray(image.convert("L" if spec.color == "gray" else "RGB"), np.float64)
    pixels = pixels.reshape(image.height, image.width, -1)
    if spec.fit == "stretch":
        pixels = resized(pixels, spec.size, spec, choice)
    elif spec.fit == "crop":
        shorter = spec.shorter_side or max(spec.size)
        if image.width < image.height:
            scaled = (shorter, int(shorter * image.height / image.width))
        else:
            scaled = (int(shorter * image.width / image.height), shorter)
        left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
        pixels = resized(pixels, scaled, spec, choice)[top : top + height, left : left + width]
    else:
        ratio = min(width / image.width, height / image.height)
        scaled = (max(1, int(image.width * ratio + 1e-9)), max(1, int(image.height * ratio + 1e-9)))
        left = (width - scaled[0]) // 2 if spec.anchor == "center" else 0
        top = (height - scaled[1]) // 2 if spec.anchor == "center" else 0
        canvas = np.full((height, width, pixels.shape[2]), float(spec.fill))
        canvas[top : top + scaled[1], left : left + scaled[0]] = resized(pixels, scaled, spec, choice)
        pixels = canvas
    return pixels[:, :, ::-1] if spec.color == "bgr" else pixels


def scaled_values(pixels: np.ndarray, spec: ImageInput) -> np.ndarray:
    low, high = spec.range
    out = np.empty(pixels.shape)
    for row, column, channel in np.ndindex(*pixels.shape):
        mean, std = (values[channel % len(values)] for values in (spec.mean, spec.std))
        out[row, column, channel] = (low + pixels[row, column, channel] / 255 * (high - low) - mean) / std
    return out.transpose(2, 0, 1) if spec.layout == "nchw" else out


def noise(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: "-".join(map(str, fit.values())))
@pytest.mark.parametrize(
    ("name", "antialias"), [*((f, True) for f in FILTERS), ("nearest", False), ("bilinear", False)]
)
def test_the_pixels(rng, fit, name, antialias):
    for size, wanted, color in itertools.product(SIZES, ((11, 8), (13, 13)), ("rgb", "bgr", "gray")):
        spec = ImageInput(
            size=wanted, filter=name, antialias=antialias, color=color, range=(0, 255), layout="nhwc", **fit
        )
        image = noise(rng, size)
        tensor, _ = ImageTransform(spec, np.dtype(np.float32))([image])
        # Ties fall apart for each pixel, the order of the axes for the whole picture.
        difference = min(
            (
                np.min([np.abs(tensor[0] - expected(image, spec, Choice(first, n))) for n in NUDGES], axis=0)
                for first in (True, False)
            ),
            key=np.sum,
        )
        # Fixed-point weights round the other way now and then, and cutting off has ties everywhere.
        assert difference.max() <= 1, (size, wanted, color)
        assert (difference > 0).mean() <= (0.05 if antialias else 0.6), (size, wanted, color)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint8", "int8"])
@pytest.mark.parametrize("values", VALUES, ids=str)
def test_the_values(rng, values, dtype):
    tolerance = {"float32": 1e-5, "float16": 2e-3, "float64": 1e-12, "uint8": 0.501, "int8": 0.501}[dtype]
    for color, layout in itertools.product(("rgb", "bgr", "gray"), ("nchw", "nhwc")):
        if color == "gray" and len(values.get("mean", (0,))) == 3:
            continue
        spec = ImageInput(size=(6, 5), color=color, layout=layout, **values)
        image = noise(rng, (6, 5))
        tensor, _ = ImageTransform(spec, np.dtype(dtype))([image])
        reference = scaled_values(expected(image, spec), spec)
        if dtype in ("uint8", "int8"):
            reference = np.clip(reference, np.iinfo(dtype).min, np.iinfo(dtype).max)
        assert tensor.dtype == dtype
        assert tensor.shape == (1, *reference.shape)
        scale = max(1.0, np.abs(reference).max())
        np.testing.assert_allclose(
            tensor[0].astype(np.float64),
            reference,
            rtol=0,
            atol=tolerance * scale if "float" in dtype else tolerance,
        )


def test_pictures_are_stacked_and_left_as_they_were(rng):
    images = [noise(rng, size) for size in SIZES]
    copies = [image.copy() for image in images]
    transform = ImageTransform(ImageInput(size=(8, 8), fit="letterbox"), np.dtype(np.float32))
    tensor, placements = transform(images)
    for index, image in enumerate(images):
        alone, (placement,) = transform([image])
        np.testing.assert_array_equal(tensor[index], alone[0])
        assert placements[index] == placement
        assert image == copies[index]
    assert transform([])[0].shape == (0, 3, 8, 8)


def test_grey_and_color_pictures_fit_either_card(rng):
    grey = noise(rng, (8, 8)).convert("L")
    tensor, _ = ImageTransform(ImageInput(size=(8, 8), range=(0, 255)), np.dtype(np.float32))([grey])
    for channel in tensor[0]:
        np.testing.assert_array_equal(channel, np.asarray(grey))


@pytest.mark.parametrize(
    ("size", "scale", "offset"),
    [
        ((1, 1000), (1.0, 0.1), (49.0, 0.0)),
        ((1000, 1), (0.1, 1.0), (0.0, 49.0)),
        ((1, 1), (100.0, 100.0), (0.0, 0.0)),
        ((1, 99_999), (1.0, 100 / 99_999), (49.0, 0.0)),
        ((49, 49), (100 / 49, 100 / 49), (0.0, 0.0)),
        ((200, 100), (0.5, 0.5), (0.0, 25.0)),
    ],
)
def test_letterbox_geometry(size, scale, offset):
    spec = ImageInput(size=(100, 100), fit="letterbox", range=(0, 255), layout="nhwc")
    tensor, (placement,) = ImageTransform(spec, np.dtype(np.uint8))([Image.new("RGB", size, "white")])
    assert placement.scale == pytest.approx(scale)
    assert placement.offset == offset
    left, top = (int(x) for x in offset)
    right, bottom = (
        start + round(factor * side) for start, factor, side in zip((left, top), scale, size, strict=True)
    )
    picture = np.full((100, 100, 3), 114)
    picture[top:bottom, left:right] = 255
    np.testing.assert_array_equal(tensor[0], picture)


@pytest.mark.parametrize(
    "size", [(1, 1000), (1000, 1), (1, 1), (1, 300_000), (300_000, 1), (49, 49), (37, 111)]
)
def test_crop_geometry(size):
    """A narrow picture would be scaled to gigabytes, if more than the cut were computed."""
    spec = ImageInput(size=(224, 200), fit="crop", shorter_side=256, range=(0, 255), layout="nhwc")
    image = Image.new("RGB", size, "white")
    tensor, (placement,) = ImageTransform(spec, np.dtype(np.uint8))([image])
    assert (tensor == 255).all()
    across, down = (round(scale * side) for scale, side in zip(placement.scale, size, strict=True))
    assert min(across, down) == 256
    assert placement.offset == (-round((across - 224) / 2), -round((down - 200) / 2))


def test_crop_takes_the_middle():
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    spec = ImageInput(size=(50, 50), fit="crop", range=(0, 255), filter="nearest", layout="nhwc")
    tensor, _ = ImageTransform(spec, np.dtype(np.uint8))([image])
    assert (tensor == 255).all()


sides = st.integers(1, 3000)
shares = st.floats(0, 1, width=32)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(FITS), sides, sides, st.lists(st.tuples(shares, shares, shares, shares), max_size=4))
def test_a_box_there_and_back(fit, width, height, boxes):
    spec = ImageInput(size=(32, 24), **{**fit, **({"shorter_side": 40} if "shorter_side" in fit else {})})
    image = Image.new("L", (width, height))
    _, (placement,) = ImageTransform(spec, np.dtype(np.float32))([image])
    assert placement.size == (width, height)
    original = np.array(boxes, np.float32).reshape(-1, 4) * np.array([width, height] * 2, np.float32)
    inside = original * np.array(placement.scale * 2) + np.array(placement.offset * 2)
    if spec.fit != "crop":
        assert (inside >= -1e-3).all()
        assert (inside <= np.array([32, 24] * 2) + 1e-3).all()
    back = placement.to_original(inside.astype(np.float32))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, original, atol=2e-5 * max(width, height))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(FITS), st.integers(60, 400), st.integers(60, 400))
def test_a_mark_is_found_where_the_placement_says(fit, width, height):
    """What stands in the middle of the picture stands in the tensor where the placement puts it."""
    spec = ImageInput(
        size=(60, 60),
        range=(0, 255),
        layout="nhwc",
        **{**fit, "fill": 0, **({"shorter_side": 70} if "shorter_side" in fit else {})},
    )
    image = Image.new("RGB", (width, height), "black")
    box = (width * 2 // 5, height * 2 // 5, width * 3 // 5, height * 3 // 5)
    image.paste("white", box)
    tensor, (placement,) = ImageTransform(spec, np.dtype(np.float32))([image])
    rows, columns = np.nonzero(tensor[0, :, :, 0] > 100)
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    back = placement.to_original(seen)
    pixel = 1.5 / np.array(placement.scale * 2) + 1
    shown = placement.to_original(np.array([[0, 0, 60, 60]], np.float32))
    low, high = np.tile(shown[:, :2], 2), np.tile(shown[:, 2:], 2)
    assert (np.abs(back - np.clip(np.array([box]), low, high)) <= pixel).all()


def test_a_placement_by_hand():
    placement = Placement((0.5, 2.0), (10.0, -4.0), (100, 50))
    boxes = np.array([[10, -4, 60, 96]], np.float32)
    np.testing.assert_array_equal(placement.to_original(boxes), [[0, 0, 100, 50]])
