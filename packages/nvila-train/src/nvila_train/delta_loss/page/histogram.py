"""A histogram as inline SVG: how scores are spread, what stays of each bar, and where the cut is."""

import numpy as np

WIDTH, HEIGHT, FOOT = 720, 180, 24
"""Of the whole picture and of the line of numbers under it, in units of its view box."""
BARS = 60
TAIL = 0.005
"""Share of the scores at either end that is counted in the outermost bar, so that a few do not squeeze the rest."""


def histogram(values: np.ndarray, kept: np.ndarray, *, cut: float | None = None) -> str:
    """Bars of all values with the kept part of each in another colour, a line at zero and one at the cut.

    Args:
        values: float64 ``[n]``, at least one.
        kept: bool ``[n]``.
        cut: the lowest kept value; None draws no such line.
    """
    edges = bins(values)
    low, high = float(edges[0]), float(edges[-1])
    inside = np.clip(values, low, high)
    everything = np.histogram(inside, edges)[0]
    staying = np.histogram(inside[kept], edges)[0]
    tallest = max(1, int(everything.max()))
    step = WIDTH / (len(edges) - 1)

    def across(value: float) -> float:
        return (min(max(value, low), high) - low) / (high - low) * WIDTH

    def bar(place: int, count: int, kind: str) -> str:
        tall = count / tallest * HEIGHT
        left, top = place * step + 0.5, HEIGHT - tall
        return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{step - 1:.1f}" height="{tall:.1f}"/>'

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT + FOOT}" role="img" aria-label="histogram of scores">']
    for place, (total, stays) in enumerate(zip(everything, staying, strict=True)):
        said = f"{edges[place]:.3g} to {edges[place + 1]:.3g}: {stays} of {total} stay"
        parts.append(f"<g><title>{said}</title>{bar(place, int(total), 'all')}{bar(place, int(stays), 'kept')}</g>")
    if low < 0 < high:
        parts.append(f'<line class="zero" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="0" y2="{HEIGHT}"/>')
    if cut is not None:
        x = across(cut)
        anchor = "end" if x > WIDTH / 2 else "start"
        parts.append(f'<line class="cut" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}"/>')
        parts.append(
            f'<text x="{x + (-4 if anchor == "end" else 4):.1f}" y="12" text-anchor="{anchor}">cut {cut:.3g}</text>'
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = low + share * (high - low)
        parts.append(f'<text x="{share * WIDTH}" y="{HEIGHT + 16}" text-anchor="{anchor}">{value:.3g}</text>')
    return "".join([*parts, "</svg>"])


def bins(values: np.ndarray) -> np.ndarray:
    """Edges of equal bars over all values but the tails."""
    low, high = np.quantile(values, (TAIL, 1 - TAIL))
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BARS + 1)
