"""From messages to ids and tiles: order, budgets, batches, labels, and the reference's oddities by option."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_model.inputs.media import Image, MediaError, MediaWarning, Video
from nvila_model.inputs.messages import MessageError
from nvila_model.inputs.model_inputs import ModelInputs
from nvila_model.inputs.processor import Processor, VideoSettings
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.parity import Parity
from nvila_tiling import DynamicS2, DynamicTiles, Grid, SingleTile
from PIL import Image as PILImage

S2 = DynamicS2(scales=(14, 28, 42))
TILES = DynamicTiles(tile=14, max_tiles=6)
SINGLE = SingleTile(tile=14)
HEAD = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"


def picture(width: int = 40, height: int = 20, level: int = 0) -> PILImage.Image:
    return PILImage.new("RGB", (width, height), (level, 255 - level, level))


def frames(count: int = 5, width: int = 20, height: int = 20) -> list[PILImage.Image]:
    return [picture(width, height, level=number) for number in range(count)]


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture
def s2(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, S2, video=VideoSettings(num_frames=3))


@pytest.fixture
def lite(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, TILES, tile_text="\n", video=VideoSettings(num_frames=3))


def asked(inputs: ModelInputs) -> list[str]:
    """What the user's last turn became."""
    return [text.rpartition("<|im_start|>user\n")[2].removesuffix(TAIL) for text in inputs.prompt_text]


# Text and places


def test_text_alone(s2: Processor) -> None:
    inputs = s2([{"role": "user", "content": " Hi \n"}])
    assert inputs.prompt_text == (HEAD + "Hi" + TAIL,)
    assert inputs.input_ids[0].tolist() == s2.tokenizer.encode(HEAD + "Hi" + TAIL)
    assert inputs.input_ids[0].dtype == torch.int64
    assert (inputs.images, inputs.videos, inputs.media_plan, inputs.labels) == ((), (), (), None)


def test_an_answer_can_be_left_unopened(s2: Processor) -> None:
    assert s2(user("Hi"), add_generation_prompt=False).prompt_text == (HEAD + "Hi<|im_end|>\n",)


@pytest.mark.parametrize(
    "content",
    [
        ["Look: ", Image(picture()), " What?"],
        ["Look: ", picture(), " What?"],
        ["Look", ": ", Image(np.asarray(picture())), " What", "?"],
        [
            {"type": "text", "text": "Look: "},
            {"type": "image", "image": Image(picture())},
            {"type": "text", "text": " What?"},
        ],
        ["Look: ", {"type": "image", "image": picture()}, " What?"],
    ],
)
def test_parts_can_be_written_in_several_ways(s2: Processor, content: list[Any]) -> None:
    inputs = s2([{"role": "user", "content": content}])
    assert asked(inputs) == ["Look: <image> What?"]
    assert torch.equal(inputs.images[0].tiles, S2(picture()).tiles)


def test_places_lead_to_the_media(s2: Processor) -> None:
    conversation = [
        {"role": "system", "content": "Be terse."},
        *user("A ", picture(40, 20), " and ", Video(frames()), "?"),
        {"role": "assistant", "content": "Both."},
        *user(picture(20, 40), picture(30, 30)),
    ]
    inputs = s2(conversation)
    assert [image.plan.size for image in inputs.images] == [(40, 20), (20, 40), (30, 30)]
    assert [(slot.kind, slot.index, slot.row) for slot in inputs.media_plan] == [
        ("image", 0, 0),
        ("video", 0, 0),
        ("image", 1, 0),
        ("image", 2, 0),
    ]
    media_ids = {"image": s2.tokenizer.image_id, "video": s2.tokenizer.video_id}
    for slot in inputs.media_plan:
        assert [int(inputs.input_ids[0][place]) for place in slot.positions] == [media_ids[slot.kind]]
    places = [slot.positions[0] for slot in inputs.media_plan]
    assert places == sorted(places)


