"""What goes into the model, against the reference: ids, texts, pixels, labels and frame numbers.

Every case of the golden folder is found when tests are collected, so another folder of the same structure is
tested whole. Needs no weights.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvila_model.checkpoint.assembly import build_processor
from nvila_model.checkpoint.layout import open_checkpoint
from nvila_model.inputs.labels import label_answers, match_greedily
from nvila_model.inputs.llava import read_llava
from nvila_model.inputs.media import Image, MediaWarning, Video
from nvila_model.inputs.model_inputs import ModelInputs
from nvila_model.inputs.processor import Processor
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.parity import Parity

Case = dict[str, Any]

# The folder of each parametrised argument: what to look for in a checkpoint's cases.
_KINDS = {"asked": ("prompt", "batch"), "encoded": ("encode",), "trained": ("train",)}
_FILES = {"vocabulary": "tokenizer.json", "conversations": "labels.json"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = metafunc.config.getoption("--golden")
    for argument, kinds in _KINDS.items():
        if argument in metafunc.fixturenames:
            paths = [path for path in sorted(folder.glob("cases/*/*.json")) if _read(path).get("kind") in kinds]
            _parametrize(metafunc, argument, paths, folder)
    for argument, name in _FILES.items():
        if argument in metafunc.fixturenames:
            _parametrize(metafunc, argument, sorted(folder.glob(f"cases/*/{name}")), folder)


def _parametrize(metafunc: pytest.Metafunc, argument: str, paths: list[Path], folder: Path) -> None:
    absent = pytest.mark.skip(reason=f"no reference values at {folder}: pass --golden DIR")
    cases = [pytest.param(path, id=f"{path.parent.name}-{path.stem}") for path in paths]
    metafunc.parametrize(argument, cases or [pytest.param(None, marks=absent)])


def _read(path: Path) -> Case:
    return json.loads(path.read_text())


def _tokenizer(golden: Path, case: Case) -> Tokenizer:
    folder = golden / "checkpoints" / case["checkpoint"]
    template = _read(folder / "config.json").get("chat_template")
    return Tokenizer.from_folder(folder / "llm", chat_template=template)


def _processor(golden: Path, case: Case, parity: Parity) -> Processor:
    checkpoint = open_checkpoint(golden / "checkpoints" / case["checkpoint"], case["config_overrides"])
    return build_processor(checkpoint.config, _tokenizer(golden, case), parity=parity)


def _messages(golden: Path, prompt: list[dict[str, str]]) -> list[dict[str, Any]]:
    kinds = {"text": str, "image": lambda path: Image(golden / path), "video": lambda path: Video(golden / path)}
    return [{"role": "user", "content": [kinds[kind](value) for part in prompt for kind, value in part.items()]}]


def _parity_of(case: Case, prompts: list[list[dict[str, str]]]) -> Parity:
    """The oddities a case shows: tiled images where several stand, video frames as images."""
    several = max(sum("image" in part for part in prompt) for prompt in prompts) > 1
    tiled = several and "tiled" in case["name"]
    has_video = any("video" in part for prompt in prompts for part in prompt)
    return Parity(
        one_tile_for_several_images=not tiled,
        video_as_images=has_video and "video" not in case["media"],
    )


def _check_media(inputs: ModelInputs, case: Case) -> None:
    tiles = {"image": [image.tiles for image in inputs.images], "video": [video.tiles for video in inputs.videos]}
    assert {kind for kind, found in tiles.items() if found} == set(case["media"])
    for kind, expected in case["media"].items():
        assert _sha256(torch.cat(tiles[kind])) == expected["pixel_sha256"]
    shapes = [list(tile.shape) for image in tiles["image"] for tile in image]
    assert shapes == case["media"].get("image", {"shapes": []})["shapes"]
    shapes = [list(video.shape) for video in tiles["video"]]
    assert shapes == case["media"].get("video", {"shapes": []})["shapes"]
    _check_blocks(inputs, case.get("block_sizes"))


def _check_blocks(inputs: ModelInputs, expected: list[list[int] | None] | None) -> None:
    if expected is None:
        return
    found = [image.plan.grids[-1] if len(image.plan.grids) > 1 else None for image in inputs.images]
    assert [grid and [grid.rows, grid.cols] for grid in found] == expected


def _sha256(tiles: torch.Tensor) -> str:
    assert tiles.dtype == torch.float32
    return hashlib.sha256(tiles.numpy().astype("<f4").tobytes()).hexdigest()


@pytest.mark.filterwarnings(f"ignore::{MediaWarning.__module__}.MediaWarning")
def test_prompts(golden: Path, asked: Path) -> None:
    case = _read(asked)
    prompts = case["prompts"] if case["kind"] == "batch" else [case["prompt"]]
    processor = _processor(golden, case, _parity_of(case, prompts))
    inputs = processor([_messages(golden, prompt) for prompt in prompts])
    expected = case["prompt_text"] if case["kind"] == "batch" else [case["prompt_text"]]
    assert list(inputs.prompt_text) == expected
    assert [ids.tolist() for ids in inputs.input_ids] == case["input_ids"]
    _check_media(inputs, case)


def test_images_to_embed(golden: Path, encoded: Path) -> None:
    case = _read(encoded)
    processor = _processor(golden, case, Parity(one_tile_for_several_images=True))
    tilers = {True: processor.tiler_for(1), False: processor.tiler_for(2)}
    images = tuple(tilers[item["tiled"]](Image(golden / item["image"]).load()) for item in case["items"])
    _check_media(ModelInputs(input_ids=(), images=images), case)
    grids = [[image.plan.output_grid.rows, image.plan.output_grid.cols] for image in images]
    assert grids == case["merged_block_sizes"]


def test_training_samples(golden: Path, trained: Path) -> None:
    case = _read(trained)
    processor = _processor(golden, case, Parity(greedy_label_matching=True))
    inputs = processor.for_training([read_llava(record, folder=golden) for record in case["instances"]])
    assert inputs.labels is not None
    samples = case["samples"]
    assert [ids.tolist() for ids in inputs.input_ids] == [sample["input_ids"] for sample in samples]
    assert [ids.tolist() for ids in inputs.labels] == [sample["labels"] for sample in samples]
    for row, sample in enumerate(samples):
        slots = [slot for slot in inputs.media_plan if slot.row == row]
        images = [inputs.images[slot.index] for slot in slots if slot.kind == "image"]
        assert sum(len(image.tiles) for image in images) == sample["n_images"]
        assert sum(slot.kind == "video" for slot in slots) == sample["n_videos"]
        _check_blocks(ModelInputs(input_ids=(), images=tuple(images)), sample["block_sizes"])


def test_default_labels_see_the_same_ids(golden: Path, trained: Path) -> None:
    case = _read(trained)
    records = [read_llava(record, folder=golden) for record in case["instances"]]
    inputs = _processor(golden, case, Parity()).for_training(records)
    assert [ids.tolist() for ids in inputs.input_ids] == [sample["input_ids"] for sample in case["samples"]]


def _text_messages(item: Case) -> list[dict[str, str]]:
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    system = [{"role": "system", "content": ""}] if item["no_system_prompt"] else []
    return system + [{"role": roles[entry["from"]], "content": entry["value"]} for entry in item["conversation"]]


def test_labels(golden: Path, conversations: Path) -> None:
    case = _read(conversations)
    tokenizer = _tokenizer(golden, case)
    for item in case["items"]:
        labelled = match_greedily(tokenizer, _text_messages(item))
        assert list(labelled.input_ids) == item["input_ids"], item["name"]
        assert list(labelled.labels) == item["labels"], item["name"]


def test_default_labels_differ_only_where_an_answer_has_a_newline(golden: Path, conversations: Path) -> None:
    case = _read(conversations)
    tokenizer = _tokenizer(golden, case)
    for item in case["items"]:
        messages = _text_messages(item)
        labelled = label_answers(tokenizer, messages)
        assert list(labelled.input_ids) == item["input_ids"], item["name"]
        answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
        learnt = [token for token in labelled.labels if token != -100]
        assert tokenizer.decode(learnt) == "".join(f"{answer}{tokenizer.eos_token}" for answer in answers)
        if not any("\n" in answer for answer in answers) and not item["upstream_gave_up"]:
            assert list(labelled.labels) == item["labels"], item["name"]


@pytest.fixture(params=["tokenizer.json", "vocab.json and merges.txt", "saved", "saved, then without tokenizer.json"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def _in_form(tokenizer_folder: Path, form: str, scratch: Path) -> Path:
    folder = tokenizer_folder
    if form.startswith("saved"):
        folder = scratch / "saved"
        Tokenizer.from_folder(tokenizer_folder).save(folder)
    if form == "tokenizer.json" or form == "saved":
        return folder
    bare = scratch / "bare"
    names = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
    bare.mkdir()
    for name in names:
        shutil.copy(folder / name, bare)
    return bare


def test_vocabulary(golden: Path, vocabulary: Path, form: str, tmp_path: Path) -> None:
    case = _read(vocabulary)
    folder = golden / "checkpoints" / case["checkpoint"] / "llm"
    tokenizer = Tokenizer.from_folder(_in_form(folder, form, tmp_path))
    for entry in case["texts"]:
        assert tokenizer.encode(entry["text"]) == entry["ids"]
        assert tokenizer.decode(entry["ids"]) == entry["decoded"]
        assert tokenizer.decode(entry["ids"], skip_special_tokens=True) == entry["decoded_skip_special"]
    for chat in case["chat"]:
        text = tokenizer.template.render(chat["messages"], add_generation_prompt=chat["add_generation_prompt"])
        assert text == chat["text"]
        assert tokenizer.encode(text) == chat["ids"]
    special = case["special"]
    assert (tokenizer.eos_token, tokenizer.eos_id) == (special["eos"], special["eos_id"])
    assert (tokenizer.pad_token, tokenizer.pad_id) == (special["pad"], special["pad_id"])
    assert tokenizer.bos_id == special["bos_id"]
    assert tokenizer.sentinel_id == special["sentinel_id"]
    assert {"image": tokenizer.image_id, "video": tokenizer.video_id} == special["media_token_ids"]
    assert sorted(tokenizer.eos_ids) == sorted(special["stop_token_ids"])
    assert (len(tokenizer), tokenizer.vocab_size) == (special["len_tokenizer"], special["vocab_size"])
    assert list(tokenizer.newline_ids) == special["newline_ids"]


def _sampling(golden: Path, kind: str) -> Iterator[Case]:
    yield from _read(golden / "frame_sampling.json")[kind]


def test_frames_of_a_folder(golden: Path) -> None:
    for entry in _sampling(golden, "directory"):
        frames = Video(golden / entry["video"]).load(num_frames=entry["num_frames"])
        assert list(frames.timestamps) == entry["chosen"]


def test_frames_of_a_file(golden: Path) -> None:
    clip = _read(golden / "frame_sampling.json")["numbered"]
    for entry in _sampling(golden, "file"):
        video = Video(golden / clip["file"], num_frames=entry["num_frames"], fps=entry["fps"])
        frames = video.load(cut_at_limit=True)
        assert [_written_number(frame) for frame in frames.frames] == entry["chosen"]
        assert [round(second * clip["fps"]) for second in frames.timestamps] == entry["chosen"]


def _written_number(frame: Any) -> int:
    """The number that a frame of the numbered clip shows as six squares, bit 0 leftmost."""
    row = np.asarray(frame.convert("L"))[frame.height // 2]
    return sum(int(row[int((bit + 0.5) * frame.width / 6)] > 127) << bit for bit in range(6))
