"""A contact sheet: some samples with their first picture, what is asked and what is answered."""

import textwrap
from collections.abc import Sequence
from typing import Any, Final

import PIL.Image
from nvila_model import Image, Video
from PIL import ImageDraw, ImageFont

from nvila_train.data.conversations import Sample

PICTURE: Final = 240
"""Side of the square that a picture is fitted into, in pixels."""
TEXT: Final = 96
"""Height of the text under it."""
GAP: Final = 12
COLUMNS: Final = 4
LETTERS: Final = 40
"""Letters a line, and five lines a sample."""
LINES: Final = 5


def contact_sheet(samples: Sequence[Sample]) -> PIL.Image.Image:
    """Samples in rows of four.

    Raises: ValueError if there are none.
    """
    if not samples:
        raise ValueError("no sound sample to draw: mend the faults first")
    rows = -(-len(samples) // COLUMNS)
    columns = min(COLUMNS, len(samples))
    size = (columns * (PICTURE + GAP) + GAP, rows * (PICTURE + TEXT + GAP) + GAP)
    sheet = PIL.Image.new("RGB", size, "white")
    for place, sample in enumerate(samples):
        row, column = divmod(place, COLUMNS)
        sheet.paste(cell(sample), (GAP + column * (PICTURE + GAP), GAP + row * (PICTURE + TEXT + GAP)))
    return sheet


def cell(sample: Sample) -> PIL.Image.Image:
    """One sample: its first picture or frame, its row, its first question and answer."""
    drawn = PIL.Image.new("RGB", (PICTURE, PICTURE + TEXT), "white")
    picture = first_picture(sample)
    pen = ImageDraw.Draw(drawn)
    if picture is None:
        pen.rectangle((0, 0, PICTURE - 1, PICTURE - 1), outline="lightgrey")
        pen.text((PICTURE // 2, PICTURE // 2), "text only", fill="grey", anchor="mm", font=font())
    else:
        fitted = PIL.Image.new("RGB", (PICTURE, PICTURE), "whitesmoke")
        picture = picture.convert("RGB")
        scale = PICTURE / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        fitted.paste(picture, ((PICTURE - picture.width) // 2, (PICTURE - picture.height) // 2))
        drawn.paste(fitted, (0, 0))
    pen.multiline_text((0, PICTURE + 4), said(sample), fill="black", spacing=3, font=font())
    return drawn


def font() -> Any:
    return ImageFont.load_default(12)


def first_picture(sample: Sample) -> PIL.Image.Image | None:
    """The first image, or the first frame of the first clip; None for text alone."""
    parts = [part for message in sample.messages for part in message["content"]]
    for part in parts:
        try:
            if isinstance(part, Image):
                return part.load()
            if isinstance(part, Video):
                return next(iter(part.sample(num_frames=1))).image
        except Exception:  # named by the check already
            return None
    return None


def said(sample: Sample) -> str:
    """Row, first question and first answer, cut to what fits."""
    lines = [f"row {sample.row}"]
    for role, mark in (("user", "Q"), ("assistant", "A")):
        message = next(message for message in sample.messages if message["role"] == role)
        text = " ".join(part for part in message["content"] if isinstance(part, str)).strip() or "(nothing)"
        lines += textwrap.wrap(textwrap.shorten(f"{mark} {text}", 2 * LETTERS, placeholder=" ..."), LETTERS)[:2]
    return "\n".join(lines[:LINES])
