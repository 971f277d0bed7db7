"""Draw German traffic signs that look like small photographs.

Shapes and proportions follow the signs of the German road traffic regulations (StVO): Zeichen 274 speed
limit, 206 stop, 205 yield, 267 no entry, 306 priority road, 101 danger and so on. Each sign stands before a
blurred sky over a blurred roadside, its colours are those of paint in daylight, and the picture is soft.

    pip install pillow
    python draw_signs.py FOLDER
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 96
SCALE = 8  # the drawing is this many times larger than the picture
FULL = SIZE * SCALE
RED, BLUE, YELLOW = (178, 34, 42), (28, 84, 160), (228, 168, 28)
WHITE, BLACK, GREY = (222, 222, 220), (28, 28, 30), (110, 110, 112)
FONT = "DejaVuSansCondensed-Bold.ttf"
Point = tuple[float, float]


def pixel(point: Point) -> Point:
    """Turn sign coordinates, -1..1 with y downwards, into pixels; the sign fills 80 % of the picture."""
    return FULL / 2 + point[0] * FULL * 0.4, FULL / 2 + point[1] * FULL * 0.4


class Canvas:
    """A picture that is drawn on in sign coordinates."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)

    def disc(self, radius: float, color: tuple[int, int, int], centre: Point = (0.0, 0.0)) -> None:
        """Fill a circle."""
        left, top = pixel((centre[0] - radius, centre[1] - radius))
        right, bottom = pixel((centre[0] + radius, centre[1] + radius))
        self.draw.ellipse((left, top, right, bottom), fill=color)

    def polygon(self, points: Sequence[Point], color: tuple[int, int, int]) -> None:
        """Fill a polygon."""
        self.draw.polygon([pixel(point) for point in points], fill=color)

    def rounded(self, points: Sequence[Point], radius: float, color: tuple[int, int, int]) -> None:
        """Fill a polygon and a band of `radius` around it, so that its corners are round."""
        self.polygon(points, color)
        self.line([*points, points[0]], 2 * radius, color)

    def line(self, points: Sequence[Point], width: float, color: tuple[int, int, int]) -> None:
        """Draw a line with round joints and ends."""
        pixels = [pixel(point) for point in points]
        self.draw.line(pixels, fill=color, width=round(width * FULL * 0.4))
        for point in points:
            self.disc(width / 2, color, point)

    def text(self, text: str, height: float, width: float, color: tuple[int, int, int]) -> None:
        """Write text in the middle, its digits `height` high, squeezed to `width` as road letters are."""
        font = ImageFont.truetype(FONT, FULL)
        left, top, right, bottom = (round(edge) for edge in font.getbbox(text, anchor="ls"))
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font, anchor="ls")
        mask = mask.resize((round(width * FULL * 0.4), round(height * FULL * 0.4)))
        corner = ((FULL - mask.width) // 2, (FULL - mask.height) // 2)
        self.image.paste(color, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)

    def arrow(self, points: Sequence[Point], width: float, head: float, color: tuple[int, int, int]) -> None:
        """Draw a bent arrow; the last point is its tip and `head` the length of its head."""
        (x0, y0), (x1, y1) = points[-2], points[-1]
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        neck = (x1 - dx * head, y1 - dy * head)
        pixels = [pixel(point) for point in [*points[:-1], (neck[0] + dx * 0.02, neck[1] + dy * 0.02)]]
        self.draw.line(pixels, fill=color, width=round(width * FULL * 0.4), joint="curve")
        half = head * 0.85
        wings = [(neck[0] - dy * half, neck[1] + dx * half), (neck[0] + dy * half, neck[1] - dx * half)]
        self.polygon([points[-1], *wings], color)


def triangle(radius: float, down: bool = False) -> list[Point]:
    """Return the corners of an equilateral triangle, its centre a little off that of the picture."""
    turn, shift = (90.0, -0.2) if down else (-90.0, 0.2)
    angles = (math.radians(turn + 120 * k) for k in range(3))
    return [(radius * math.cos(a), radius * math.sin(a) + shift) for a in angles]


def prohibition(canvas: Canvas) -> None:
    """Draw a white disc with a red ring; the ring is an eighth of the diameter wide."""
    canvas.disc(1.0, WHITE)
    canvas.disc(0.97, RED)
    canvas.disc(0.73, WHITE)


def speed_limit(number: str) -> Callable[[Canvas], None]:
    """Return the drawing of a speed limit."""

    def draw(canvas: Canvas) -> None:
        prohibition(canvas)
        canvas.text(number, 0.74, 0.94 if len(number) == 2 else 1.16, BLACK)

    return draw


def danger(canvas: Canvas) -> None:
    """Draw a white triangle with a red border."""
    canvas.rounded(triangle(1.04), 0.09, WHITE)
    canvas.rounded(triangle(1.04), 0.06, RED)
    canvas.rounded(triangle(0.72), 0.03, WHITE)


def general_caution(canvas: Canvas) -> None:
    """Danger: an exclamation mark."""
    danger(canvas)
    canvas.polygon([(-0.11, -0.36), (0.11, -0.36), (0.06, 0.22), (-0.06, 0.22)], BLACK)
    canvas.disc(0.09, BLACK, (0.0, 0.38))


def right_of_way(canvas: Canvas) -> None:
    """Right of way at the next crossing: a broad arrow crossed by a thin bar."""
    danger(canvas)
    canvas.polygon(
        [(0.0, -0.52), (0.19, -0.2), (0.09, -0.2), (0.09, 0.47), (-0.09, 0.47), (-0.09, -0.2), (-0.19, -0.2)],
        BLACK,
    )
    canvas.polygon([(-0.34, 0.1), (0.34, 0.1), (0.34, 0.2), (-0.34, 0.2)], BLACK)


def yield_way(canvas: Canvas) -> None:
    """Yield: a white triangle on its tip, with a red border."""
    canvas.rounded(triangle(1.04, down=True), 0.09, WHITE)
    canvas.rounded(triangle(1.04, down=True), 0.06, RED)
    canvas.rounded(triangle(0.64, down=True), 0.03, WHITE)


def stop(canvas: Canvas) -> None:
    """Stop: a red octagon with a white border."""

    def octagon(radius: float) -> list[Point]:
        angles = (math.radians(22.5 + 45 * k) for k in range(8))
        return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]

    canvas.polygon(octagon(1.06), WHITE)
    canvas.polygon(octagon(1.0), RED)
    canvas.text("STOP", 0.64, 1.6, WHITE)


