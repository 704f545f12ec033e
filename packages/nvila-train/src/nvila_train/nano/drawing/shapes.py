"""Coloured shapes on a plain ground: count, colour, kind, place, size, and comparisons."""

from collections import Counter
from dataclasses import dataclass
from random import Random

from nvila_train.nano.drawing.canvas import Canvas, picture_size, shade
from nvila_train.nano.drawing.fonts import Split
from nvila_train.nano.drawing.question_text import ask, keep
from nvila_train.nano.drawing.scene import Question, Scene
from nvila_train.nano.drawing.words import COLOURS, SHAPES

RADII = {"small": 0.24, "medium": 0.34, "large": 0.47}
CLEAR = 0.05
"""How far, in picture widths, a centre keeps from the border between two named places."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One placed shape; ``x`` and ``y`` are fractions of the picture."""

    kind: str
    colour: str
    size: str
    x: float
    y: float

    @property
    def place(self) -> str:
        """One of nine places, such as ``top left``, ``right`` or ``centre``."""
        across = ("left", "", "right")[min(int(self.x * 3), 2)]
        down = ("top", "", "bottom")[min(int(self.y * 3), 2)]
        return f"{down} {across}".strip() or "centre"

    @property
    def clearly_placed(self) -> bool:
        return all(abs(at - border) > CLEAR for at in (self.x, self.y) for border in (1 / 3, 2 / 3))


def draw_shapes(rng: Random, split: Split) -> Scene:
    """One to six shapes, never touching, each at least 28 pixels wide at the seen size."""
    dark = rng.random() < 0.2
    names = [name for name in COLOURS if name != ("black" if dark else "white")]
    base = rng.randint(25, 70) if dark else rng.randint(205, 255)
    tint = 12 if dark else 18
    ground = tuple(min(max(base + rng.randint(-tint, tint), 0), 255) for _ in range(3))
    canvas = Canvas(rng, split, picture_size(rng), (ground[0], ground[1], ground[2]))
    columns, rows = canvas.seen[0] // 64, canvas.seen[1] // 64
    pad_x, pad_y = (rng.uniform(0.01, 0.07) * side for side in (canvas.width, canvas.height))
    cell_x, cell_y = (canvas.width - 2 * pad_x) / columns, (canvas.height - 2 * pad_y) / rows
    side = min(cell_x, cell_y)
    palette, kinds = rng.sample(names, rng.randint(2, 5)), rng.sample(SHAPES, rng.randint(2, 5))
    cells = sorted(rng.sample(range(columns * rows), rng.randint(1, 6)))
    pieces: list[Piece] = []
    for cell in cells:
        row, column = divmod(cell, columns)
        size = rng.choice(tuple(RADII))
        radius = RADII[size] * side * rng.uniform(0.95, 1.05)
        slack_x, slack_y = max(cell_x / 2 - radius, 0), max(cell_y / 2 - radius, 0)
        x = pad_x + (column + 0.5) * cell_x + rng.uniform(-slack_x, slack_x)
        y = pad_y + (row + 0.5) * cell_y + rng.uniform(-slack_y, slack_y)
        kind, colour = rng.choice(kinds), rng.choice(palette)
        canvas.shape(kind, colour, (x, y), radius, shade(rng, colour))
        pieces.append(Piece(kind=kind, colour=colour, size=size, x=x / canvas.width, y=y / canvas.height))
    image = canvas.finish(tilt=0)
    text = ", ".join(f"{piece.size} {piece.colour} {piece.kind} {piece.place}" for piece in pieces)
    return Scene(
        kind="shapes",
        image=image,
        questions=keep(rng, _questions(rng, pieces), 6),
        text=text,
        objects=tuple(canvas.objects),
    )


def _questions(rng: Random, pieces: list[Piece]) -> list[Question]:
    return [
        *_counts(rng, pieces),
        *_looks(rng, pieces),
        *_places(rng, pieces),
        *_sizes(rng, pieces),
        *_presence(rng, pieces),
    ]


def _counts(rng: Random, pieces: list[Piece]) -> list[Question]:
    found = [ask(rng, len(pieces), "How many shapes are there?", "Count the shapes.", "How many shapes do you see?")]
    if len(pieces) > 1:
        what, tally = rng.choice(
            (
                ("{} shapes", Counter(piece.colour for piece in pieces)),
                ("{}s", Counter(piece.kind for piece in pieces)),
            )
        )
        count = rng.choice(sorted(set(tally.values())))
        name = rng.choice(sorted(word for word, times in tally.items() if times == count))
        plural = what.format(name).replace("crosss", "crosses")
        found.append(ask(rng, count, "How many {what} are there?", "Count the {what}.", what=plural))
    return found


