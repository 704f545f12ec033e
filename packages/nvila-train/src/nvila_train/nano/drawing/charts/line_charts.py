"""Line charts of one series, the values printed at the points."""

from nvila_train.nano.drawing.canvas import Canvas, shade
from nvila_train.nano.drawing.charts.bars import GREY, INK, PAINTS
from nvila_train.nano.drawing.charts.series import Series, labels, lookups, values
from nvila_train.nano.drawing.question_text import ask
from nvila_train.nano.drawing.scene import Question


def line_chart(canvas: Canvas) -> tuple[list[str], list[Question]]:
    """Points from left to right joined by a line, labels below, values above or below the points."""
    rng, unit = canvas.rng, canvas.unit
    em = 2 * round(rng.uniform(20, 24) * unit / 2)
    pad = 5 * unit
    wide = canvas.width - 2 * pad
    count = rng.randint(3, max(3, min(6, int(wide / (44 * canvas.unit_x)))))
    slot = wide / count
    numbers, _ = values(rng, count, ticks=None)
    colour = rng.choice(PAINTS)
    series = Series(
        labels=labels(rng, count, max(1, int(slot / (0.6 * em)))),
        values=numbers,
        colours=(colour,) * count,
        step=0,
    )
    floor = canvas.height - pad - 1.15 * em
    top, bottom = pad + 1.25 * em, floor - 1.25 * em
    low, high = min(numbers), max(numbers)
    points = [
        (pad + (index + 0.5) * slot, bottom - (bottom - top) * (value - low) / (high - low))
        for index, value in enumerate(numbers)
    ]
    rgb, stroke = shade(rng, colour), max(2, round(rng.uniform(2.5, 4) * unit))
    if rng.random() < 0.5:
        for k in range(4):
            y = floor - (floor - pad) * k / 4
            canvas.pen.line((pad, y, canvas.width - pad, y), fill=GREY, width=max(1, round(unit)))
    canvas.pen.line((pad, floor, canvas.width - pad, floor), fill=INK, width=max(1, round(1.5 * unit)))
    canvas.pen.line(points, fill=rgb, width=stroke, joint="curve")
    canvas.mark("plot", colour, (pad, pad, canvas.width - pad, floor))
    radius = 4.5 * unit
    small = min(canvas.fit(label, em, slot - 3 * unit) for label in series.labels)
    for index, ((x, y), label) in enumerate(zip(points, series.labels, strict=True)):
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.pen.ellipse(box, fill=rgb)
        canvas.mark("point", colour, box)
        neighbours = [points[k][1] for k in (index - 1, index + 1) if 0 <= k < count]
        above = y <= sum(neighbours) / len(neighbours)
        baseline = y - 0.35 * em if above else y + 0.35 * em + canvas.capital(em)
        printed = str(numbers[index])
        half = canvas.measure(printed, em) / 2 + unit
        halo = (x - half, baseline - canvas.capital(em) - unit, x + half, baseline + unit)
        canvas.pen.rectangle(halo, fill=canvas.ground)
        canvas.write(printed, (x, baseline), em, INK, "centre")
        canvas.write(label, (x, floor + em), small, INK, "centre")
    found = lookups(rng, series, "point")
    found.append(ask(rng, count, "How many points are there?", "Count the points."))
    found.append(ask(rng, colour, "What colour is the line?", "Which colour does the line have?"))
    start = rng.randrange(count - 1)
    found.append(
        ask(
            rng,
            "rise" if numbers[start + 1] > numbers[start] else "fall",
            "Does the line rise or fall from {a} to {b}?",
            a=series.labels[start],
            b=series.labels[start + 1],
        )
    )
    return ["line chart", *series.lines], found