def priority_road(canvas: Canvas) -> None:
    """Priority road: a yellow square on its corner, with a white border and a thin black rim."""
    for radius, color in ((1.06, BLACK), (1.02, WHITE), (0.7, BLACK), (0.67, YELLOW)):
        canvas.polygon([(0, -radius), (radius, 0), (0, radius), (-radius, 0)], color)


def no_vehicles(canvas: Canvas) -> None:
    """No vehicles: the empty disc."""
    prohibition(canvas)


def no_entry(canvas: Canvas) -> None:
    """No entry: a white bar on a red disc."""
    canvas.disc(1.0, WHITE)
    canvas.disc(0.97, RED)
    canvas.polygon([(-0.74, -0.17), (0.74, -0.17), (0.74, 0.17), (-0.74, 0.17)], WHITE)


def end_of_limits(canvas: Canvas) -> None:
    """End of all limits: five thin black strokes across a white disc."""
    canvas.disc(1.0, GREY)
    canvas.disc(0.95, WHITE)
    for k in range(-2, 3):
        offset = k * 0.13
        reach = 0.66 - 0.03 * abs(k)
        canvas.draw.line(
            [
                pixel((-reach + offset / 1.4, reach + offset / 1.4)),
                pixel((reach + offset / 1.4, -reach + offset / 1.4)),
            ],
            fill=BLACK,
            width=round(0.055 * FULL * 0.4),
        )


def mandatory(*arrows: Sequence[Point]) -> Callable[[Canvas], None]:
    """Return the drawing of white arrows on a blue disc."""

    def draw(canvas: Canvas) -> None:
        canvas.disc(1.0, WHITE)
        canvas.disc(0.96, BLUE)
        for points in arrows:
            canvas.arrow(points, 0.22, 0.36, WHITE)

    return draw


