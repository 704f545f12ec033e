"""Receipts: a shop, items with prices, and their total."""

from nvila_train.nano.drawing.documents.paper import Cell, Line, Page
from nvila_train.nano.drawing.question_text import ask
from nvila_train.nano.drawing.scene import Question
from nvila_train.nano.drawing.words import ITEMS, MONTHS, SHOP_FIRST, SHOP_SECOND


def money(cents: int) -> str:
    """Cents as printed: two decimals, no currency."""
    return f"{cents // 100}.{cents % 100:02d}"


def receipt(page: Page) -> tuple[list[Line], list[Question]]:
    """The lines of a receipt and questions about it; the total is the sum of the prices."""
    rng = page.rng
    stacked = page.columns < 11
    room = (page.rows - 2) // (2 if stacked else 1)
    count = min(max(room, 1), rng.choice((2, 2, 3, 3, 4)))
    shouted = rng.random() < 0.15
    items = rng.sample([item for item in ITEMS if len(item) <= page.columns - 6 or stacked], count)
    prices = [rng.choice((rng.randint(10, 199) * 5, rng.randint(50, 999), rng.randint(100, 249) * 10)) for _ in items]
    if rng.random() < 0.7:
        prices = [price % 900 + 50 for price in prices]
    total = money(sum(prices))
    first = rng.choice([word for word in SHOP_FIRST if len(word) < page.columns - 4])
    shop = f"{first} {rng.choice([word for word in SHOP_SECOND if len(word) + len(first) < page.columns] or ['Bar'])}"
    spare = page.rows - 2 - count * (2 if stacked else 1)
    dated = spare > 0 and rng.random() < 0.4
    date = f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"

    def printed(word: str) -> str:
        return word.upper() if shouted else word

    align = rng.choice(("left", "centre"))
    title = Cell(text=printed(shop), at=0.5 if align == "centre" else 0.0, align=align)
    lines = [Line(cells=(title,))]
    if dated:
        lines.append(Line(cells=(Cell(text=printed(date)),)))
    for item, price in zip(items, prices, strict=True):
        left, right = Cell(text=printed(item)), Cell(text=money(price), at=1.0, align="right")
        lines.extend([Line(cells=(left,)), Line(cells=(right,))] if stacked else [Line(cells=(left, right))])
    label = printed(rng.choice(("Total", "Total", "Total:", "Sum")))
    left, right = Cell(text=label), Cell(text=total, at=1.0, align="right")
    ruled = rng.random() < 0.5
    if stacked and len(label + total) > 9:
        lines += [Line(cells=(left,), rule=ruled), Line(cells=(right,))]
    else:
        lines.append(Line(cells=(left, right), rule=ruled))
    asked = rng.randrange(count)
    questions = [
        ask(rng, total, "What is the total?", "How much is the total?", "What does it cost in all?"),
        *(
            ask(
                rng,
                money(prices[k]),
                "How much is the {item}?",
                "What is the price of the {item}?",
                "What does the {item} cost?",
                item=items[k].lower(),
            )
            for k in rng.sample(range(count), min(count, 2))
        ),
        ask(rng, printed(shop), "What is the shop called?", "What is the name of the shop?"),
    ]
    if prices.count(prices[asked]) == 1 and money(prices[asked]) != total:
        questions.append(
            ask(
                rng,
                printed(items[asked]),
                "Which item costs {price}?",
                "What costs {price}?",
                price=money(prices[asked]),
            )
        )
    if dated:
        questions.append(ask(rng, printed(date), "What is the date?", "Which date is printed?"))
    return lines, questions
