"""Bar charts, as SVG or PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

SUFFIXES = (".svg", ".png")
"""The endings of files that hold charts."""

_ROW = 20
_LABEL = 420
_BAR = 480
_VALUE = 220
_MARGIN = 16
_COLORS = {"bar": "#3b6ea8", "text": "#222222", "back": "#ffffff"}


def save_bars(path: Path, title: str, rows: Sequence[tuple[str, float, str]]) -> None:
    """Write a chart with a bar for each row: its label, its length, and what stands behind it.

    Args:
        path: A file whose name ends in one of `SUFFIXES`.
        title: What stands above.
        rows: The bars, from above.
    """
    if path.suffix == ".svg":
        path.write_text(_svg(title, rows), encoding="utf-8")
    else:
        _save_png(path, title, rows)


def _size(rows: Sequence[object]) -> tuple[int, int]:
    return 2 * _MARGIN + _LABEL + _BAR + _VALUE, 3 * _MARGIN + _ROW * (len(rows) + 1)


def _bars(rows: Sequence[tuple[str, float, str]]) -> list[tuple[str, float, str, int]]:
    """Return each row's label, length in pixels, text, and top."""
    longest = max((length for _, length, _ in rows), default=0) or 1
    return [
        (label, length / longest * _BAR, text, 2 * _MARGIN + _ROW * (index + 1))
        for index, (label, length, text) in enumerate(rows)
    ]


def _svg(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    width, height = _size(rows)
    lines: list[str] = []
    for label, length, text, top in _bars(rows):
        start = _MARGIN + _LABEL
        lines += [
            f'<text x="{start - 8}" y="{top + 14}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{start}" y="{top + 3}" width="{length:.1f}" height="{_ROW - 6}" '
            f'fill="{_COLORS["bar"]}"/>',
            f'<text x="{start + length + 6:.1f}" y="{top + 14}">{escape(text)}</text>',
        ]
    return svg_document(width, height, title, lines)


def svg_document(width: int, height: int, title: str, lines: Sequence[str]) -> str:
    """Return a picture as SVG: a title on a white ground, and elements below it."""
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="{_COLORS["back"]}"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 12}" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    return "\n".join([*head, *lines, "</svg>", ""])


def _save_png(path: Path, title: str, rows: Sequence[tuple[str, float, str]]) -> None:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", _size(rows), _COLORS["back"])
    draw = ImageDraw.Draw(picture)
    font, large = ImageFont.load_default(12), ImageFont.load_default(15)
    # Pillow's own font lacks the micro sign.
    title = title.replace("µs", "us")
    draw.text((_MARGIN, _MARGIN), title, _COLORS["text"], font=large)
    for label, length, text, top in _bars(rows):
        start = _MARGIN + _LABEL
        draw.text((start - 8, top + 3), label, _COLORS["text"], font=font, anchor="ra")
        draw.rectangle((start, top + 3, start + length, top + _ROW - 3), fill=_COLORS["bar"])
        draw.text((start + length + 6, top + 3), text.replace("µs", "us"), _COLORS["text"], font=font)
    picture.save(path)
