"""Faces to draw with, and a cache of their rasterised characters.

Eight families serve for training, three others (one of them a serif) only for tests, so that a test measures reading
and not the memory of a typeface. Most files come from font packages and are found without importing those packages,
whose modules need the retired ``pkg_resources``; ``pymupdf_fonts`` keeps each of its faces in a module instead.
"""

import io
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face of a font family, by its package and file, or by a module that holds the file's bytes."""

    package: str
    file: str

    def open(self) -> io.BytesIO:
        """The font file; FileNotFoundError names a missing package."""
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(
                f"font package {self.package} is not installed: pip install {self.package.replace('_', '-')}"
            )
        if "." not in self.file:
            return io.BytesIO(import_module(f"{self.package}.{self.file}").fontbuffer)
        folder = Path(next(iter(spec.submodule_search_locations)))
        return io.BytesIO((folder / "files" / self.file).read_bytes())


def _faces(package: str, *files: str) -> tuple[Face, ...]:
    return tuple(Face(package=package, file=file) for file in files)


FACES: Final[dict[Split, tuple[Face, ...]]] = {
    "train": (
        *_faces("font_roboto", "Roboto-Regular.ttf", "Roboto-Medium.ttf", "Roboto-Bold.ttf"),
        *_faces("font_source_sans_pro", "SourceSansPro-Semibold.ttf", "SourceSansPro-Bold.ttf"),
        *_faces("font_source_serif_pro", "SourceSerifPro-Regular.otf", "SourceSerifPro-Semibold.otf"),
        *_faces("font_manrope", "Manrope-Medium.ttf", "Manrope-Bold.ttf"),
        *_faces("font_fredoka_one", "FredokaOne-Regular.ttf"),
        *_faces("pymupdf_fonts", "FiraGO_Regular", "FiraGO_Bold", "NotoSans_Regular", "NotoSans_Bold"),
        *_faces("pymupdf_fonts", "Ubuntu_Regular", "Ubuntu_Bold"),
    ),
    "test": (
        *_faces("font_lato", "Lato-Regular.ttf", "Lato-Bold.ttf"),
        *_faces("font_hanken_grotesk", "HankenGrotesk-Medium.otf", "HankenGrotesk-Bold.otf"),
        *_faces("font_caladea", "Caladea-Regular.ttf", "Caladea-Bold.ttf"),
    ),
}
"""The faces of each split; no family is in both."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Letter:
    """A rasterised character: coverage mask, its offset from pen and baseline, and the advance in pixels."""

    mask: PIL.Image.Image | None
    dx: int
    dy: int
    advance: float


@cache
def _font(face: Face, size: int) -> PIL.ImageFont.FreeTypeFont:
    return PIL.ImageFont.truetype(face.open(), size, layout_engine=PIL.ImageFont.Layout.BASIC)


@lru_cache(maxsize=30_000)
def letter(face: Face, size: int, char: str) -> Letter:
    """Rasterise one character of a face whose em square is ``size`` pixels."""
    font = _font(face, size)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(char, anchor="ls"))
    if right <= left or bottom <= top:
        return Letter(mask=None, dx=0, dy=0, advance=font.getlength(char))
    mask = PIL.Image.new("L", (right - left, bottom - top))
    PIL.ImageDraw.Draw(mask).text((-left, -top), char, fill=255, font=font, anchor="ls")
    return Letter(mask=mask, dx=left, dy=top, advance=font.getlength(char))


@cache
def capital_height(face: Face, size: int) -> int:
    """Height of the capital H in pixels."""
    return -letter(face, size, "H").dy


def text_width(face: Face, size: int, text: str, tracking: float = 0.0) -> float:
    """Width of a line in pixels, ``tracking`` pixels added after every character."""
    return sum(letter(face, size, char).advance + tracking for char in text)
