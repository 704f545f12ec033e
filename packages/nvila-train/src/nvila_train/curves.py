"""Curves as SVG, drawn from numbers alone: no script, no style sheet, nothing to fetch."""

from collections.abc import Sequence
from html import escape
from math import floor, isfinite, log10

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 28, 32
"""Margins in pixels, for the numbers at the axes and the title."""

POINTS = 600
"""Points of a curve at most; more are averaged in groups, as wide as a pixel or so."""


def curve(title: str, steps: Sequence[float], values: Sequence[float]) -> str:
    """One curve over steps, as an ``<svg>`` element.

    Values that are not finite leave a gap. Raises: ValueError if there is nothing to draw.
    """
    points = [(step, value) for step, value in zip(steps, values, strict=True) if isfinite(value)]
    if not points:
        raise ValueError(f"curve {title!r} has no finite value: leave it out")
    points = thinned(points)
    across, up = ticks(0, max(step for step, _ in points)), ticks(*spread([value for _, value in points]))
    path = " ".join(f"{x(step, across):.1f},{y(value, up):.1f}" for step, value in points)
    lines = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="11" fill="#444">',
        f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for value in up:
        at = f"{y(value, up):.1f}"
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" stroke="#e4e4e4"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{value:g}</text>')
    for step in across:
        lines.append(f'<text x="{x(step, across):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{step:g}</text>')
    lines.append(f'<polyline points="{path}" fill="none" stroke="#1f6feb" stroke-width="1.5"/></svg>')
    return "\n".join(lines)


def x(step: float, across: Sequence[float]) -> float:
    return LEFT + (step - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)


def y(value: float, up: Sequence[float]) -> float:
    return HEIGHT - BOTTOM - (value - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` points, each the mean of its neighbours."""
    size = -(-len(points) // POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The range to show; a curve that starts far above its end is cut at three times the median above the least."""
    ordered = sorted(values)
    least, median = ordered[0], ordered[len(ordered) // 2]
    return least, min(ordered[-1], max(median + 3 * (median - least), ordered[int(0.98 * (len(ordered) - 1))]))


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to eight of them, from below ``low`` to above ``high``.

    >>> ticks(0, 97)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    if high <= low:
        high = low + max(abs(low), 1.0)
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = floor(low / step), -floor(-high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]
