"""From messages of text, images and videos to ``ModelInputs``.

An image is tiled, and its media tokens are written where it stands: one for a picture whose scales are
merged, one a tile for dynamic tiles, each followed by ``tile_text``. A video is one ``<vila/video>``
whatever its frames; what it becomes is counted from the frames that really decoded. Messages lose the
blanks around them (``strip_messages``), as they did in training, and the chat template makes one text of them.

**Several images.** The images of one conversation share ``tile_budget`` tiles evenly: each gets at most
``tile_budget // images``, never more than the tiler's ``max_tiles`` and never less than its ``min_tiles``,
so that every image is tiled. With the default, 48, up to four images get what a single one would.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import torch
from nvila_tiling import DynamicS2, DynamicTiles, SingleTile, TiledImage, Tiler, tile_many

from nvila_model.inputs.labels import label_answers, match_greedily
from nvila_model.inputs.media import Image, MediaError, Video
from nvila_model.inputs.messages import Conversation, MessageError, Turn, read_batch
from nvila_model.inputs.model_inputs import MediaSlot, ModelInputs, TiledVideo
from nvila_model.inputs.tokenizer import IMAGE_TOKEN, TEXT_MARK, VIDEO_TOKEN, Tokenizer
from nvila_model.parity import Parity

__all__ = ["Conversation", "Processor", "VideoSettings"]

_TILING_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How videos are sampled and tiled, where a ``Video`` does not say itself.

    Attributes:
        num_frames: frames taken from a video, at most when ``fps`` is set.
        fps: frames a second to take; 0 spreads ``num_frames`` over the whole video.
        tiler: how a frame is tiled; None takes one tile a frame.
    """

    num_frames: int = 8
    fps: float = 0.0
    tiler: Tiler | None = None


@dataclass(frozen=True, kw_only=True)
class _Medium:
    """An image or video of a row, tiled, and the text that stands for it."""

    content: TiledImage | TiledVideo
    text: str
    tokens: int

    @property
    def kind(self) -> Literal["image", "video"]:
        return "image" if isinstance(self.content, TiledImage) else "video"