def _looks(rng: Random, pieces: list[Piece]) -> list[Question]:
    found: list[Question] = []
    for piece in rng.sample(pieces, len(pieces)):
        if sum(other.kind == piece.kind for other in pieces) == 1:
            found.append(
                ask(
                    rng,
                    piece.colour,
                    "What colour is the {kind}?",
                    "Which colour does the {kind} have?",
                    kind=piece.kind,
                )
            )
            break
    for piece in rng.sample(pieces, len(pieces)):
        if sum(other.colour == piece.colour for other in pieces) == 1:
            found.append(
                ask(
                    rng,
                    piece.kind,
                    "What shape is {colour}?",
                    "Which shape is the {colour} one?",
                    colour=piece.colour,
                )
            )
            break
    return found


def _named(pieces: list[Piece]) -> list[tuple[str, Piece]]:
    """Every piece that a short name singles out, with that name."""
    return [
        (f"{piece.colour} {piece.kind}", piece)
        for piece in pieces
        if sum((other.kind, other.colour) == (piece.kind, piece.colour) for other in pieces) == 1
    ]


def _places(rng: Random, pieces: list[Piece]) -> list[Question]:
    found: list[Question] = []
    named = _named(pieces)
    clear = [(name, piece) for name, piece in named if piece.clearly_placed]
    if clear:
        name, piece = rng.choice(clear)
        found.append(ask(rng, piece.place, "Where is the {name}?", "Where do you see the {name}?", name=name))
    pairs = [(a, b) for a in named for b in named if a is not b]
    rng.shuffle(pairs)
    for (name, piece), (other_name, other) in pairs:
        if abs(piece.x - other.x) > 0.2:
            side = "left" if piece.x < other.x else "right"
            found.append(ask(rng, side, "Is the {a} left or right of the {b}?", a=name, b=other_name))
            break
        if abs(piece.y - other.y) > 0.2:
            side = "above" if piece.y < other.y else "below"
            found.append(ask(rng, side, "Is the {a} above or below the {b}?", a=name, b=other_name))
            break
    if len(pieces) > 1:
        found.extend(_extremes(rng, pieces))
    return found


def _extremes(rng: Random, pieces: list[Piece]) -> list[Question]:
    """The colour of the shape nearest to one border, when no other comes close."""
    for side, sign, axis in rng.sample(
        (("leftmost", 1, "x"), ("rightmost", -1, "x"), ("topmost", 1, "y"), ("lowest", -1, "y")), 4
    ):
        ordered = sorted(pieces, key=lambda piece: sign * getattr(piece, axis))
        if abs(getattr(ordered[0], axis) - getattr(ordered[1], axis)) > 0.12:
            return [
                ask(rng, ordered[0].colour, "What colour is the {side} shape?", side=side),
            ]
    return []


def _sizes(rng: Random, pieces: list[Piece]) -> list[Question]:
    order = list(RADII)
    for extreme, pick in rng.sample((("largest", max), ("smallest", min)), 2):
        rank = pick(order.index(piece.size) for piece in pieces)
        extremes = [piece for piece in pieces if order.index(piece.size) == rank]
        if len(pieces) > 1 and len(extremes) == 1:
            return [
                ask(rng, extremes[0].kind, "Which shape is the {e}?", "What is the {e} shape?", e=extreme)
                if rng.random() < 0.5
                else ask(rng, extremes[0].colour, "What colour is the {e} shape?", e=extreme)
            ]
    return []


def _presence(rng: Random, pieces: list[Piece]) -> list[Question]:
    """A yes-or-no question, each answer as likely; the absent thing differs in one trait only."""
    there = {(piece.colour, piece.kind) for piece in pieces}
    colour, kind = rng.choice(sorted(there))
    answer = "yes" if rng.random() < 0.5 else "no"
    while answer == "no" and (colour, kind) in there:
        if rng.random() < 0.5:
            colour = rng.choice(tuple(COLOURS))
        else:
            kind = rng.choice(SHAPES)
    article = "an" if colour[0] in "aeiou" else "a"
    return [ask(rng, answer, "Is there {article} {what}?", article=article, what=f"{colour} {kind}")]
