"""Draw handwritten digits as MNIST has them: 28x28, white on black, 20 pixels high, centred by mass.

Each digit is a list of curves, drawn with a thick round pen and leaning a little to the right.

    pip install numpy pillow
    python draw_digits.py FOLDER
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 28
FULL = 560  # pixels of the drawing, which is then scaled down
PEN = 46
Point = tuple[float, float]


def arc(centre: Point, radii: Point, start: float, end: float) -> list[Point]:
    """Return points of an elliptic arc; angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(centre[0] + radii[0] * math.cos(a), centre[1] + radii[1] * math.sin(a)) for a in angles]


STROKES: dict[int, list[list[Point]]] = {
    0: [arc((0.5, 0.5), (0.3, 0.45), -80, 290)],
    1: [[(0.36, 0.22), (0.52, 0.05), (0.52, 0.95)]],
    2: [[*arc((0.5, 0.3), (0.28, 0.25), -170, 35), (0.2, 0.92), (0.84, 0.92)]],
    3: [arc((0.46, 0.27), (0.28, 0.22), -150, 90), arc((0.46, 0.71), (0.32, 0.23), -90, 150)],
    4: [[(0.3, 0.06), (0.2, 0.55), (0.82, 0.55)], [(0.66, 0.1), (0.62, 0.95)]],
    5: [[(0.8, 0.07), (0.32, 0.07), (0.28, 0.45), *arc((0.46, 0.68), (0.3, 0.25), -100, 140)]],
    6: [[(0.66, 0.06), (0.4, 0.28), *arc((0.5, 0.7), (0.26, 0.24), -170, 190)]],
    7: [[(0.18, 0.08), (0.82, 0.08), (0.42, 0.95)]],
    8: [arc((0.5, 0.28), (0.22, 0.21), 0, 360), arc((0.5, 0.72), (0.27, 0.23), 0, 360)],
    9: [[*arc((0.5, 0.3), (0.25, 0.24), 0, 360), (0.7, 0.95)]],
}


def digit(strokes: list[list[Point]]) -> Image.Image:
    """Return one digit."""
    large = Image.new("L", (FULL, FULL))
    draw = ImageDraw.Draw(large)
    for stroke in strokes:
        pixels = [(60 + (x + 0.18 * (0.5 - y)) * 400 + 20, 60 + y * 440) for x, y in stroke]
        draw.line(pixels, fill=255, width=PEN, joint="curve")
        for x, y in pixels:
            draw.ellipse((x - PEN / 2, y - PEN / 2, x + PEN / 2, y + PEN / 2), fill=255)
    box = large.crop(large.getbbox())
    scale = 20 / max(box.size)
    small = box.resize((max(1, round(box.width * scale)), round(box.height * scale)), Image.Resampling.BOX)
    mass = np.asarray(small, np.float64)
    x = round(SIZE / 2 - (mass.sum(0) @ (np.arange(small.width) + 0.5)) / mass.sum())
    y = round(SIZE / 2 - (mass.sum(1) @ (np.arange(small.height) + 0.5)) / mass.sum())
    result = Image.new("L", (SIZE, SIZE))
    result.paste(small, (x, y))
    return result


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for number, strokes in STROKES.items():
        digit(strokes).save(folder / f"{number}.png", optimize=True)