@dataclass(frozen=True, eq=False)
class Processor:
    """Text, images and videos of conversations to ids, tiles and their places.

    ``dataclasses.replace`` gives one with other settings.

    Args:
        tokenizer: the checkpoint's tokenizer.
        tiler: how an image is tiled.
        untiled: how a picture becomes one tile (frames, and images under parity); None follows from ``tiler``.
        video: how videos are sampled and tiled.
        tile_text: what follows each media token of an image that ``tiler`` tiled ("\\n" for dynamic tiles).
        strip_messages: whether messages lose the blanks and newlines around them.
        tile_budget: tiles that the images of one conversation share.
        parity: the reference's oddities to reproduce.
    """

    tokenizer: Tokenizer
    tiler: Tiler
    _: KW_ONLY
    untiled: Tiler | None = None
    video: VideoSettings = VideoSettings()
    tile_text: str = ""
    strip_messages: bool = True
    tile_budget: int = 48
    parity: Parity | None = None

    def __call__(
        self, messages: Conversation | Sequence[Conversation], *, add_generation_prompt: bool = True
    ) -> ModelInputs:
        """One conversation, or a list of them, to the inputs of one batch.

        Args:
            messages: each message ``{"role", "content"}``; content is text or a list of texts, ``Image``,
                ``Video``, PIL images, and ``{"type": "text" | "image" | "video", ...}``, in any order.
            add_generation_prompt: end where the answer begins.

        Raises: MessageError, MediaError, TemplateError, each with one sentence for the user.
        """
        rows: list[_Row] = []
        for turns in read_batch(messages):
            self._refuse_turns(turns, answer_follows=add_generation_prompt)
            texts, media = self._write(turns)
            text = self.tokenizer.template.render(texts, add_generation_prompt=add_generation_prompt)
            rows.append(_Row(text.replace(TEXT_MARK, ""), tuple(self.tokenizer.encode_marked(text)), media))
        return self._collect(rows)

    def for_training(self, messages: Conversation | Sequence[Conversation]) -> ModelInputs:
        """Whole conversations with ``labels``: answers and their end-of-turn tokens, nothing else."""
        rows: list[_Row] = []
        label = match_greedily if self._parity.greedy_label_matching else label_answers
        for turns in read_batch(messages):
            self._refuse_turns(turns, answer_follows=False)
            texts, media = self._write(turns)
            labelled = label(self.tokenizer, texts)
            rows.append(_Row(labelled.text, labelled.input_ids, media, labelled.labels))
        return self._collect(rows)

    def tiler_for(self, images: int) -> Tiler:
        """How each of several images of one conversation is tiled; see the module's text."""
        if images > 1 and self._parity.one_tile_for_several_images:
            return self._untiled
        if not isinstance(self.tiler, DynamicS2 | DynamicTiles):
            return self.tiler
        share = max(self.tiler.min_tiles, self.tile_budget // max(images, 1))
        return replace(self.tiler, max_tiles=min(self.tiler.max_tiles, share))

    @property
    def _parity(self) -> Parity:
        return self.parity or Parity()

    @property
    def _untiled(self) -> Tiler:
        match self.untiled, self.tiler:
            case None, DynamicS2() as tiler:
                return tiler.single()
            case None, DynamicTiles() as tiler:
                return SingleTile(
                    tile=tiler.tile, resampler=tiler.resampler, exif=tiler.exif, mean=tiler.mean, std=tiler.std
                )
            case None, tiler:
                return tiler
            case untiled, _:
                return untiled

    def _refuse_turns(self, turns: Sequence[Turn], *, answer_follows: bool) -> None:
        """Refuse turns that the model would be shown in a form that it never saw. Raises: MessageError."""
        if any(turn.role == "tool" for turn in turns) and "tool" not in self.tokenizer.template.source:
            raise MessageError(
                "the chat template knows no role 'tool': put what the tool answered into a message of the user"
            )
        if answer_follows and turns[-1].role == "assistant":
            raise MessageError(
                "the last message is the assistant's, so there is nothing to answer: end with one of the user's, or "
                "pass add_generation_prompt=False"
            )

    def _write(self, turns: Sequence[Turn]) -> tuple[list[dict[str, str]], list[_Medium]]:
        """Each turn as text with media tokens in place, and the media in order."""
        parts = [part for turn in turns for part in turn.parts if not isinstance(part, str)]
        media = self._tile(parts)
        pieces = iter(media)
        texts: list[dict[str, str]] = []
        for turn in turns:
            content = "".join(
                self.tokenizer.as_text(part)
                if isinstance(part, str)
                else "".join(medium.text for medium in next(pieces))
                for part in turn.parts
            )
            texts.append({"role": turn.role, "content": content.strip() if self.strip_messages else content})
        return texts, [medium for group in media for medium in group]

    def _tile(self, parts: Sequence[Image | Video]) -> list[list[_Medium]]:
        """The media of one row, one list a part (a video taken as images gives several)."""
        images = [part for part in parts if isinstance(part, Image)]
        tiler = self.tiler_for(len(parts) if self._parity.video_as_images else len(images))
        suffix = "" if tiler == self._untiled else self.tile_text
        loaded = [image.load() for image in images]
        tiled = iter(tile_many(loaded, tiler, workers=max(1, min(len(loaded), _TILING_THREADS))))
        return [[_image(next(tiled), suffix)] if isinstance(part, Image) else self._tile_video(part) for part in parts]

    def _tile_video(self, video: Video) -> list[_Medium]:
        if self._parity.video_as_images:
            return [_image(frame, "") for frame, _ in self._frames(video, self._untiled)]
        frames = list(self._frames(video, self.video.tiler or self._untiled))
        plan = frames[0][0].plan
        odd = next((frame.plan for frame, _ in frames if frame.plan.grids != plan.grids), None)
        if odd is not None:
            raise MediaError(
                f"{video.name} has frames of {plan.size} and {odd.size} pixels, which tile differently: "
                f"resize them to one size"
            )
        content = TiledVideo(
            tiles=torch.cat([frame.tiles for frame, _ in frames]),
            frames=len(frames),
            timestamps=tuple(timestamp for _, timestamp in frames),
            plan=plan,
        )
        return [_Medium(content=content, text=VIDEO_TOKEN, tokens=1)]

    def _frames(self, video: Video, tiler: Tiler) -> Iterator[tuple[TiledImage, float]]:
        last: tuple[int, TiledImage] | None = None
        settings = self.video
        for frame in video.sample(
            num_frames=settings.num_frames, fps=settings.fps, cut_at_limit=self._parity.cut_video_at_frame_limit
        ):
            if last is None or last[0] != frame.index:  # a frame chosen twice is tiled once
                last = frame.index, tiler(frame.image)
            yield last[1], frame.timestamp

    def _collect(self, rows: Sequence["_Row"]) -> ModelInputs:
        images: list[TiledImage] = []
        videos: list[TiledVideo] = []
        plan: list[MediaSlot] = []
        for number, row in enumerate(rows):
            for medium, positions in zip(row.media, self._positions(row), strict=True):
                content = medium.content
                index = len(images) if isinstance(content, TiledImage) else len(videos)
                if isinstance(content, TiledImage):
                    images.append(content)
                else:
                    videos.append(content)
                plan.append(MediaSlot(kind=medium.kind, index=index, row=number, positions=positions))
        labels = [row.labels for row in rows if row.labels is not None]
        return ModelInputs(
            input_ids=tuple(torch.tensor(row.input_ids, dtype=torch.int64) for row in rows),
            images=tuple(images),
            videos=tuple(videos),
            media_plan=tuple(plan),
            prompt_text=tuple(row.text for row in rows),
            labels=tuple(torch.tensor(ids, dtype=torch.int64) for ids in labels) if labels else None,
        )

    def _positions(self, row: "_Row") -> list[tuple[int, ...]]:
        """Where each medium's tokens are in the ids of its row."""
        kinds = {self.tokenizer.image_id: "image", self.tokenizer.video_id: "video"}
        found = [(place, kinds[token]) for place, token in enumerate(row.input_ids) if token in kinds]
        wanted = [medium.kind for medium in row.media for _ in range(medium.tokens)]
        if [kind for _, kind in found] != wanted:
            raise MessageError(
                f"the chat template left {len(found)} of {len(wanted)} media tokens in order: it must keep each once"
            )
        places = iter(place for place, _ in found)
        return [tuple(next(places) for _ in range(medium.tokens)) for medium in row.media]


@dataclass(frozen=True)
class _Row:
    """One conversation on its way to ``ModelInputs``."""

    text: str
    input_ids: tuple[int, ...]
    media: Sequence[_Medium]
    labels: tuple[int, ...] | None = None


def _image(tiled: TiledImage, suffix: str) -> _Medium:
    tokens = tiled.plan.media_tokens
    return _Medium(content=tiled, text=(IMAGE_TOKEN + suffix) * tokens, tokens=tokens)
