"""Documents: receipts, forms, tables and signs."""

from random import Random

from nvila_train.nano.drawing.documents.forms import form
from nvila_train.nano.drawing.documents.paper import Page
from nvila_train.nano.drawing.documents.receipts import receipt
from nvila_train.nano.drawing.documents.ruled_tables import table
from nvila_train.nano.drawing.documents.signs import draw_sign
from nvila_train.nano.drawing.fonts import Split
from nvila_train.nano.drawing.question_text import keep
from nvila_train.nano.drawing.scene import Scene

MAKERS = {"receipt": receipt, "form": form, "table": table}


def draw_document(rng: Random, split: Split, variety: str | None = None) -> Scene:
    """A receipt, form, table or sign; ``variety`` asks for one of them."""
    variety = variety or rng.choice(("receipt", "receipt", "form", "form", "table", "table", "sign"))
    if variety == "sign":
        return draw_sign(rng, split)
    page = Page(rng, split)
    lines, questions = MAKERS[variety](page)
    page.typeset(lines, boxed=rng.random() < 0.2)
    image = page.canvas.finish()
    return Scene(
        kind="documents",
        image=image,
        questions=keep(rng, questions),
        text="\n".join(line.text for line in lines),
        glyphs=tuple(page.canvas.glyphs),
    )