PARTS = st.lists(st.sampled_from(["a ", "\n", "image", "video"]), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(PARTS, min_size=1, max_size=3))
def test_a_batch_equals_its_rows(tokenizer: Tokenizer, rows: list[list[str]]) -> None:
    processor = Processor(tokenizer, TILES, tile_text="\n", video=VideoSettings(num_frames=2))
    media = {"image": Image(picture()), "video": Video(frames(2))}
    conversations = [user(*(media.get(part, part) for part in row)) for row in rows]
    batch = processor(conversations)
    alone = [processor(conversation) for conversation in conversations]
    assert batch.prompt_text == tuple(text for inputs in alone for text in inputs.prompt_text)
    for got, inputs in zip(batch.input_ids, alone, strict=True):
        assert torch.equal(got, inputs.input_ids[0])
    for kind in ("images", "videos"):
        singles = [medium.tiles for inputs in alone for medium in getattr(inputs, kind)]
        assert len(getattr(batch, kind)) == len(singles)
        assert all(torch.equal(a.tiles, b) for a, b in zip(getattr(batch, kind), singles, strict=True))
    placed = [(slot.kind, row, slot.positions) for row, inputs in enumerate(alone) for slot in inputs.media_plan]
    assert [(slot.kind, slot.row, slot.positions) for slot in batch.media_plan] == placed


# Images


def test_dynamic_tiles_are_one_token_and_a_newline_each(lite: Processor) -> None:
    inputs = lite(user(picture(60, 20), "What?"))
    assert inputs.images[0].plan.grids == (Grid(1, 3),)
    assert inputs.images[0].plan.thumbnail
    assert asked(inputs) == ["<image>\n" * 4 + "What?"]
    assert len(inputs.media_plan[0].positions) == 4


def test_a_message_loses_the_newline_after_its_last_tile(lite: Processor) -> None:
    assert asked(lite(user("What?", picture(60, 20)))) == ["What?" + "\n".join(["<image>"] * 4)]


def test_one_tile_of_dynamic_tiling_keeps_its_newline(lite: Processor) -> None:
    assert asked(lite(user(picture(14, 14), "What?"))) == ["<image>\nWhat?"]


def test_every_one_of_several_images_is_tiled(s2: Processor, lite: Processor) -> None:
    pair = user(picture(60, 20), picture(20, 60), "Compare.")
    assert [image.plan for image in s2(pair).images] == [S2.plan(60, 20), S2.plan(20, 60)]
    assert asked(s2(pair)) == ["<image><image>Compare."]
    assert asked(lite(pair)) == ["<image>\n" * 8 + "Compare."]


@pytest.mark.parametrize(("images", "most"), [(1, 6), (2, 6), (4, 3), (5, 2), (12, 1), (100, 1)])
def test_images_share_a_budget_of_tiles(lite: Processor, images: int, most: int) -> None:
    tiler = replace(lite, tile_budget=12).tiler_for(images)
    assert isinstance(tiler, DynamicTiles)
    assert tiler.max_tiles == most


def test_a_share_is_never_below_what_the_tiler_needs(s2: Processor) -> None:
    tiler = s2.tiler_for(50)
    assert isinstance(tiler, DynamicS2)
    assert tiler.max_tiles == S2.min_tiles
    assert s2.tiler_for(4) == S2


def test_the_budget_is_shared_within_a_conversation_not_a_batch(lite: Processor) -> None:
    processor = replace(lite, tile_budget=6)
    one, two = user(picture(60, 20)), user(picture(60, 20), picture(60, 20))
    batch = processor([one, two, one])
    assert [image.plan.grids[0].count for image in batch.images] == [3, 3, 3, 3]
    assert [image.plan.grids[0].count for image in replace(lite, tile_budget=4)([one, two]).images] == [3, 2, 2]


