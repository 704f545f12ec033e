"""Draw the pictures of the README from a real answer: the way of an image, and its tiles.

    uv run python docs/pictures/draw.py [PICTURE] [QUESTION]

Writes ``way.svg`` and ``plan.png`` beside this file. Everything in them is measured, not drawn by hand: the plan, the
tiles' pixels, the number of features and tokens at every stage, the answer. Features and tokens are coloured by their
first three principal components, so that places which look alike to the model have like colours.
"""

import sys
from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path

import torch
from nvila_model import NVILA, Image
from nvila_tiling import TilePlan, draw_plan, merge_scales, split_grid
from PIL import Image as Pillow
from PIL import ImageDraw
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WIDTH, HEIGHT, MARGIN = 720, 800, 24
INK, SOFT, LINE = "#1b1f24", "#57606a", "#c4ccd4"
SCALES = ("#e6194b", "#0072e5", "#2ca02c")


def data_uri(picture: Pillow.Image) -> str:
    """A picture inside of the SVG, so that it is one file."""
    file = BytesIO()
    picture.quantize(96).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def coloured(cells: Tensor) -> Pillow.Image:
    """A pixel for each cell of ``[h, w, c]``, by the first three principal components."""
    flat = cells.flatten(0, 1).float()
    flat = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    shown = flat @ directions[:3].T
    low, high = shown.quantile(0.02, 0), shown.quantile(0.98, 0)
    shown = ((shown - low) / (high - low)).clamp(0, 1) * 215 + 30
    return Pillow.fromarray(shown.byte().unflatten(0, cells.shape[:2]).numpy())


