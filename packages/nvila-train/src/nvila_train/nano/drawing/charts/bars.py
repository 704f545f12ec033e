"""Bar charts, standing and lying."""

from nvila_train.nano.drawing.canvas import Canvas, Colour, shade
from nvila_train.nano.drawing.charts.series import Series, labels, lookups, values
from nvila_train.nano.drawing.question_text import ask
from nvila_train.nano.drawing.scene import Question
from nvila_train.nano.drawing.words import COLOURS

INK: Colour = (25, 25, 25)
GREY: Colour = (175, 175, 175)
PAINTS = tuple(name for name in COLOURS if name != "white")


def _series(canvas: Canvas, count: int, longest: int, ticks: int | None) -> Series:
    rng = canvas.rng
    numbers, step = values(rng, count, ticks=ticks)
    many = rng.random() < 0.5
    colours = rng.sample(PAINTS, count) if many else [rng.choice(PAINTS)] * count
    return Series(labels=labels(rng, count, longest), values=numbers, colours=tuple(colours), step=step)


def _questions(canvas: Canvas, series: Series) -> list[Question]:
    rng, count = canvas.rng, len(series.labels)
    found = lookups(rng, series, "bar")
    found.append(ask(rng, count, "How many bars are there?", "Count the bars."))
    pick = rng.randrange(count)
    if len(set(series.colours)) == 1:
        found.append(ask(rng, series.colours[0], "What colour are the bars?", "Which colour do the bars have?"))
    else:
        label, colour = series.labels[pick], series.colours[pick]
        found.append(ask(rng, colour, "What colour is the bar of {label}?", "Which colour is {label}?", label=label))
        label, colour = rng.choice(list(zip(series.labels, series.colours, strict=True)))
        found.append(ask(rng, label, "Which label is {colour}?", "Whose bar is {colour}?", colour=colour))
    return found


def standing_bars(canvas: Canvas) -> tuple[list[str], list[Question]]:
    """Bars from left to right, labels below; values above the bars or ticks on an axis."""
    rng, unit = canvas.rng, canvas.unit
    em = 2 * round(rng.uniform(20, 24) * unit / 2)
    by_axis = rng.random() < 0.25
    pad = 5 * unit
    ticks = max(2, min(rng.randint(3, 5), int((canvas.height - 2 * pad - 1.6 * em) / (0.95 * em)))) if by_axis else None
    left = pad + (canvas.measure("100", em) if by_axis else 0.0)
    wide = canvas.width - pad - left
    most = max(2, min(5, int(wide / (42 * canvas.unit_x))))
    count = rng.randint(2, min(most, ticks or most))
    slot = wide / count
    series = _series(canvas, count, max(1, int(slot / (0.6 * em))), ticks)
    floor = canvas.height - pad - 1.15 * em
    top = pad + (0.45 if by_axis else 1.05) * em
    full = (series.step * ticks) if ticks else max(series.values) * rng.uniform(1.0, 1.2)
    if ticks:
        for tick in range(ticks + 1):
            y = floor - (floor - top) * tick / ticks
            canvas.pen.line((left, y, canvas.width - pad, y), fill=GREY, width=max(1, round(unit)))
            canvas.write(str(series.step * tick), (left - 4 * unit, y + canvas.capital(em) / 2), em, INK, "right")
    paints = {name: shade(rng, name) for name in PAINTS}
    small = min(canvas.fit(label, em, slot - 3 * unit) for label in series.labels)
    breadth = slot * rng.uniform(0.5, 0.8)
    for index, (label, value, colour) in enumerate(zip(series.labels, series.values, series.colours, strict=True)):
        centre = left + (index + 0.5) * slot
        height = max((floor - top) * value / full, 2 * unit)
        box = (centre - breadth / 2, floor - height, centre + breadth / 2, floor)
        canvas.pen.rectangle(box, fill=paints[colour])
        canvas.mark("bar", colour, box)
        canvas.write(label, (centre, floor + 1.0 * em), small, INK, "centre")
        if not ticks:
            canvas.write(str(value), (centre, floor - height - 0.2 * em), em, INK, "centre")
    canvas.pen.line((left, floor, canvas.width - pad, floor), fill=INK, width=max(1, round(1.5 * unit)))
    return ["bar chart", *series.lines], _questions(canvas, series)


def lying_bars(canvas: Canvas) -> tuple[list[str], list[Question]]:
    """Bars from top to bottom, labels at the left, values at the ends of the bars."""
    rng, unit = canvas.rng, canvas.unit
    em = 2 * round(rng.uniform(20, 24) * unit / 2)
    pad = 5 * unit
    most = max(2, min(5, int((canvas.height - 2 * pad) / (1.25 * em))))
    count = rng.randint(2, most)
    slot = (canvas.height - 2 * pad) / count
    series = _series(canvas, count, max(3, int(0.36 * canvas.width / (0.6 * em))), None)
    left = pad + max(canvas.measure(label, em) for label in series.labels) + 0.3 * em
    longest = canvas.width - pad - left - canvas.measure("88", em) - 0.4 * em
    full = max(series.values) * rng.uniform(1.0, 1.15)
    paints = {name: shade(rng, name) for name in PAINTS}
    breadth = min(slot * rng.uniform(0.5, 0.8), 1.6 * em)
    for index, (label, value, colour) in enumerate(zip(series.labels, series.values, series.colours, strict=True)):
        middle = pad + (index + 0.5) * slot
        baseline = middle + canvas.capital(em) / 2
        end = left + max(longest * value / full, 2 * unit)
        box = (left, middle - breadth / 2, end, middle + breadth / 2)
        canvas.pen.rectangle(box, fill=paints[colour])
        canvas.mark("bar", colour, box)
        canvas.write(label, (left - 0.3 * em, baseline), em, INK, "right")
        canvas.write(str(value), (end + 0.25 * em, baseline), em, INK)
    canvas.pen.line((left, pad, left, canvas.height - pad), fill=INK, width=max(1, round(1.5 * unit)))
    return ["bar chart", *series.lines], _questions(canvas, series)
