"""Charts of curves, as SVG or PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from educe.cli.chart import svg_document

Point = tuple[float, float]

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 80, 48, 40
_COLORS = ("#3b6ea8", "#d08020", "#b03a48", "#4a8a4a")
_TEXT, _GRID, _BACK = "#222222", "#dddddd", "#ffffff"
_STEPS = (1.0, 2.0, 5.0)


class _Scale:
    """Where values lie on the picture: from 0 along, and by powers of ten upwards."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.most = max((x for x, _ in points), default=1.0) or 1.0
        heights = [y for _, y in points if y > 0] or [1.0]
        self.low, self.high = math.log10(min(heights)), math.log10(max(heights))
        if self.high - self.low < 0.5:
            middle = (self.high + self.low) / 2
            self.low, self.high = middle - 0.25, middle + 0.25

    def place(self, x: float, y: float) -> Point:
        """Return where a point lies, in pixels from above."""
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / self.most
        share = (math.log10(y) - self.low) / (self.high - self.low) if y > 0 else 0.0
        return across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    def heights(self) -> list[float]:
        """Return the values of the lines across."""
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [step * 10.0**power for power in powers for step in _STEPS]
        return [value for value in found if self.low <= math.log10(value) <= self.high]

    def widths(self) -> list[float]:
        """Return the values of the lines upwards."""
        rough = self.most / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(step * power for step in (*_STEPS, 10.0) if step * power >= rough)
        return [step * number for number in range(math.floor(self.most / step + 1e-9) + 1)]


def save_curves(path: Path, title: str, curves: Mapping[str, Sequence[Point]]) -> None:
    """Write a chart of curves, the heights by powers of ten.

    Args:
        path: A file whose name ends in one of `chart.SUFFIXES`.
        title: What stands above.
        curves: The points of each curve, by its name.
    """
    scale = _Scale([point for points in curves.values() for point in points])
    if path.suffix == ".svg":
        path.write_text(_svg(title, curves, scale), encoding="utf-8")
    else:
        _save_png(path, title, curves, scale)


def _grid(scale: _Scale) -> list[tuple[Point, Point, str, bool]]:
    """Return the lines behind the curves: from, to, what stands there, and whether it goes across."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    across = [(scale.place(0, value)[1], f"{value:g}") for value in scale.heights()]
    upwards = [(scale.place(value, 1)[0], f"{value:g}") for value in scale.widths()]
    return [
        *(((_LEFT, y), (right, y), text, True) for y, text in across),
        *(((x, bottom), (x, _TOP), text, False) for x, text in upwards),
    ]


def _svg(title: str, curves: Mapping[str, Sequence[Point]], scale: _Scale) -> str:
    lines: list[str] = []
    for (x1, y1), (x2, y2), text, goes_across in _grid(scale):
        where = f'x="{x1 - 6}" y="{y1 + 4:.1f}" text-anchor="end"'
        if not goes_across:
            where = f'x="{x1:.1f}" y="{y1 + 18}" text-anchor="middle"'
        lines += [
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_GRID}"/>',
            f"<text {where}>{text}</text>",
        ]
    for index, (name, points) in enumerate(curves.items()):
        color = _COLORS[index % len(_COLORS)]
        places = [scale.place(*point) for point in points]
        dots = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(f'<polyline points="{dots}" fill="none" stroke="{color}" stroke-width="2"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        if places:
            x, y = places[-1]
            lines.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{color}">{escape(name)}</text>')
    return svg_document(_WIDTH, _HEIGHT, title, lines)


def _save_png(path: Path, title: str, curves: Mapping[str, Sequence[Point]], scale: _Scale) -> None:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _BACK)
    draw = ImageDraw.Draw(picture)
    font, large = ImageFont.load_default(12), ImageFont.load_default(15)
    draw.text((16, 14), title, _TEXT, font=large)
    for start, end, text, goes_across in _grid(scale):
        draw.line((start, end), _GRID)
        shift, anchor = ((-6, 0), "rm") if goes_across else ((0, 6), "ma")
        draw.text((start[0] + shift[0], start[1] + shift[1]), text, _TEXT, font=font, anchor=anchor)
    for index, (name, points) in enumerate(curves.items()):
        color = _COLORS[index % len(_COLORS)]
        places = [scale.place(*point) for point in points]
        draw.line(places, color, 2)
        for x, y in places:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), color)
        if places:
            draw.text((places[-1][0] + 8, places[-1][1]), name, color, font=font, anchor="lm")
    picture.save(path)