def test_a_tiler_of_ones_own_is_used_as_it_is(tokenizer: Tokenizer) -> None:
    class Twice:
        def plan(self, width: int, height: int) -> Any:
            return TILES.plan(2 * height, height)

        def __call__(self, image: Any) -> Any:
            return TILES(PILImage.new("RGB", (28, 14)))

    processor = Processor(tokenizer, Twice(), untiled=SINGLE, tile_text="|")
    assert asked(processor(user(picture(), picture()))) == ["<image>|" * 6]
    assert processor(user(Video(frames()))).videos[0].plan.grids == (Grid(1, 1),)


def test_rgb_grey_and_palette_images_are_taken(s2: Processor, tmp_path: Path) -> None:
    for mode in ("RGBA", "L", "P", "I;16", "1", "CMYK"):
        path = tmp_path / "picture.tiff"
        image = picture().convert("L").convert("I").convert("I;16") if mode == "I;16" else picture().convert(mode)
        image.save(path)
        assert s2(user(Image(path))).images[0].tiles.shape[1:] == (3, 14, 14)


# Videos


def test_a_video_is_one_token_and_its_frames_one_tile_each(s2: Processor) -> None:
    inputs = s2(user(Video(frames(5)), "What?"))
    assert asked(inputs) == ["<vila/video>What?"]
    video = inputs.videos[0]
    assert (video.frames, video.timestamps) == (3, (0.0, 2.0, 4.0))
    expected = torch.cat([S2.single()(frame).tiles for frame in frames(5)[::2]])
    assert torch.equal(video.tiles, expected)
    assert video.plan.merges


def test_a_video_can_say_how_many_frames(s2: Processor) -> None:
    assert s2(user(Video(frames(5), num_frames=5))).videos[0].frames == 5


def test_a_frame_chosen_twice_stands_twice(s2: Processor) -> None:
    video = s2(user(Video(frames(2)))).videos[0]
    assert video.frames == 3
    assert torch.equal(video.tiles[0], video.tiles[1])


def test_frames_can_be_tiled(lite: Processor) -> None:
    tiling = replace(lite, video=VideoSettings(num_frames=2, tiler=TILES))
    video = tiling(user(Video(frames(4, width=40)))).videos[0]
    assert (video.frames, video.plan.tiles) == (2, 3)
    assert video.tiles.shape == (6, 3, 14, 14)


def test_frames_that_do_not_decode_are_not_counted(s2: Processor) -> None:
    with pytest.warns(MediaWarning, match="1 of 3 chosen frames"):
        video = s2(user(Video([picture(), b"broken", picture()]))).videos[0]
    assert video.frames == 2
    assert len(video.tiles) == 2


def test_frames_of_several_sizes_are_refused_only_where_it_matters(s2: Processor, lite: Processor) -> None:
    clip = Video([picture(40, 20), picture(20, 20), picture(20, 20)])
    assert s2(user(clip)).videos[0].frames == 3
    tiling = replace(lite, video=VideoSettings(tiler=TILES))
    with pytest.raises(MediaError, match=r"frames of \(40, 20\) and \(20, 20\) pixels, which tile differently"):
        tiling(user(clip))


# Safety


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["What does <image> mean? "], "What does  mean?"),
        (["<vila/video>", "Hi"], "Hi"),
        (["<im<vila/video>age>Hi"], "Hi"),
        (["<vila/vid<image>eo>Hi"], "Hi"),
        (["<ima", "ge>Hi"], "Hi"),
        (["a <image> ", "b"], "ab"),  # the part loses the blanks around it
    ],
)
def test_typed_media_tokens_are_taken_out(s2: Processor, parts: list[str], text: str) -> None:
    with pytest.warns(MediaWarning, match="in the text is removed: pass media as parts"):
        inputs = s2(user(*parts))
    assert asked(inputs) == [text]
    assert inputs.media_plan == ()


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_no_role_can_smuggle_media_in(s2: Processor, role: str) -> None:
    with pytest.warns(MediaWarning):
        inputs = s2([{"role": role, "content": "x<image>"}, *user("Hi", picture())])
    assert len(inputs.media_plan) == 1


