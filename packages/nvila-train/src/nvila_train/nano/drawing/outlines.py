"""The outlines of the shapes that drawings use."""

import math
from typing import Final

import PIL.ImageDraw

from nvila_train.nano.drawing.scene import Box

_ARM: Final = 0.34


def _polygon(corners: int, turn: float, inner: float = 1.0) -> tuple[tuple[float, float], ...]:
    """Unit outline of a regular polygon; every second corner at radius ``inner``."""
    angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
    radii = [1.0 if k % 2 == 0 else inner for k in range(corners)]
    return tuple((radius * math.cos(a), radius * math.sin(a)) for radius, a in zip(radii, angles, strict=True))


def _cross() -> tuple[tuple[float, float], ...]:
    """A plus sign: one arm's three corners, turned four times."""
    x_y, corners = [(-_ARM, -_ARM), (-_ARM, -1.0), (_ARM, -1.0)], []
    for _ in range(4):
        corners += x_y
        x_y = [(-y, x) for x, y in x_y]
    return tuple(corners)


OUTLINES: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "square": ((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": ((0, -1), (0.98, 0.82), (-0.98, 0.82)),
    "diamond": ((0, -1), (0.8, 0), (0, 1), (-0.8, 0)),
    "star": _polygon(10, -math.pi / 2, 0.42),
    "cross": _cross(),
}
"""Corners of each shape within the unit circle, y downwards."""


def paint(
    pen: PIL.ImageDraw.ImageDraw,
    kind: str,
    centre: tuple[float, float],
    radius: float,
    rgb: tuple[int, int, int],
) -> Box:
    """Fill a shape inside the circle of ``radius`` about ``centre``; returns its box."""
    x, y = centre
    if kind == "circle":
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=rgb)
        return box
    points = [(x + px * radius, y + py * radius) for px, py in OUTLINES[kind]]
    pen.polygon(points, fill=rgb)
    across, down = [p[0] for p in points], [p[1] for p in points]
    return min(across), min(down), max(across), max(down)
