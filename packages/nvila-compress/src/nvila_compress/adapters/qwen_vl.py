"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: grids of any size, packed into one row, with positions in three axes.

Counted: one run of placeholders for each image, or for each pair of frames in Qwen3-VL; what replaces an image in
the prompt is recounted from its ``grid_thw``. Placed: after the tower's merger, which in Qwen2.5-VL works in windows
and puts its tokens in order only at its end; each image is cut out of the row and compressed on its grid. Qwen3-VL's
deepstack, further features for the same places, is thinned alike. Positioned: M-RoPE. A token keeps the time, row
and column that it had; a folded one those of the first corner of its block, so that the text after an image goes on
where it would have. A chooser's places are known only once the features are, so the positions that were made before
are corrected just before the language model reads them.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from nvila_compress.adapters.after_projector import Override, TokenCompression
from nvila_compress.adapters.blocks import Block, applies, corners, out_length
from nvila_compress.adapters.family import Family, Placing
from nvila_compress.contract import Choose, Compressor

Grid = tuple[int, int, int]


class PackedGrids(Placing):
    """Images and videos with a ``grid_thw``.

    Args:
        split_frames: each frame of a video stands in the prompt alone, after its time (Qwen3-VL): a compressor in
            time cannot take tokens from one frame for another.
    """

    reads_video = True

    def __init__(self, *, split_frames: bool = False) -> None:
        self.split_frames = split_frames
        self.reads_video = not split_frames
        self.no_video = "writes the time of each frame between its tokens"

    def tile(self, host: nn.Module, processor: Any) -> tuple[int, int] | None:
        return None

    def count(self, processor: Any, compressor: Compressor, tile: tuple[int, int] | None) -> None:
        processor.replace_image_token = CountGrid(processor, compressor, "image")
        if self.split_frames:
            processor.replace_video_token = CountSplitFrames(processor, compressor)
        else:
            processor.replace_video_token = CountGrid(processor, compressor, "video")
        processor._get_num_multimodal_tokens = CountSizes(processor, compressor)

    def place(self, host: nn.Module, owner: nn.Module, family: Family, compression: TokenCompression,
              tile: tuple[int, int] | None) -> None:  # fmt: skip
        model: Any = owner
        positions = Positions(owner, compression)
        model.get_image_features = Features(owner, compression, positions, "image", self.split_frames)
        model.get_video_features = Features(owner, compression, positions, "video", self.split_frames)
        model.get_vision_position_ids = positions
        if isinstance(compression.compressor, Choose):
            owner.register_forward_pre_hook(RememberIds(compression, positions), with_kwargs=True)
            model.language_model.register_forward_pre_hook(CorrectPositions(compression, positions), with_kwargs=True)

    def levels(self, owner: nn.Module) -> int:
        return len(getattr(cast(Any, owner).visual, "deepstack_merger_list", ()))


