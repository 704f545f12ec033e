"""The shape of a product, and the part of it that is timed in its place."""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from nvila_kernels.cpu.kernels.kernel import Codes
from nvila_kernels.pack import BLOCK
from nvila_kernels.quantization import Int4Codes

Phase: TypeAlias = Literal["decode", "prefill"]
PHASES: tuple[Phase, ...] = ("decode", "prefill")
ROWS: dict[Phase, int] = {"decode": 1, "prefill": 128}
"""Rows that each phase is measured with."""
DECODE_ROWS = 16
"""Most rows of a product that counts as decoding."""
COLUMNS: dict[Phase, int] = {"decode": 8192, "prefill": 2048}
"""Outputs that are measured at least; more take proportionally longer."""
WEIGHTS: dict[Phase, int] = {"decode": 48 * 2**20, "prefill": 0}
"""More outputs are, up to so many weights. What a call costs of its own counts little in an output head."""
STEP = 1024
"""They are so many times a whole number: libraries have paths of their own for what is left."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Rows, inputs, outputs; ``group`` inputs share a 4-bit scale, 0 for 8-bit codes."""

    rows: int
    k: int
    n: int
    group: int

    @property
    def bits(self) -> Literal[4, 8]:
        return 4 if self.group else 8

    @property
    def phase(self) -> Phase:
        return "decode" if self.rows <= DECODE_ROWS else "prefill"

    @property
    def measured(self) -> "Shape":
        """The shape whose times stand for this one's."""
        most = max(COLUMNS[self.phase], WEIGHTS[self.phase] // self.k // STEP * STEP)
        return replace(self, rows=ROWS[self.phase], n=min(self.n, most))

    def at(self, phase: Phase) -> "Shape":
        """The same weight with the rows of a phase."""
        return replace(self, rows=ROWS[phase])

    def __str__(self) -> str:
        weight = f"w4 g{self.group}" if self.group else "w8"
        return f"{self.rows}x{self.k}x{self.n} {weight}"


def shape_of_codes(codes: Codes) -> Shape:
    """What one token asks of a weight."""
    n, k = codes.codes.shape
    return Shape(rows=1, k=k, n=n, group=codes.group_size if isinstance(codes, Int4Codes) else 0)


def in_blocks(codes: Codes) -> Codes:
    """The same weight with groups of at most 128, the scale of a longer one or of a whole row repeated."""
    if not isinstance(codes, Int4Codes) or codes.group_size <= BLOCK:
        return codes
    k = codes.in_features
    groups = -(-k // BLOCK)
    repeats = groups if codes.group_size >= k else codes.group_size // BLOCK
    scale, zero = (values.repeat_interleave(repeats, dim=1)[:, :groups] for values in (codes.scale, codes.zero))
    return Int4Codes(codes=codes.codes, scale=scale, zero=zero, group_size=BLOCK)
