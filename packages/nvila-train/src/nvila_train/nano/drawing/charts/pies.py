"""Pie charts with a legend of labels, some with percentages."""

import math
from random import Random

from nvila_train.nano.drawing.canvas import Canvas, shade
from nvila_train.nano.drawing.charts.bars import INK, PAINTS
from nvila_train.nano.drawing.charts.series import Series, labels
from nvila_train.nano.drawing.question_text import ask
from nvila_train.nano.drawing.scene import Question


def _shares(rng: Random, count: int) -> tuple[int, ...]:
    """Percentages that add up to 100, each at least 8, the extremes apart from the next by 6 or more."""
    while True:
        cuts = sorted(rng.randint(1, 99) for _ in range(count - 1))
        shares = tuple(b - a for a, b in zip((0, *cuts), (*cuts, 100), strict=True))
        ordered = sorted(shares)
        if ordered[0] >= 8 and ordered[-1] - ordered[-2] >= 6 and ordered[1] - ordered[0] >= 6:
            return shares


def pie(canvas: Canvas) -> tuple[list[str], list[Question]]:
    """A pie of two to five slices; the legend stands at its right or below."""
    rng, unit = canvas.rng, canvas.unit
    em = 2 * round(rng.uniform(20, 24) * unit / 2)
    pad = 6 * unit
    beside = canvas.width >= 0.95 * canvas.height
    swatch = 0.75 * em
    room = canvas.width - 2 * pad - swatch - 0.4 * em
    wordy = room - (0.5 * min(canvas.width, canvas.height) if beside else 0.0)
    with_shares = wordy > 8.5 * 0.58 * em and rng.random() < 0.7
    longest = max(1, min(5, int(wordy / (0.58 * em)) - (4 if with_shares else 0)))
    rows = canvas.height if beside else 0.52 * canvas.height
    count = rng.randint(2, max(2, min(5, int((rows - 2 * pad) / (1.2 * em)))))
    series = Series(
        labels=labels(rng, count, longest),
        values=_shares(rng, count),
        colours=tuple(rng.sample(PAINTS, count)),
        step=0,
    )
    printed = [
        f"{label} {value}%" if with_shares else label for label, value in zip(series.labels, series.values, strict=True)
    ]
    text_wide = max(canvas.measure(word, em) for word in printed)
    if beside:
        legend_x = canvas.width - pad - text_wide - swatch - 0.4 * em
        across, down = legend_x - 2 * pad, canvas.height - 2 * pad
    else:
        legend_x = pad + rng.random() * max(0.0, room - text_wide)
        across, down = canvas.width - 2 * pad, canvas.height - 3 * pad - count * 1.2 * em
    radius = min(across, down) / 2
    x, y = pad + across / 2, pad + down / 2 if not beside else canvas.height / 2
    whole = (x - radius, y - radius, x + radius, y + radius)
    canvas.mark("pie", "", whole)
    angle = rng.uniform(0, 360)
    pitch = min(1.2 * em, (rows - 2 * pad) / count) if beside else 1.2 * em
    first = (canvas.height - count * pitch) / 2 if beside else canvas.height - pad - count * pitch
    for index, (value, colour) in enumerate(zip(series.values, series.colours, strict=True)):
        rgb = shade(rng, colour)
        sweep = 3.6 * value
        canvas.pen.pieslice(whole, angle, angle + sweep, fill=rgb, outline=canvas.ground, width=max(1, round(unit)))
        middle, half = math.radians(angle + sweep / 2), math.radians(min(sweep, 180) / 2)
        reach = 0.6 * radius
        side = 0.55 * radius * min(0.6, math.sin(half))
        px, py = x + reach * math.cos(middle), y + reach * math.sin(middle)
        canvas.mark("slice", colour, (px - side, py - side, px + side, py + side))
        baseline = first + (index + 0.5) * pitch + canvas.capital(em) / 2
        key = (legend_x, baseline - swatch, legend_x + swatch, baseline)
        canvas.pen.rectangle(key, fill=rgb)
        canvas.mark("square", colour, key)
        canvas.write(printed[index], (legend_x + swatch + 0.4 * em, baseline), em, INK)
        angle += sweep
    return ["pie chart", *series.lines], _questions(rng, series, with_shares)


def _questions(rng: Random, series: Series, with_shares: bool) -> list[Question]:
    rows = list(zip(series.labels, series.values, series.colours, strict=True))
    extreme, row = rng.choice(
        (("largest", max(rows, key=lambda row: row[1])), ("smallest", min(rows, key=lambda row: row[1])))
    )
    found = [
        ask(rng, row[0], "Which label has the {e} slice?", "Whose slice is the {e}?", e=extreme),
        ask(rng, row[2], "What colour is the {e} slice?", "Which colour has the {e} slice?", e=extreme),
        ask(rng, len(rows), "How many slices are there?", "Count the slices."),
    ]
    label, _, colour = rng.choice(rows)
    found.append(ask(rng, colour, "What colour is {label}?", "Which colour is {label}?", label=label))
    label, _, colour = rng.choice(rows)
    found.append(ask(rng, label, "Which label is {colour}?", "What does {colour} stand for?", colour=colour))
    if with_shares:
        label, value, _ = rng.choice(rows)
        found.append(
            ask(rng, f"{value}%", "How many percent are {label}?", "What is the share of {label}?", label=label)
        )
    return found
