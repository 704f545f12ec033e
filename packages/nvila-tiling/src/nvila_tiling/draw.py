"""A picture of a plan: the image with the tiles of each scale outlined over it, and a legend that counts them."""

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .decode import AnyImage, to_pillow
from .errors import GridError
from .grid import Grid, TilePlan

GREY = 127
"""The square around an image that was padded."""

COLOURS = ("#e6194b", "#0072e5", "#2ca02c", "#f08c00", "#9c27b0", "#00a6a6")
"""One a scale, from the smallest; told apart on light and dark pictures."""

LONG_SIDE = 960
SHORT_SIDE = 160
"""An image is drawn with its longer side at 960 pixels; a narrow one is widened to 160, so that its tiles show."""

LEGEND_WIDTH = 560
MARGIN = 16
LINE = 28
STROKE = 3


def draw_plan(image: AnyImage, plan: TilePlan) -> Image.Image:
    """Draw the tiles of every scale over the image, each scale in its colour, the finest numbered, with a legend.

    Args:
        image: the image that the plan was made for, of any kind that a tiler takes; an image with an EXIF rotation is
            drawn upright if the plan has its upright size.
        plan: its plan.

    Returns: a picture of mode RGB, about 1000 pixels on its longer side.
    Raises: GridError if the image is not of the plan's size; ImageError if it cannot be read.
    """
    picture = _stretch(_match(image, plan), plan)
    lines = _legend(plan)
    canvas = Image.new(
        "RGB",
        (max(picture.width, LEGEND_WIDTH) + 2 * MARGIN, picture.height + LINE * len(lines) + 3 * MARGIN),
        "white",
    )
    canvas.paste(picture, (MARGIN, MARGIN))
    draw = ImageDraw.Draw(canvas)
    for level, grid in enumerate(plan.levels):
        _outline(draw, grid, picture.size, level)
    _number(draw, plan, picture.size)
    for row, (colour, text) in enumerate(lines):
        top = picture.height + 2 * MARGIN + LINE * row
        draw.rectangle((MARGIN, top + 5, MARGIN + 18, top + 19), fill=colour)
        draw.text((MARGIN + 30, top), text, fill="black", font=ImageFont.load_default(18))
    return canvas


def _match(image: AnyImage, plan: TilePlan) -> Image.Image:
    """The image as RGB, upright or as stored, whichever has the plan's size."""
    picture = to_pillow(image, exif=True)
    if picture.size != plan.size:
        picture = to_pillow(image, exif=False)
    if picture.size != plan.size:
        raise GridError(
            f"the image has {picture.width} x {picture.height} pixels, the plan is for "
            f"{plan.size[0]} x {plan.size[1]}: draw the image that it was made for"
        )
    return picture


def _stretch(picture: Image.Image, plan: TilePlan) -> Image.Image:
    """The image at drawing size, on its grey square if the plan pads."""
    if plan.pad:
        return ImageOps.pad(picture, (LONG_SIDE, LONG_SIDE), color=(GREY, GREY, GREY))
    ratio = LONG_SIDE / max(picture.size)
    return picture.resize(
        (max(SHORT_SIDE, round(picture.width * ratio)), max(SHORT_SIDE, round(picture.height * ratio)))
    )


def _cell(grid: Grid, row: int, col: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a tile on the canvas."""
    wide, high = size[0] / grid.cols, size[1] / grid.rows
    return MARGIN + col * wide, MARGIN + row * high, MARGIN + (col + 1) * wide, MARGIN + (row + 1) * high


def _outline(draw: ImageDraw.ImageDraw, grid: Grid, size: tuple[int, int], level: int) -> None:
    """Outline every tile of a scale; each scale lies a little further in, so that shared edges stay apart."""
    inset = 1 + level * (STROKE + 1)
    for row in range(grid.rows):
        for col in range(grid.cols):
            left, top, right, bottom = _cell(grid, row, col, size)
            box = (left + inset, top + inset, right - inset, bottom - inset)
            draw.rectangle(box, outline=COLOURS[level % len(COLOURS)], width=STROKE)


def _number(draw: ImageDraw.ImageDraw, plan: TilePlan, size: tuple[int, int]) -> None:
    """Write each tile's number in the plan at the middle of the finest scale's tiles."""
    grid = plan.grids[-1]
    first = sum(below.count for below in plan.grids[:-1])
    font = ImageFont.load_default(20)
    for tile in range(first, first + grid.count):
        _, row, col = plan.place(tile)
        left, top, right, bottom = _cell(grid, row, col, size)
        middle = ((left + right) / 2, (top + bottom) / 2)
        draw.text(middle, str(tile), fill="white", font=font, anchor="mm", stroke_width=3, stroke_fill="black")


def _legend(plan: TilePlan) -> list[tuple[str, str]]:
    """Colour and text of each line: one a scale, and the sum."""
    lines: list[tuple[str, str]] = []
    for level, grid in enumerate(plan.levels):
        name = f"scale {level + 1}" if level < len(plan.grids) else "thumbnail"
        tiles = "1 tile" if grid.count == 1 else f"{grid.count} tiles"
        lines.append((COLOURS[level % len(COLOURS)], f"{name}: {grid.rows} x {grid.cols} (rows x columns) = {tiles}"))
    repeated = f", seen once for {plan.repeat} scales" if plan.repeat > 1 else ""
    padded = " on a grey square" if plan.pad else ""
    total = "1 tile" if plan.tiles == 1 else f"{plan.tiles} tiles"
    width, height = plan.size
    lines.append(("white", f"{width} x {height} pixels{padded}: {total} of {plan.tile} x {plan.tile} pixels{repeated}"))
    return lines
