"""Signs: one to three large words on a coloured board."""

from random import Random

from nvila_train.nano.drawing.canvas import Canvas, Colour, picture_size, shade
from nvila_train.nano.drawing.fonts import Split
from nvila_train.nano.drawing.question_text import ask, keep
from nvila_train.nano.drawing.scene import Scene
from nvila_train.nano.drawing.words import CITIES, COLOURS, SHOP_FIRST, SHOP_SECOND, SIGN_WORDS

LIGHT = ("yellow", "white", "pink")


def _wording(rng: Random) -> list[str]:
    """The lines of a sign."""
    draw = rng.random()
    if draw < 0.5:
        words = rng.sample(SIGN_WORDS, rng.choice((1, 1, 2, 2, 3)))
    elif draw < 0.7:
        words = [rng.choice(CITIES), f"{rng.randint(1, 99)} km"]
    elif draw < 0.85:
        words = [rng.choice(("Room", "Gate", "Bus", "Exit", "Track")), str(rng.randint(1, 99))]
    else:
        words = [rng.choice(SHOP_FIRST), rng.choice(SHOP_SECOND)]
    if draw < 0.7 and rng.random() < 0.4:
        words = [word.title() if word.isupper() else word.upper() for word in words]
    return words


def draw_sign(rng: Random, split: Split) -> Scene:
    """A board that fills the picture or stands on a ground of another colour."""
    words = _wording(rng)
    name = rng.choice(tuple(COLOURS))
    board = shade(rng, name)
    ink: Colour = (20, 20, 20) if name in LIGHT or (name == "orange" and rng.random() < 0.5) else (250, 250, 250)
    framed = rng.random() < 0.5
    ground = rng.choice(((150, 190, 225), (180, 180, 180), (120, 150, 110), (225, 215, 195))) if framed else board
    canvas = Canvas(rng, split, picture_size(rng), ground)
    across, down = canvas.width, canvas.height
    inset = rng.uniform(3, 8) * canvas.unit if framed else 0.0
    if framed:
        box = (inset, inset, across - inset, down - inset)
        canvas.pen.rounded_rectangle(box, radius=rng.choice((0, 6, 12)) * canvas.unit, fill=board)
    if rng.random() < 0.35:
        edge = inset + 3 * canvas.unit
        canvas.pen.rectangle(
            (edge, edge, across - edge, down - edge), outline=ink, width=max(1, round(1.5 * canvas.unit))
        )
    wide, high = across - 2 * inset - 14 * canvas.unit, down - 2 * inset - 12 * canvas.unit
    joined = " ".join(words)
    lines = [joined] if canvas.measure(joined, round(26 * canvas.unit)) <= wide else words
    em = int(min(high / len(lines) / 1.05, rng.uniform(32, 60) * canvas.unit))
    em = min(canvas.fit(line, em, wide) for line in lines)
    pitch = em * rng.uniform(1.05, 1.25) if em * 1.25 * len(lines) <= high else high / len(lines)
    top = down / 2 - pitch * len(lines) / 2
    for index, line in enumerate(lines):
        baseline = top + (index + 0.5) * pitch + canvas.capital(em) / 2
        canvas.write(line, (across / 2, baseline), em, ink, "centre")
    image = canvas.finish()
    questions = [
        ask(rng, joined, "What does the sign say?", "What is written on the sign?", "Read the sign."),
        ask(rng, name, "What colour is the sign?", "Which colour does the sign have?"),
    ]
    if len(words) > 1:
        questions += [
            ask(rng, words[0].split()[0], "What is the first word?", "Which word comes first?"),
            ask(rng, words[-1].split()[-1], "What is the last word?", "Which word comes last?"),
        ]
    return Scene(
        kind="documents",
        image=image,
        questions=keep(rng, questions, 3),
        text="\n".join([*lines, f"{name} sign"]),
        glyphs=tuple(canvas.glyphs),
    )
