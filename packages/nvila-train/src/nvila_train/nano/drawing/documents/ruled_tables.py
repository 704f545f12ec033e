"""Tables of two or three columns under a header."""

from collections.abc import Callable
from random import Random

from nvila_train.nano.drawing.documents.paper import Cell, Line, Page
from nvila_train.nano.drawing.documents.receipts import money
from nvila_train.nano.drawing.question_text import ask
from nvila_train.nano.drawing.scene import Question
from nvila_train.nano.drawing.words import CITIES, DAYS, ITEMS, JOBS, NAMES

KEYS: dict[str, list[str]] = {"Item": ITEMS, "Name": NAMES, "City": CITIES, "Day": DAYS}

VALUES: dict[str, Callable[[Random], str]] = {
    "Price": lambda rng: money(rng.randint(10, 199) * 5),
    "Qty": lambda rng: str(rng.randint(1, 30)),
    "Age": lambda rng: str(rng.randint(8, 89)),
    "Job": lambda rng: rng.choice(JOBS),
    "Home": lambda rng: rng.choice(CITIES),
    "Temp": lambda rng: str(rng.randint(-9, 38)),
    "Rain": lambda rng: str(rng.randint(0, 90)),
    "Hours": lambda rng: f"{rng.randint(6, 11)}-{rng.randint(14, 22)}",
}

COLUMNS: dict[str, tuple[str, ...]] = {
    "Item": ("Price", "Qty"),
    "Name": ("Age", "Job", "Home"),
    "City": ("Temp", "Rain"),
    "Day": ("Hours", "Temp"),
}

FORWARD: dict[str, tuple[str, ...]] = {
    "Price": ("What is the price of {key}?", "How much is {key}?"),
    "Qty": ("What is the qty of {key}?", "Which qty is given for {key}?"),
    "Age": ("How old is {key}?", "What is the age of {key}?"),
    "Job": ("What is the job of {key}?", "Which job does {key} have?"),
    "Home": ("Where is the home of {key}?", "In which city does {key} live?"),
    "Temp": ("What is the temp for {key}?", "Which temp is given for {key}?"),
    "Rain": ("What is the rain for {key}?", "How much rain is given for {key}?"),
    "Hours": ("When is it open on {key}?", "What are the hours on {key}?"),
}


def table(page: Page) -> tuple[list[Line], list[Question]]:
    """The lines of a table and questions that look up a cell by its row, or a row by its cell."""
    rng = page.rng
    key = rng.choice(tuple(KEYS))
    wide = page.columns >= 19 and rng.random() < 0.6
    wordy = ("Job", "Home") if page.columns < 13 else ()
    heads = rng.sample([head for head in COLUMNS[key] if head not in wordy], 2 if wide else 1)
    longest = max(3, int(page.columns * (0.42 if wide else 0.5)))
    short = [word for word in KEYS[key] if len(word) <= longest] or KEYS[key][:8]
    rows = rng.sample(short, min(max(page.rows - 1, 2), rng.randint(2, 4), len(short)))
    body = {word: [VALUES[head](rng) for head in heads] for word in rows}
    ends = (0.62, 1.0) if wide else (1.0,)
    shouted = rng.random() < 0.1
    ruled = rng.random() < 0.6

    def printed(word: str) -> str:
        return word.upper() if shouted else word

    def line(first: str, rest: list[str], rule: bool) -> Line:
        cells = [Cell(text=word, at=at, align="right") for word, at in zip(rest, ends, strict=True)]
        return Line(cells=(Cell(text=first), *cells), rule=rule)

    lines = [line(printed(key), [printed(head) for head in heads], False)]
    lines += [
        line(printed(word), [printed(value) for value in values], ruled or index == 0)
        for index, (word, values) in enumerate(body.items())
    ]
    questions: list[Question] = []
    for word in rng.sample(rows, min(3, len(rows))):
        column = rng.randrange(len(heads))
        questions.append(ask(rng, printed(body[word][column]), *FORWARD[heads[column]], key=word))
    column = rng.randrange(len(heads))
    values = [cells[column] for cells in body.values()]
    word = rng.choice(rows)
    if values.count(body[word][column]) == 1:
        questions.append(
            ask(
                rng,
                printed(word),
                "Which {key} has the {head} {value}?",
                key=key.lower(),
                head=heads[column].lower(),
                value=printed(body[word][column]),
            )
        )
    questions.append(ask(rng, printed(heads[-1]), "What is the last column called?", "What heads the last column?"))
    return lines, questions