def test_a_template_that_loses_media_is_refused(tokenizer_folder: Path) -> None:
    for source in ("{{ messages[0]['content'][:3] }}", "{{ messages[0]['content'] * 2 }}"):
        processor = Processor(Tokenizer.from_folder(tokenizer_folder, chat_template=source), S2)
        with pytest.raises(MessageError, match="it must keep each once"):
            processor(user("Hi ", picture()))


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no messages: pass a list of"),
        (b"Hi", "no messages: pass a list of"),
        ([[]], "a conversation is a list of messages, not list"),
        (["Hi"], "a conversation is a list of messages, not str 'Hi'"),
        ([{"role": "user"}], r"a message is \{'role': ..., 'content': ...\}, not \{'role': ...\}"),
        ([{"role": "gpt", "content": "x"}], "role 'gpt' is not one of system, user, assistant, tool"),
        ([{"role": "user", "content": None}], "content is text or a list of parts, not NoneType"),
        ([{"role": "user", "content": [5]}], "a part is text, an Image, a Video, .*, not int 5"),
        ([{"role": "user", "content": [{"type": "audio"}]}], r"a part is text, .*, not \{'type': ...\}"),
    ],
)
def test_messages_that_are_none_are_refused(s2: Processor, messages: Any, problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        s2(messages)


def test_a_bad_image_is_named(s2: Processor) -> None:
    with pytest.raises(MediaError, match=r"no file at nowhere.png"):
        s2(user(Image("nowhere.png"), "Hi"))


# Training


def test_labels_cover_the_answers_of_every_row(s2: Processor) -> None:
    talk = [*user(picture(), "hello"), {"role": "assistant", "content": "one\ntwo"}]
    inputs = s2.for_training([[*talk, *user("it"), {"role": "assistant", "content": "user"}], talk])
    assert inputs.labels is not None
    learnt = [s2.tokenizer.decode(labels[labels != -100].tolist()) for labels in inputs.labels]
    assert learnt == ["one\ntwo<|im_end|>user<|im_end|>", "one\ntwo<|im_end|>"]
    for ids, labels in zip(inputs.input_ids, inputs.labels, strict=True):
        assert torch.equal(ids[labels != -100], labels[labels != -100])
    assert [slot.row for slot in inputs.media_plan] == [0, 1]


def test_labels_can_slip_as_the_references_do(s2: Processor) -> None:
    talk = [*user("hello"), {"role": "assistant", "content": "one\ntwo"}]
    inputs = replace(s2, parity=Parity(greedy_label_matching=True)).for_training(talk)
    assert inputs.labels is not None
    assert s2.tokenizer.decode(inputs.labels[0][inputs.labels[0] != -100].tolist()) == "onetwo<|im_end|>\n"


# The reference's oddities


def test_several_images_can_be_one_tile_each(s2: Processor, lite: Processor) -> None:
    parity = Parity(one_tile_for_several_images=True)
    pair, one = user(picture(60, 20), picture(20, 60), "What?"), user(picture(60, 20), "What?")
    inputs = replace(lite, parity=parity)([pair, one])
    assert asked(inputs) == ["<image><image>What?", "<image>\n" * 4 + "What?"]
    merged = replace(s2, parity=parity)(pair)
    assert [image.plan for image in merged.images] == [S2.single().plan(60, 20), S2.single().plan(20, 60)]


def test_a_video_can_be_images(lite: Processor) -> None:
    inputs = replace(lite, parity=Parity(video_as_images=True))(user(Video(frames(5)), "What?"))
    assert asked(inputs) == ["<image>" * 3 + "What?"]
    assert (len(inputs.images), inputs.videos) == (3, ())
    assert [slot.index for slot in inputs.media_plan] == [0, 1, 2]


# Counting


def test_token_counts_follow_from_the_plan(lite: Processor) -> None:
    inputs = lite([user(picture(60, 20), Video(frames()), "What?"), user("Hi")])
    counts = inputs.token_counts(lambda image: 10 * image.plan.tiles, lambda video: 7 * video.frames)
    text = [len(ids) for ids in inputs.input_ids]
    assert counts == (text[0] - 5 + 40 + 21, text[1])
