"""Predictions drawn on their picture: boxes with labels, or a caption with the best classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from educe.tasks.answer import Prediction

_CAPTION_LINES = 3
# Turning the hue by the golden ratio keeps the colours of neighbouring classes far apart.
_HUE_STEP = 0.618034


def annotate(image: Image.Image, predictions: Sequence[Prediction]) -> Image.Image:
    """Return a copy of `image` with `predictions` drawn on it; `image` itself is not modified."""
    canvas = image.convert("RGB")
    if canvas is image:
        canvas = image.copy()
    draw = ImageDraw.Draw(canvas)
    boxed = [prediction for prediction in predictions if prediction.box is not None]
    # The best box is drawn last, on top.
    for prediction in reversed(boxed):
        _draw_box(draw, canvas.size, prediction)
    if predictions and not boxed:
        _draw_caption(draw, canvas.size, predictions[:_CAPTION_LINES])
    return canvas


def _draw_box(draw: ImageDraw.ImageDraw, size: tuple[int, int], prediction: Prediction) -> None:
    assert prediction.box is not None
    color = _color(prediction.index or 0)
    width = max(2, round(min(size) / 250))
    left, top, right, bottom = prediction.box
    draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
    font = ImageFont.load_default(max(11, round(min(size) / 34)))
    text = _text(prediction)
    box = draw.textbbox((0, 0), text, font=font)
    height = box[3] + 4
    x = min(max(0, left), max(0, size[0] - box[2] - 6))
    y = top - height if top >= height else top
    draw.rectangle((x, y, x + box[2] + 6, y + height), fill=color)
    draw.text((x + 3, y + 1), text, fill="white" if _is_dark(color) else "black", font=font)


def _draw_caption(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], predictions: Sequence[Prediction]
) -> None:
    font = ImageFont.load_default(max(10, round(min(size) / 20)))
    text = "\n".join(_text(prediction) for prediction in predictions)
    box = draw.multiline_textbbox((6, 4), text, font=font)
    draw.rectangle((0, 0, box[2] + 6, box[3] + 6), fill=(0, 0, 0))
    draw.multiline_text((6, 4), text, fill="white", font=font)


def _text(prediction: Prediction) -> str:
    score = "" if prediction.score is None else f" {prediction.score:.0%}"
    return f"{prediction.label or ''}{score}".strip()


def _color(index: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((0.05 + index * _HUE_STEP) % 1, 0.85, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _is_dark(color: tuple[int, int, int]) -> bool:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 150