def tile_grid(tiles: Tensor, plan: TilePlan, level: int, gap: int) -> Pillow.Image:
    """The tiles of one scale as the vision tower sees them, with gaps between them."""
    grid, side = plan.levels[level], plan.tile
    first = sum(each.count for each in plan.levels[:level])
    step = side + gap
    size = (grid.cols * step - gap, grid.rows * step - gap)
    canvas = Pillow.new("RGBA", size, (255, 255, 255, 0))
    frame = ImageDraw.Draw(canvas)
    for number in range(grid.count):
        pixels = ((tiles[first + number] * 0.5 + 0.5).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        left, top = number % grid.cols * step, number // grid.cols * step
        canvas.paste(Pillow.fromarray(pixels), (left, top))
        frame.rectangle((left, top, left + side - 1, top + side - 1), outline=SCALES[level % len(SCALES)], width=2)
    return canvas


class Sheet:
    """An SVG that grows from top to bottom."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, *, size: int = 17, colour: str = INK, style: str = "") -> None:
        self.parts.append(f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" {style}>{escape(words)}</text>')

    def picture(self, image: Pillow.Image, x: float, y: float, width: float, height: float) -> None:
        self.parts.append(
            f'<image x="{x}" y="{y}" width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none" '
            f'style="image-rendering:pixelated" href="{data_uri(image)}"/>'
        )

    def arrow(self, x: float, y: float, dx: float, dy: float) -> None:
        self.parts.append(
            f'<path d="M{x} {y} l{dx} {dy}" stroke="{SOFT}" stroke-width="2" fill="none" marker-end="url(#head)"/>'
        )

    def box(self, x: float, y: float, width: float, height: float, words: str, under: str) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="9" fill="#eef2f6" stroke="{LINE}"/>'
        )
        style = 'text-anchor="middle" font-weight="600"'
        self.text(x + width / 2, y + height / 2 - 4, words, style=style)
        self.text(x + width / 2, y + height / 2 + 18, under, size=14, colour=SOFT, style='text-anchor="middle"')

    def write(self, path: Path, title: str) -> None:
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif"><title>{escape(title)}</title>'
            f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{SOFT}"/></marker></defs>'
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="#ffffff"/>' + "\n".join(self.parts) + "</svg>\n"
        )


def draw_way(model: NVILA, path: Path, question: str) -> str:
    """The way of one picture through the model, with what comes out at each stage; gives the answer."""
    picture = Image(path).load()
    with torch.inference_mode():
        tiled = model.tiler(picture)
        plan = tiled.plan
        features = model.features(tiled.tiles)
        (merged,) = merge_scales(features, [plan])
        blocks = split_grid(merged, plan.output_grid).flatten(1, 2)
        side = plan.tile // model.vision.patch_size
        tokens = model.project(blocks, (side, side))
    answer = model.generate([{"role": "user", "content": [Image(path), question]}]).text
    rows, cols = model.compressor.out_grid((side, side))
    grid = plan.output_grid
    laid = tokens.unflatten(0, (grid.rows, grid.cols)).unflatten(2, (rows, cols))
    laid = laid.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)

    sheet = Sheet()
    height = 206.0
    sheet.picture(picture, MARGIN, 58, height * picture.width / picture.height, height)
    sheet.text(MARGIN, 40, "picture", style='font-weight="600"')
    sheet.text(MARGIN, 286, f"{picture.width} x {picture.height}", size=14, colour=SOFT)
    x = MARGIN + height * picture.width / picture.height + 16
    sheet.arrow(x, 160, 34, 0)
    x += 52
    sheet.text(x, 40, "Dynamic-S2: tiles at every scale", style='font-weight="600"')
    scale = height / (max(each.rows for each in plan.levels) * (plan.tile + 8))
    for level, each in enumerate(plan.levels):
        image = tile_grid(tiled.tiles, plan, level, gap=8)
        sheet.picture(image, x, 58 + (height - image.height * scale) / 2, image.width * scale, image.height * scale)
        sheet.text(x, 286, f"{each.rows} x {each.cols}", size=14, colour=SCALES[level % len(SCALES)])
        x += max(image.width * scale, 56) + 22
    sheet.text(x, 286, f"{plan.tiles} tiles of {plan.tile} px", size=14, colour=SOFT)

    top = 318
    sheet.arrow(WIDTH / 2, 296, 0, 18)
    sheet.box(MARGIN, top, 300, 64, "vision tower", f"{plan.tiles} x {features.shape[1]} features")
    sheet.arrow(MARGIN + 306, top + 32, 34, 0)
    sheet.box(MARGIN + 346, top, 326, 64, "merge scales", f"one map, {len(plan.grids)} x {features.shape[2]} channels")
    sheet.arrow(MARGIN + 509, top + 70, 0, 18)

    top = 418
    map_height = 190.0
    map_width = map_height * merged.shape[1] / merged.shape[0]
    left = WIDTH - MARGIN - map_width
    sheet.picture(coloured(merged), left, top, map_width, map_height)
    sheet.text(left, top + map_height + 22, f"{merged.shape[0]} x {merged.shape[1]} features", size=14, colour=SOFT)
    sheet.arrow(left - 8, top + 95, -34, 0)
    sheet.box(left - 250, top + 58, 200, 74, "compress, project", f"{side} x {side} -> {rows} x {cols} a tile")
    sheet.arrow(left - 258, top + 95, MARGIN + 38 + map_width - left + 258, 0)
    sheet.picture(coloured(laid), MARGIN + 30, top, map_width, map_height)
    sheet.text(MARGIN + 30, top + map_height + 22, f"{model.image_tokens(plan)} tokens", size=14, colour=SOFT)

    top = 664
    sheet.arrow(MARGIN + 30 + map_width / 2, top - 16, 0, 18)
    sheet.box(MARGIN, top + 8, 440, 64, "Qwen2", f"{model.image_tokens(plan)} visual tokens, then: {question}")
    sheet.arrow(MARGIN + 448, top + 40, 34, 0)
    sheet.text(MARGIN + 500, top + 50, answer, size=30, style='font-weight="700"')
    made = "Measured on nano, which ships with the package; colours are principal components."
    sheet.text(MARGIN, HEIGHT - 20, made, size=13, colour=SOFT)
    sheet.write(HERE / "way.svg", f"The way of {path.name} through NVILA to the answer {answer}")
    draw_plan(picture, plan).quantize(128).save(HERE / "plan.png", optimize=True)
    return answer


if __name__ == "__main__":
    given = sys.argv[1:]
    path, question = Path(given[0]) if given else ROOT / "examples" / "receipt.png", "What is the total?"
    print(draw_way(NVILA.from_pretrained("nano"), path, given[1] if len(given) > 1 else question))
