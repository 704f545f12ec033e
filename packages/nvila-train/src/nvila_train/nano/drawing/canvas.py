"""A sheet to draw on that remembers where every character and shape stands.

Sizes are thought of as the model will see them: a picture is resized to the tile grid nearest to its aspect ratio
(`seen_size`), so ``unit`` native pixels make one seen pixel, and text is legible or not at the seen size alone.
"""

import math
from functools import cache
from random import Random
from typing import Final

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

from nvila_train.nano.drawing.fonts import FACES, Face, Split, capital_height, letter, text_width
from nvila_train.nano.drawing.outlines import paint
from nvila_train.nano.drawing.scene import Box, Glyph, Object
from nvila_train.nano.drawing.words import COLOURS

Colour = tuple[int, int, int]

TILE: Final = 64
GRIDS: Final = tuple((c, n // c) for n in range(9, 13) for c in range(1, n + 1) if n % c == 0)
MAX_PIXELS: Final = 110_000
NOISE_SIDE: Final = 640


def seen_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the largest scale of Dynamic-S2 (64-pixel tiles, 9 to 12 of them) for a picture's size."""
    columns, rows = min(GRIDS, key=lambda grid: abs(width / height - grid[0] / grid[1]))
    return columns * TILE, rows * TILE


def picture_size(rng: Random, *, slimmest: float = 0.25) -> tuple[int, int]:
    """A native size: most aspect ratios lie near a tile grid's, the rest anywhere from 1:4 to 4:1."""
    widest = 1 / slimmest
    if rng.random() < 0.75:
        aspect = rng.choice((1, 1, 1, 4 / 3, 4 / 3, 3 / 4, 3 / 4, 0.4, 2.5, 3, 1 / 3)) * rng.uniform(0.9, 1.1)
    else:
        aspect = math.exp(rng.uniform(math.log(slimmest), math.log(widest)))
    aspect = min(max(aspect, slimmest), widest)
    area = min((192 * rng.uniform(0.95, 1.65)) ** 2, MAX_PIXELS)
    width = round(math.sqrt(area * aspect))
    return width, max(round(width / aspect), math.ceil(width * slimmest))


@cache
def _noise(sigma: int) -> np.ndarray:
    return np.random.default_rng(sigma).normal(0, sigma, (NOISE_SIDE, NOISE_SIDE, 3)).astype(np.int16)


def shade(rng: Random, name: str) -> Colour:
    """The named colour, each channel jittered a little; black and white less, or they would look tinted."""
    spread = 5 if name in ("black", "white") else 14
    red, green, blue = (min(max(v + rng.randint(-spread, spread), 0), 255) for v in COLOURS[name])
    return red, green, blue


class Canvas:
    """A drawing in the making.

    Args:
        rng: source of every choice.
        split: which faces may be used.
        size: native width and height in pixels.
        ground: background colour.
    """

    def __init__(self, rng: Random, split: Split, size: tuple[int, int], ground: Colour) -> None:
        self.rng = rng
        self.width, self.height = size
        self.ground = ground
        self.image = PIL.Image.new("RGB", size, ground)
        self.pen = PIL.ImageDraw.Draw(self.image)
        self.glyphs: list[Glyph] = []
        self.objects: list[Object] = []
        self.face: Face = rng.choice(FACES[split])
        self.tracking = rng.choice((0.0, 0.03, 0.06, 0.1))
        self.seen = seen_size(*size)
        self.unit_x, self.unit_y = self.width / self.seen[0], self.height / self.seen[1]
        self.unit = math.sqrt(self.unit_x * self.unit_y)

    def measure(self, text: str, em: int) -> float:
        """Width of a line of text in native pixels."""
        return text_width(self.face, em, text, self.tracking * em)

    def capital(self, em: int) -> int:
        """Height of a capital in native pixels."""
        return capital_height(self.face, em)

    def fit(self, text: str, em: int, width: float) -> int:
        """The largest em up to ``em`` at which the text is no wider than ``width``, and at least 6."""
        wide = self.measure(text, em)
        return em if wide <= width else max(6, int(em * width / wide))

    def write(self, text: str, at: tuple[float, float], em: int, ink: Colour, align: str = "left") -> Box:
        """Print a line with its baseline at ``at``; returns the box from capital height to baseline."""
        x, baseline = at
        width = self.measure(text, em)
        start = x = x - {"left": 0.0, "centre": width / 2, "right": width}[align]
        baseline = round(baseline)
        top, tracking = baseline - self.capital(em), self.tracking * em
        for char in text:
            drawn = letter(self.face, em, char)
            if drawn.mask is not None:
                left, upper = round(x) + drawn.dx, baseline + drawn.dy
                self.image.paste(ink, (left, upper), drawn.mask)
                right, lower = left + drawn.mask.width, upper + drawn.mask.height
                box = (min(x, left), min(top, upper), max(x + drawn.advance, right), max(baseline, lower))
                self.glyphs.append(Glyph(char=char, box=box))
            x += drawn.advance + tracking
        return start, top, start + width, baseline

    def mark(self, name: str, colour: str, box: Box) -> None:
        """Remember a coloured thing that was just drawn."""
        self.objects.append(Object(name=name, colour=colour, box=box))

    def shape(self, kind: str, colour: str, centre: tuple[float, float], radius: float, rgb: Colour) -> Box:
        """Draw a filled shape inside the circle of ``radius`` about ``centre`` and remember it."""
        box = paint(self.pen, kind, centre, radius, rgb)
        self.mark(kind, colour, box)
        return box

    def finish(self, *, tilt: float = 0.3) -> PIL.Image.Image:
        """The picture with the wear of a real one: tilted up to 1.8 degrees, blurred, shaded, noisy."""
        rng = self.rng
        if rng.random() < tilt:
            self._rotate(rng.uniform(-1.8, 1.8))
        if rng.random() < 0.15:
            self.image = self.image.filter(PIL.ImageFilter.BoxBlur(0.35 * self.unit))
        sigma = rng.choice((0, 2, 4, 6, 9))
        if not sigma:
            return self.image
        x, y = rng.randint(0, NOISE_SIDE - self.width), rng.randint(0, NOISE_SIDE - self.height)
        pixels = _noise(sigma)[y : y + self.height, x : x + self.width] + np.asarray(self.image)
        if rng.random() < 0.3:
            pixels += np.linspace(rng.randint(-14, 0), rng.randint(0, 14), self.width).astype(np.int16)[:, None]
        return PIL.Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))

    def _rotate(self, degrees: float) -> None:
        """Turn the picture counter-clockwise about its centre, and the boxes with it."""
        self.image = self.image.rotate(degrees, PIL.Image.Resampling.BILINEAR, fillcolor=self.ground)
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

        def turn(box: Box) -> Box:
            x, y = (box[0] + box[2] - self.width) / 2, (box[1] + box[3] - self.height) / 2
            dx, dy = x * cos + y * sin - x, y * cos - x * sin - y
            return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy

        self.glyphs = [Glyph(char=glyph.char, box=turn(glyph.box)) for glyph in self.glyphs]
        self.objects = [Object(name=o.name, colour=o.colour, box=turn(o.box)) for o in self.objects]
