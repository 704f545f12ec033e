"""Typesetting: lines of cells on paper, at a size that stays legible where the model looks."""

from dataclasses import dataclass
from random import Random

from nvila_train.nano.drawing.canvas import Canvas, Colour, picture_size
from nvila_train.nano.drawing.fonts import Split

PAPERS: tuple[Colour, ...] = (
    (255, 255, 255),
    (250, 247, 235),
    (240, 244, 250),
    (238, 246, 236),
    (252, 238, 238),
    (232, 232, 232),
    (250, 240, 205),
)
INKS: tuple[Colour, ...] = ((15, 15, 15), (45, 45, 50), (20, 30, 100), (110, 20, 25), (15, 75, 40), (70, 40, 20))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Text whose ``align`` edge stands at the fraction ``at`` of the line."""

    text: str
    at: float = 0.0
    align: str = "left"


@dataclass(frozen=True, kw_only=True)
class Line:
    """Cells side by side; ``rule`` draws a thin line above."""

    cells: tuple[Cell, ...]
    rule: bool = False

    @property
    def text(self) -> str:
        """The line as it would be typed."""
        return " ".join(cell.text for cell in self.cells)


class Page:
    """A sheet of paper, and how much text fits on it.

    ``columns`` characters of average width fit on a line and ``rows`` lines on the page at the em size chosen for it,
    which is 20 to 27 pixels where the model looks.
    """

    def __init__(self, rng: Random, split: Split, *, slimmest: float = 0.25) -> None:
        self.rng = rng
        paper, ink = rng.choice(PAPERS), rng.choice(INKS)
        if rng.random() < 0.12:
            paper, ink = rng.choice(INKS), rng.choice(PAPERS)
        self.canvas = Canvas(rng, split, picture_size(rng, slimmest=slimmest), paper)
        self.ink = ink
        narrow = self.canvas.seen[0] < 192
        self.seen_em = rng.uniform(20, 23) if narrow else rng.uniform(21, 27)
        if narrow:  # no room to letter-space
            self.canvas.tracking = 0.0
        self.margin = rng.uniform(3, 9) * self.canvas.unit
        self.em = self.seen_em * self.canvas.unit
        self.inner = self.canvas.width - 2 * self.margin, self.canvas.height - 2 * self.margin
        self.columns = self.inner[0] / (0.57 * self.em)
        self.rows = int(self.inner[1] / (1.1 * self.em))

    def typeset(self, lines: list[Line], *, boxed: bool = False) -> None:
        """Print the lines from the top, shrunk until each fits; ``boxed`` draws a frame."""
        rng, canvas = self.rng, self.canvas
        wide, high = self.inner
        em = int(min(self.em, high / (1.08 * len(lines))))
        em = max(8, int(em * min([1.0, *(self._squeeze(line, em) for line in lines)])))
        em -= em % 2 if em > 20 else 0  # fewer sizes to rasterise
        pitch = min(em * rng.uniform(1.1, 1.5), high / len(lines))
        top = self.margin + (high - pitch * len(lines)) * rng.choice((0, 0, 0.5, 1)) * rng.random()
        stroke = max(1, round(canvas.unit * rng.choice((1, 1, 2))))
        for index, line in enumerate(lines):
            baseline = top + (index + 0.5) * pitch + canvas.capital(em) / 2
            if line.rule:
                y = top + index * pitch
                canvas.pen.line((self.margin, y, self.margin + wide, y), fill=self.ink, width=stroke)
            for cell in line.cells:
                canvas.write(cell.text, (self.margin + cell.at * wide, baseline), em, self.ink, cell.align)
        if boxed:
            edge = self.margin * 0.4
            canvas.pen.rectangle(
                (edge, edge, canvas.width - 1 - edge, canvas.height - 1 - edge), outline=self.ink, width=stroke
            )

    def _squeeze(self, line: Line, em: int) -> float:
        """The factor by which the em must change for the line's cells neither to touch nor to leave the page."""
        wide = self.inner[0]
        left_part = {"left": 0.0, "centre": 0.5, "right": 1.0}
        reach = 0.0
        at, factor = 0.0, 1.0
        for cell in line.cells:
            width = self.canvas.measure(cell.text, em)
            need = reach + width * left_part[cell.align]
            if need:
                factor = min(factor, (cell.at - at) * wide / need)
            reach, at = width * (1 - left_part[cell.align]) + 0.5 * em, cell.at
        room, reach = (1 - at) * wide, reach - 0.5 * em
        return min(factor, room / reach) if reach > 1e-6 else factor
