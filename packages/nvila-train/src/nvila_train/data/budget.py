"""Samples in rows of a fixed budget of tokens.

Each row is then packed (``nvila_train.packing``): its samples stand behind each other, none sees another, and no
position is padding.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from nvila_model import ModelInputs
from nvila_model.inputs import MediaSlot


def bins(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Which samples share a row: the longest first, each into the first row that still has room.

    First-fit decreasing needs at most 11/9 of the fewest possible rows, and one.

    Args:
        lengths: tokens of each sample, media counted.
        budget: tokens of a row at most.

    Returns: for each row the places of its samples in ``lengths``, in growing order.
    Raises: ValueError if a sample alone is longer than the budget.
    Source: D. S. Johnson, "Near-optimal bin packing algorithms", 1973.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if lengths[place] > budget:
            raise ValueError(too_long(lengths[place], budget))
        row = next((row for row, left in enumerate(room) if left >= lengths[place]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(budget)
        rows[row].append(place)
        room[row] -= lengths[place]
    return [sorted(row) for row in rows]


def too_long(length: int, budget: int) -> str:
    """What is wrong with a sample that fits in no row."""
    return f"{length} tokens > the budget of {budget}: raise the budget, or lower max_tiles or frames"


def join(parts: Sequence[ModelInputs]) -> ModelInputs:
    """Batches put together, as if all their conversations had been processed at once."""
    images = [image for part in parts for image in part.images]
    videos = [video for part in parts for video in part.videos]
    plan: list[MediaSlot] = []
    done = {"image": 0, "video": 0}
    rows = 0
    for part in parts:
        plan += [replace(slot, index=slot.index + done[slot.kind], row=slot.row + rows) for slot in part.media_plan]
        done["image"] += len(part.images)
        done["video"] += len(part.videos)
        rows += len(part.input_ids)
    labels: list[torch.Tensor] = [row for part in parts if part.labels is not None for row in part.labels]
    return ModelInputs(
        input_ids=tuple(ids for part in parts for ids in part.input_ids),
        images=tuple(images),
        videos=tuple(videos),
        media_plan=tuple(plan),
        prompt_text=tuple(text for part in parts for text in part.prompt_text),
        labels=tuple(labels) if labels else None,
    )
