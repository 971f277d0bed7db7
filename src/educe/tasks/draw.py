"""Predictions drawn on their picture: boxes with labels, or a caption with the best classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from educe.tasks.answer import Prediction

_CAPTION_LINES = 3
_CAPTION_SCORE = 0.005
_CAPTION_SIDE = 192
_LARGEST_SIDE = 4096
_MAX_LETTERS = 48
_PADDING = 3
# Turning the hue by the golden ratio keeps the colours of neighbouring classes far apart.
_HUE_STEP = 0.618034

Color: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[float, float, float, float]
Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"


def annotate(image: Image.Image, predictions: Sequence[Prediction]) -> Image.Image:
    """Return a copy of `image` with `predictions` drawn on it; `image` itself is not modified.

    A picture too small for a caption is enlarged by a whole number.
    """
    canvas = image.copy() if image.mode == "RGB" else image.convert("RGB")
    boxed = [(prediction, prediction.box) for prediction in predictions if prediction.box is not None]
    if predictions and not boxed and min(canvas.size) < _CAPTION_SIDE:
        factor = -(-_CAPTION_SIDE // min(canvas.size))
        if factor * max(canvas.size) <= _LARGEST_SIDE:
            canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    if boxed:
        font = ImageFont.load_default(max(11, round(min(canvas.size) / 34)))
        # The best box is drawn last, and every label after all boxes, so that none is struck through.
        for prediction, box in reversed(boxed):
            _draw_box(draw, canvas.size, box, _color(prediction.index or 0))
        for prediction, box in reversed(boxed):
            _draw_label(draw, canvas.size, box, prediction, font)
    elif predictions:
        others = [other for other in predictions[1:] if other.score is None or other.score >= _CAPTION_SCORE]
        _draw_caption(draw, canvas.size, [predictions[0], *others][:_CAPTION_LINES])
    return canvas


def _draw_box(draw: ImageDraw.ImageDraw, size: tuple[int, int], box: Box, color: Color) -> None:
    width = max(2, round(min(size) / 250))
    left, top, right, bottom = _near(box, size)
    draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)


def _draw_label(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], box: Box, prediction: Prediction, font: Font
) -> None:
    text, color = _text(prediction), _color(prediction.index or 0)
    if not text:
        return
    left, top, _, _ = _near(box, size)
    _, above, right, below = draw.textbbox((0, 0), text, font=font)
    width, height = right + 2 * _PADDING, below - above + 2 * _PADDING
    x = max(0, min(left, size[0] - width))
    # Above the box, or inside it at the upper edge of the picture.
    y = max(0, min(top - height if top >= height else top, size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    ink = "white" if _is_dark(color) else "black"
    draw.text((x + _PADDING, y + _PADDING - above), text, fill=ink, font=font)


def _draw_caption(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], predictions: Sequence[Prediction]
) -> None:
    font = ImageFont.load_default(max(10, round(min(size) / 20)))
    text = "\n".join(_text(prediction) for prediction in predictions)
    box = draw.multiline_textbbox((6, 4), text, font=font)
    draw.rectangle((0, 0, box[2] + 6, box[3] + 6), fill=(0, 0, 0))
    draw.multiline_text((6, 4), text, fill="white", font=font)


def _near(box: Box, size: tuple[int, int]) -> Box:
    """Return `box` with what lies far outside the picture brought near, as Pillow draws with C integers."""
    width, height = size
    left, right = (min(max(x, -width), 2 * width) for x in (box[0], box[2]))
    top, bottom = (min(max(y, -height), 2 * height) for y in (box[1], box[3]))
    return left, top, right, bottom


def _text(prediction: Prediction) -> str:
    label = " ".join((prediction.label or "").split())
    label = label if len(label) <= _MAX_LETTERS else f"{label[: _MAX_LETTERS - 1]}…"
    score = "" if prediction.score is None else f"{prediction.score:.0%}"
    return f"{label} {score}".strip()


def _color(index: int) -> Color:
    red, green, blue = colorsys.hsv_to_rgb((0.05 + index * _HUE_STEP) % 1, 0.85, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _is_dark(color: Color) -> bool:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 150
