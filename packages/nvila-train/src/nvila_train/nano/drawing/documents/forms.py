"""Forms: labelled fields about a person."""

from random import Random

from nvila_train.nano.drawing.documents.paper import Cell, Line, Page
from nvila_train.nano.drawing.question_text import ask
from nvila_train.nano.drawing.scene import Question
from nvila_train.nano.drawing.words import CITIES, JOBS, MONTHS, NAMES

TITLES = ("FORM", "GUEST", "VISITOR", "MEMBER", "TICKET", "ORDER", "PASS")

LABELS: dict[str, tuple[str, ...]] = {
    "name": ("What is the name?", "What is the person called?", "Whose form is this?"),
    "city": ("Which city is given?", "What is the city?", "In which city does the person live?"),
    "job": ("What is the job?", "Which job is given?"),
    "phone": ("What is the phone number?", "Which phone number is given?"),
    "date": ("What is the date?", "Which date is given?"),
    "age": ("What is the age?", "How old is the person?"),
    "room": ("Which room is given?", "What is the room number?"),
    "code": ("What is the code?", "Which code is given?"),
}


def _value(rng: Random, field: str) -> str:
    match field:
        case "name":
            return rng.choice(NAMES)
        case "city":
            return rng.choice(CITIES)
        case "job":
            return rng.choice(JOBS)
        case "phone":
            return f"555-{rng.randint(0, 9999):04d}"
        case "date":
            return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
        case "age":
            return str(rng.randint(18, 89))
        case "room":
            return str(rng.randint(1, 499))
        case _:
            return "".join(rng.choices("ABCDEFGHKLMNPRTUVXYZ", k=2)) + str(rng.randint(10, 99))


def form(page: Page) -> tuple[list[Line], list[Question]]:
    """The lines of a form and a question for most of its fields."""
    rng = page.rng
    stacked = page.columns < 12
    titled = rng.random() < 0.5
    room = (page.rows - titled) // (2 if stacked else 1)
    count = min(max(room, 2), rng.randint(3, 5))
    fields = rng.sample(tuple(LABELS), count)
    if page.columns < 16 and not stacked:
        fields = [field for field in fields if field != "phone"] or ["name"]
    values = {field: _value(rng, field) for field in fields}
    shouted, colon = rng.random() < 0.12, rng.choice((":", ":", ""))
    apart = rng.random() < 0.35
    lines: list[Line] = []
    title = rng.choice(TITLES)
    if titled:
        lines.append(Line(cells=(Cell(text=title, at=0.5, align="centre"),)))
    ruled = rng.random() < 0.3
    for field, value in values.items():
        name = (field.upper() if shouted else field.capitalize()) + colon
        printed = value.upper() if shouted else value
        values[field] = printed
        if stacked:
            cells = [(Cell(text=name),), (Cell(text=printed, at=1.0, align="right"),)]
        elif apart:
            cells = [(Cell(text=name), Cell(text=printed, at=1.0, align="right"))]
        else:
            cells = [(Cell(text=f"{name} {printed}"),)]
        lines.extend(Line(cells=cell, rule=ruled and k == 0) for k, cell in enumerate(cells))
    asked = rng.sample(tuple(values), min(len(values), 4))
    questions = [ask(rng, values[field], *LABELS[field]) for field in asked]
    if titled:
        questions.append(ask(rng, title, "What is the title?", "What does the first line say?"))
    return lines, questions