def grid_block(grid: Grid, merge: int) -> Block:
    """The tokens of one image or video after the merger. A video of one frame is a picture."""
    frames, rows, columns = grid
    return Block(grid=(rows // merge, columns // merge), frames=frames, video=frames > 1)


class CountGrid:
    """``replace_image_token`` or ``replace_video_token``: one run, as long as its grid says."""

    def __init__(self, processor: Any, compressor: Compressor, kind: str) -> None:
        self.token: str = getattr(processor, f"{kind}_token")
        self.merge: int = getattr(processor, f"{kind}_processor").merge_size
        self.compressor, self.kind = compressor, kind

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> str:
        index = args[0] if args else kwargs[f"{self.kind}_idx"]
        grid = cast(Grid, tuple(int(n) for n in inputs[f"{self.kind}_grid_thw"][index]))
        return self.token * out_length(self.compressor, grid_block(grid, self.merge))


class CountSplitFrames:
    """``replace_video_token`` of Qwen3-VL: a run for each frame, all equally long."""

    def __init__(self, processor: Any, compressor: Compressor) -> None:
        self.replace, self.token = processor.replace_video_token, cast(str, processor.video_token)
        self.merge: int = processor.video_processor.merge_size
        self.compressor = compressor

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> str:
        text: str = self.replace(inputs, *args, **kwargs)
        index = args[0] if args else kwargs["video_idx"]
        _, rows, columns = (int(n) for n in inputs["video_grid_thw"][index])
        frame = grid_block((1, rows, columns), self.merge)
        return text.replace(self.token * frame.length, self.token * out_length(self.compressor, frame))


class CountSizes:
    """``_get_num_multimodal_tokens``: what pictures of given sizes will cost."""

    def __init__(self, processor: Any, compressor: Compressor) -> None:
        self.processor, self.compressor = processor, compressor
        self.count = processor._get_num_multimodal_tokens

    def __call__(self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any) -> Any:
        data = self.count(image_sizes=image_sizes, video_sizes=video_sizes, **kwargs)
        merge = self.processor.image_processor.merge_size
        if image_sizes is not None:
            sizes = zip(image_sizes, data["num_image_patches"], strict=True)
            grids = [self.grid(size, patches) for size, patches in sizes]
            data.num_image_tokens = [out_length(self.compressor, grid_block(grid, merge)) for grid in grids]
        if video_sizes is not None:
            raise ValueError("the tokens of videos of given sizes are not counted with a compressor: process one")
        return data

    def grid(self, size: Sequence[int], patches: int) -> Grid:
        """Rows and columns of a picture that is resized to a multiple of the patches."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        images = self.processor.image_processor
        factor = images.patch_size * images.merge_size
        height, width = smart_resize(
            size[0], size[1], factor, min_pixels=images.size["shortest_edge"], max_pixels=images.size["longest_edge"]
        )
        grid = 1, height // images.patch_size, width // images.patch_size
        assert grid[1] * grid[2] == patches
        return grid


class Features(Override):
    """``get_image_features`` or ``get_video_features``: each image compressed on its grid."""

    def __init__(self, owner: nn.Module, compression: TokenCompression, positions: "Positions", kind: str,
                 split: bool) -> None:  # fmt: skip
        super().__init__(owner, f"get_{kind}_features", compression)
        self.positions, self.kind, self.split = positions, kind, split

    def __call__(self, pixels: Tensor | None = None, grids: Tensor | None = None, **kwargs: Any) -> Any:
        pixels = kwargs.pop(PIXELS[self.kind]) if pixels is None else pixels
        grids = kwargs.pop(f"{self.kind}_grid_thw") if grids is None else grids
        assert pixels is not None
        assert grids is not None
        kind: Any = type(self.owner)
        method: Any = kind.get_image_features if self.split else getattr(kind, self.name)
        output: Any = method(self.owner, pixels, grids, **kwargs | {"return_dict": True})
        merge: int = cast(Any, self.owner).visual.spatial_merge_size
        blocks = [grid_block(cast(Grid, tuple(grid)), merge) for grid in cast(Any, grids).tolist()]
        kept = [self.compression.block(x, block) for x, block in zip(output.pooler_output, blocks, strict=True)]
        output.pooler_output = tuple(tokens for tokens, _ in kept)
        places = [at for _, at in kept]
        self.positions.remember(self.kind, blocks, places, self.split)
        if getattr(output, "deepstack_features", None) is not None:
            output.deepstack_features = [
                tuple(
                    self.compression.level(x, block, at, level)
                    for x, block, at in zip(features, blocks, places, strict=True)
                )
                for level, features in enumerate(output.deepstack_features, start=1)
            ]
        return output


PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class Positions(Override):
    """``get_vision_position_ids`` for the tokens that are left, ``[3, n']``.

    A chooser's are those of evenly spread tokens, first and last among them, until ``CorrectPositions`` knows better.
    """

    def __init__(self, owner: nn.Module, compression: TokenCompression) -> None:
        super().__init__(owner, "get_vision_position_ids", compression)
        self.ids: Tensor | None = None
        self.seconds: Any = None
        self.kept: dict[str, list[tuple[Block, Tensor]]] = {}

    def __call__(self, start_position: Any, grid_thw: Any, *args: Any, **kwargs: Any) -> Tensor:
        every: Tensor = self.host(start_position, grid_thw, *args, **kwargs)
        merge: int = cast(Any, self.owner).visual.spatial_merge_size
        block = grid_block(cast(Grid, tuple(int(n) for n in grid_thw)), merge)
        compressor = cast(Any, self.compression.compressor)
        if not applies(compressor, block):
            return every
        if not isinstance(compressor, Choose):
            frames, grid = compressor.out_frames(block.frames), compressor.out_grid(block.grid)
            return every[:, corners(block.frames, block.grid, frames, grid, every.device)]
        count = out_length(cast(Compressor, compressor), block)
        return every[:, torch.arange(count, device=every.device) * (block.length - 1) // max(count - 1, 1)]

    def remember(self, kind: str, blocks: list[Block], places: list[Tensor], split: bool) -> None:
        """What was kept of the images of one kind, one entry for each run of placeholders."""
        if not isinstance(self.compression.compressor, Choose):
            return
        kept = self.kept[kind] = []
        for block, at in zip(blocks, places, strict=True):
            if split:
                frame = Block(grid=block.grid)
                kept += [(frame, part % frame.length) for part in at.chunk(block.frames)]
            else:
                kept.append((block, at))

    def correct(self, position_ids: Tensor) -> Tensor:
        """``[3, b, s]``, or 4 with those of the text in front, with the places that were kept."""
        config = cast(Any, self.owner).config
        out = position_ids.clone()
        for kind, kept in self.kept.items():
            assert self.ids is not None
            placeholders = self.ids == getattr(config, f"{kind}_token_id")
            beams, rest = divmod(int(placeholders.sum()), sum(len(places) for _, places in kept))
            if beams == 0 or rest:
                continue  # decoding, or features of another prompt
            rows, columns = placeholders[::beams].nonzero(as_tuple=True)
            start = 0
            for index, (block, places) in enumerate(kept):
                row, column = int(rows[start]) * beams, columns[start : start + len(places)]
                t, rest = places // prod(block.grid), places % prod(block.grid)
                t = (t * self.interval(index, block)).long()
                at = torch.stack([t, rest // block.grid[1], rest % block.grid[1]])
                at = at + position_ids[-3:, row, column[0], None]
                out[-3:, row : row + beams, column] = at[:, None].to(out.dtype)
                start += len(places)
        return out

    def interval(self, index: int, block: Block) -> Any:
        """How far frames are apart: Qwen2.5-VL counts in time, the others in frames."""
        per_second = getattr(cast(Any, self.owner).config.vision_config, "tokens_per_second", None)
        if not block.video or per_second is None or self.seconds is None:
            return 1
        return per_second * self.seconds[index]


class RememberIds:
    """A forward pre-hook of the model: where images and videos stand in the prompt."""

    def __init__(self, compression: TokenCompression, positions: Positions) -> None:
        self.compression, self.positions = compression, positions

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.positions.ids = kwargs.get("input_ids", args[0] if args else None)
        self.positions.seconds = kwargs.get("second_per_grid_ts")


class CorrectPositions:
    """A forward pre-hook of the language model: chosen tokens get the positions that they had."""

    def __init__(self, compression: TokenCompression, positions: Positions) -> None:
        self.compression, self.positions = compression, positions

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if not self.positions.kept or kwargs.get("position_ids") is None or self.positions.ids is None:
            return None
        return args, kwargs | {"position_ids": self.positions.correct(kwargs["position_ids"])}
