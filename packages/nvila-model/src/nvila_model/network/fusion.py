"""Text and media become one sequence of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nvila_model.inputs.labels import IGNORE
from nvila_model.inputs.model_inputs import ModelInputs


@dataclass(frozen=True, kw_only=True)
class Fused:
    """A padded batch of embeddings.

    Attributes:
        embeds: ``[b, t, d]``; zeros where padded.
        lengths: positions that count, one number a row.
        side: where the padding is.
        labels: int64 ``[b, t]``, ``IGNORE`` on media and padding; None unless the inputs had labels.
    """

    embeds: Tensor
    lengths: tuple[int, ...]
    side: Literal["left", "right"]
    labels: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """True on positions that count, bool ``[b, t]``."""
        length = self.embeds.shape[1]
        places = torch.arange(length, device=self.embeds.device)
        lengths = torch.tensor(self.lengths, device=self.embeds.device)[:, None]
        return places >= length - lengths if self.side == "left" else places < lengths


def fuse(
    inputs: ModelInputs,
    text: Sequence[Tensor],
    images: Sequence[Sequence[Tensor]],
    videos: Sequence[Tensor],
    *,
    side: Literal["left", "right"],
    max_length: int | None = None,
) -> Fused:
    """Put the media's tokens where their media tokens stand, and pad the rows.

    Args:
        text: the embeddings of ``inputs.input_ids``, ``[t, d]`` a row.
        images: for each image its tokens ``[t, d]``, one tensor for each of its media tokens.
        videos: for each video its tokens ``[t, d]``.
        side: where to pad; left to generate, right to train.
        max_length: rows are cut to this length (training only; ``None`` never cuts).
    """
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    for row, embeds in enumerate(text):
        pieces: list[Tensor] = []
        marks: list[Tensor] = []
        done = 0
        for position, media in placed(inputs, row, images, videos):
            pieces += [embeds[done:position], media.to(embeds.dtype)]
            if inputs.labels is not None:
                ignored = inputs.labels[row].new_full((len(media),), IGNORE)
                marks += [inputs.labels[row][done:position], ignored]
            done = position + 1
        rows.append(torch.cat((*pieces, embeds[done:]))[:max_length])
        if inputs.labels is not None:
            labels.append(torch.cat((*marks, inputs.labels[row][done:]))[:max_length])
    return Fused(
        embeds=padded(rows, 0.0, side),
        lengths=tuple(len(row) for row in rows),
        side=side,
        labels=padded(labels, IGNORE, side).to(rows[0].device) if labels else None,
    )


def placed(
    inputs: ModelInputs, row: int, images: Sequence[Sequence[Tensor]], videos: Sequence[Tensor]
) -> list[tuple[int, Tensor]]:
    """Each media token of a row with what replaces it, in order."""
    found: list[tuple[int, Tensor]] = []
    for slot in inputs.media_plan:
        if slot.row == row:
            tokens = images[slot.index] if slot.kind == "image" else [videos[slot.index]]
            found += zip(slot.positions, tokens, strict=True)
    return sorted(found, key=lambda item: item[0])


def padded(rows: Sequence[Tensor], value: float, side: Literal["left", "right"]) -> Tensor:
    """Rows of different lengths as one batch. Shapes: ``[t_i, ...]`` each -> ``[b, max(t_i), ...]``."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
