"""The table: one row for each host."""

from nvila_compress.adapters.family import Family, register_family
from nvila_compress.adapters.gemma import WrittenOut
from nvila_compress.adapters.llava_next import BaseAndMap
from nvila_compress.adapters.pixtral import RowsWithBreaks
from nvila_compress.adapters.qwen_vl import PackedGrids
from nvila_compress.adapters.tiles import CountAttribute, FixedTiles, Patches, Runs, aya_side, llama4_side

_FRAMES_STAND_ALONE = "passes frames to its model as pictures, each with text of its own between them"

ROWS = (
    Family(model_type="llava", placing=FixedTiles(Patches()), layer="linear_1"),
    Family(model_type="vipllava", placing=FixedTiles(Patches()), layer="linear_1"),
    Family(
        model_type="video_llava", placing=FixedTiles(Patches(), tower="image_tower", reads_video=True), layer="linear_1"
    ),
    Family(model_type="paligemma", placing=FixedTiles(CountAttribute("image_seq_length")), layer="linear"),
    Family(
        model_type="idefics2", placing=FixedTiles(CountAttribute("image_seq_len"), tower=None), projector="connector"
    ),
    Family(
        model_type="idefics3",
        placing=FixedTiles(CountAttribute("image_seq_len"), tower="vision_model"),
        projector="connector",
        layer="modality_projection.proj",
    ),
    Family(
        model_type="smolvlm",
        placing=FixedTiles(CountAttribute("image_seq_len"), tower="vision_model", no_video=_FRAMES_STAND_ALONE),
        projector="connector",
        layer="modality_projection.proj",
        since="4.50",
    ),
    Family(
        model_type="internvl",
        placing=FixedTiles(CountAttribute("image_seq_length"), no_video=_FRAMES_STAND_ALONE),
        layer="linear_1",
        since="4.52",
    ),
    Family(
        model_type="aya_vision", placing=FixedTiles(Runs("img_patch_token", aya_side)), layer="linear_1", since="5.10"
    ),
    Family(
        model_type="llama4",
        placing=FixedTiles(Runs("img_patch_token", llama4_side), tower=None),
        layer="linear_1",
        since="5.15",
    ),
    Family(model_type="gemma3", placing=FixedTiles(WrittenOut()), since="4.50"),
    Family(model_type="llava_next", placing=BaseAndMap(video=False)),
    Family(model_type="llava_onevision", placing=BaseAndMap(video=True, ends_with_newline=True)),
    Family(model_type="llava_next_video", placing=BaseAndMap(video=True)),
    Family(model_type="llava/pixtral", placing=RowsWithBreaks(), since="5.15"),
    Family(model_type="mistral3", placing=RowsWithBreaks(), since="5.15"),
    Family(model_type="qwen2_vl", placing=PackedGrids(), projector="visual", since="5.10"),
    Family(model_type="qwen2_5_vl", placing=PackedGrids(), projector="visual", since="5.10"),
    Family(model_type="qwen3_vl", placing=PackedGrids(split_frames=True), projector="visual", since="5.10"),
)


def register() -> None:
    """Add all rows to the table."""
    for row in ROWS:
        register_family(row)
