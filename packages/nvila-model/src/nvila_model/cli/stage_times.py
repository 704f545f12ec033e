"""One image or video through a model, each stage alone: decode, tile, vision tower, compress and project, prefill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from nvila_tiling import TilePlan, draw_plan
from PIL import Image as PILImage
from torch import nn

from nvila_model.cli.ending import CommandError
from nvila_model.cli.progress import Stopwatch
from nvila_model.config import NVILAConfig
from nvila_model.estimate import clip, count_tokens, untiled
from nvila_model.inputs.media import Image, Video
from nvila_model.network.fusion import fuse
from nvila_model.nvila import NVILA
from nvila_model.presets import preset


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model makes of one medium.

    Attributes:
        picture: the image, or a video's first frame.
        plan: its tiles; of every frame, for a video.
        tokens: positions of the language model, with the newlines after tiles and frames.
        tokens_per_tile: of one tile or block after compression.
        timestamps: of a video's frames, or their numbers; None for an image.
        has_clock: whether these are seconds.
        prompt_tokens: of a whole prompt with nothing but this medium; None if no model was loaded.
    """

    picture: PILImage.Image
    plan: TilePlan
    tokens: int
    tokens_per_tile: int
    timestamps: tuple[float, ...] | None = None
    has_clock: bool = False
    prompt_tokens: int | None = None

    def to_dict(self, seconds: dict[str, float]) -> dict[str, Any]:
        plan = self.plan
        report: dict[str, Any] = {
            "kind": "image" if self.timestamps is None else "video",
            "size": list(plan.size),
            "tile": plan.tile,
            "grids": [[grid.rows, grid.cols] for grid in plan.grids],
            "thumbnail": plan.thumbnail,
            "tiles": plan.tiles,
            "tokens": self.tokens,
            "tokens_per_tile": self.tokens_per_tile,
        }
        if self.timestamps is not None:
            report["frames"] = len(self.timestamps)
            if self.has_clock:
                report["timestamps"] = [round(moment, 4) for moment in self.timestamps]
            else:
                report["frame_numbers"] = [int(number) for number in self.timestamps]
        if self.prompt_tokens is not None:
            report["prompt_tokens"] = self.prompt_tokens
        return {**report, "seconds": {name: round(spent, 5) for name, spent in seconds.items()}}

    def draw(self, path: Path) -> None:
        """Save a picture of the tiles over the image. Raises: CommandError if it cannot be written."""
        try:
            draw_plan(self.picture, self.plan).save(path)
        except (OSError, ValueError) as error:
            raise CommandError(f"{path} cannot be written: {error}") from None


def measure(model: NVILA, medium: Image | Video, watch: Stopwatch) -> Seen:
    """Run a medium through a model and time each stage. Raises: MediaError."""
    processor = model.needed_processor()
    settings = processor.video
    timestamps = None
    has_clock = isinstance(medium, Video) and medium.has_clock
    with watch.stage("decode", "decoding"):
        if isinstance(medium, Video):
            clip_frames = medium.load(num_frames=settings.num_frames, fps=settings.fps)
            timestamps, picture = clip_frames.timestamps, clip_frames.frames[0]
            medium = Video(list(clip_frames.frames), num_frames=len(clip_frames.frames))
        else:
            picture = medium.load()
    with watch.stage("tile", "cutting tiles"):
        inputs = processor([{"role": "user", "content": [medium]}])
    with torch.inference_mode():
        warm(model)
        started = time.perf_counter()
        with timed(cast(nn.Module, model.vision), watch, "vision tower"):
            images, videos = model.encode_images(inputs.images), model.encode_video(inputs.videos)
            wait(model)
        spent = time.perf_counter() - started
        watch.seconds["compress and project"] = spent - watch.seconds["vision tower"]
        text = [model.llm.embed_tokens(ids.to(model.device)) for ids in inputs.input_ids]
        fused = fuse(inputs, text, images, videos, side="left")
        with watch.stage("prefill", "reading the prompt"):
            model.llm.logits(model.hidden(fused)[:, -1])
            wait(model)
    if inputs.videos:
        plan, tokens = inputs.videos[0].plan, model.video_tokens(inputs.videos[0])
    else:
        plan = inputs.images[0].plan
        tokens = model.image_tokens(plan) + (plan.tiles if processor.tile_text else 0)
    rows, columns = model.tile_grid(plan)
    return Seen(
        picture=picture, plan=plan, tokens=tokens, tokens_per_tile=rows * columns,
        timestamps=timestamps, has_clock=has_clock, prompt_tokens=fused.embeds.shape[1],
    )  # fmt: skip


def plan_only(medium: Image | Video, name: str, max_tiles: int | None, watch: Stopwatch) -> Seen:
    """What a published model would make of a medium, without its weights."""
    config: NVILAConfig = preset(name)
    if max_tiles is not None:
        config = config.model_copy(update={"max_tiles": max_tiles})
    model = NVILA.outline(config)
    processor = model.needed_processor()
    if isinstance(medium, Video):
        with watch.stage("decode", "decoding"):
            frames = medium.load(num_frames=processor.video.num_frames, fps=processor.video.fps)
        picture, timestamps = frames.frames[0], frames.timestamps
        plan = (processor.video.tiler or untiled(processor.tiler)).plan(*picture.size)
        tokens = model.video_tokens(clip(plan, len(timestamps)))
    else:
        picture, timestamps = medium.load(), None
        plan = processor.tiler.plan(*upright(picture))
        tokens = count_tokens(model, images=[plan.size]).total
    rows, columns = model.tile_grid(plan)
    return Seen(
        picture=picture, plan=plan, tokens=tokens, tokens_per_tile=rows * columns,
        timestamps=timestamps, has_clock=isinstance(medium, Video) and medium.has_clock,
    )  # fmt: skip


def upright(image: PILImage.Image) -> tuple[int, int]:
    """Width and height after the rotation that EXIF asks for."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


@contextmanager
def timed(module: nn.Module, watch: Stopwatch, name: str) -> Iterator[None]:
    """Add up the seconds of every call of a module."""
    watch.seconds[name] = 0.0
    started = 0.0

    def before(module: nn.Module, arguments: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(module: nn.Module, arguments: Any, result: torch.Tensor) -> None:
        wait_for_device(result.device)
        watch.seconds[name] += time.perf_counter() - started

    hooks = (module.register_forward_pre_hook(before), module.register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def warm(model: NVILA) -> None:
    """Let the first call's one-off costs pass, so that they are not taken for a stage's."""
    side = model.tiler.plan(1, 1).tile
    model.features(torch.zeros(1, 3, side, side))
    model.llm(torch.zeros(1, 1, model.llm.embed_tokens.embedding_dim, dtype=model.llm.dtype, device=model.device))
    wait(model)


def wait(model: NVILA) -> None:
    """Wait until the model's device has done what it was given."""
    wait_for_device(model.device)


def wait_for_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