def mirrored(*arrows: Sequence[Point]) -> Callable[[Canvas], None]:
    """Return the same as `mandatory`, left and right exchanged."""
    return mandatory(*[[(-x, y) for x, y in points] for points in arrows])


def roundabout(canvas: Canvas) -> None:
    """Roundabout: three arrows that run anticlockwise round the centre."""
    canvas.disc(1.0, WHITE)
    canvas.disc(0.96, BLUE)
    for third in range(3):
        start = 120 * third + 100
        arc = [math.radians(start - step) for step in range(0, 62, 4)]
        points = [(0.52 * math.cos(a), 0.52 * math.sin(a)) for a in arc]
        end = math.radians(start - 95)
        canvas.arrow([*points, (0.58 * math.cos(end), 0.58 * math.sin(end))], 0.2, 0.3, WHITE)


TURN_RIGHT = [(-0.3, 0.62), (-0.3, -0.08), (0.66, -0.08)]
BEND_RIGHT = [(-0.18, 0.66), (-0.18, 0.1), (0.62, 0.1)]
STRAIGHT = [(-0.18, 0.66), (-0.18, -0.72)]

SIGNS: dict[tuple[int, str], Callable[[Canvas], None]] = {
    (0, "speed_limit_20"): speed_limit("20"),
    (1, "speed_limit_30"): speed_limit("30"),
    (2, "speed_limit_50"): speed_limit("50"),
    (3, "speed_limit_60"): speed_limit("60"),
    (4, "speed_limit_70"): speed_limit("70"),
    (5, "speed_limit_80"): speed_limit("80"),
    (7, "speed_limit_100"): speed_limit("100"),
    (8, "speed_limit_120"): speed_limit("120"),
    (11, "right_of_way"): right_of_way,
    (12, "priority_road"): priority_road,
    (13, "yield"): yield_way,
    (14, "stop"): stop,
    (15, "no_vehicles"): no_vehicles,
    (17, "no_entry"): no_entry,
    (18, "general_caution"): general_caution,
    (32, "end_of_limits"): end_of_limits,
    (33, "turn_right_ahead"): mandatory(TURN_RIGHT),
    (34, "turn_left_ahead"): mirrored(TURN_RIGHT),
    (35, "ahead_only"): mandatory([(0.0, 0.72), (0.0, -0.76)]),
    (36, "straight_or_right"): mandatory(STRAIGHT, BEND_RIGHT),
    (37, "straight_or_left"): mirrored(STRAIGHT, BEND_RIGHT),
    (38, "keep_right"): mandatory([(-0.46, -0.46), (0.54, 0.54)]),
    (39, "keep_left"): mirrored([(-0.46, -0.46), (0.54, 0.54)]),
    (40, "roundabout"): roundabout,
}


def background(source: random.Random) -> Image.Image:
    """Return a blurred picture of a pale sky over trees and a road."""
    image = Image.new("RGB", (24, 24))
    for y in range(24):
        for x in range(24):
            base = (150, 162, 174) if y < 11 else (74, 84, 66) if y < 19 else (96, 94, 92)
            light = source.uniform(0.75, 1.1)
            red, green, blue = (min(255, round(c * light)) for c in base)
            image.putpixel((x, y), (red, green, blue))
    return image.resize((FULL, FULL), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(FULL / 30))


def picture(draw: Callable[[Canvas], None], seed: int) -> Image.Image:
    """Return a sign as a camera would see it: on its post, softened, in flat light."""
    canvas = Canvas(background(random.Random(seed)))
    canvas.polygon([(-0.06, 0.3), (0.06, 0.3), (0.06, 1.4), (-0.06, 1.4)], GREY)
    draw(canvas)
    soft = canvas.image.filter(ImageFilter.GaussianBlur(FULL / 130)).resize(
        (SIZE, SIZE), Image.Resampling.BOX
    )
    return soft.point([round(14 + value * 0.86) for value in range(256)] * 3)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for (index, name), sign in SIGNS.items():
        picture(sign, index).save(folder / f"{index}_{name}.png", optimize=True)
