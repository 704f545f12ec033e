"""NVILA-Lite in the Hugging Face layout, as a public implementation runs it (``DIR/hf_lite``)."""

import json
from pathlib import Path

import pytest
import torch
from nvila_model import NVILA, Image, Parity, Sampling, Video, export
from PIL import Image as Pillow
from safetensors.torch import load_file

MAIN = Parity(one_tile_for_several_images=True)


def message(golden: Path, parts: list) -> list[dict]:
    """The parts of a case as one message; a video is all of its frames."""
    content: list[str | Image | Video] = []
    for part in parts:
        if isinstance(part, str):
            content.append(part)
        elif "image" in part:
            content.append(Image(golden / part["image"]))
        else:
            frames = [Pillow.open(golden / frame) for frame in part["video"]]
            content.append(Video(frames, num_frames=len(frames)))
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def lite(golden: Path) -> NVILA:
    if not (golden / "hf_lite").is_dir():
        pytest.skip(f"no reference values at {golden / 'hf_lite'}: pass --golden DIR")
    return NVILA.from_pretrained(golden / "hf_lite" / "checkpoint", dtype="float32", optimize=False, parity=MAIN)


@torch.no_grad()
def test_case(golden: Path, lite: NVILA, lite_case: Path) -> None:
    facts, expected = json.loads(lite_case.read_text()), load_file(lite_case.with_suffix(".safetensors"))
    inputs = lite.processor(message(golden, facts["parts"]))
    assert sum(len(image.tiles) for image in inputs.images) == facts["tiles"]
    assert list(inputs.token_counts(lite.image_tokens, lite.video_tokens)) == [facts["length"]]
    output = lite(inputs)
    assert list(output.fused.embeds.shape) == list(expected["inputs_embeds"].shape)
    torch.testing.assert_close(output.fused.embeds, expected["inputs_embeds"], atol=1e-4, rtol=0)
    tail = expected["logits_tail"]
    logits = output.logits[..., : tail.shape[-1]]
    torch.testing.assert_close(logits[:, -tail.shape[1] :], tail, atol=2e-4, rtol=0)
    torch.testing.assert_close(logits.logsumexp(-1), expected["logits_lse"], atol=2e-4, rtol=0)
    assert torch.equal(logits.argmax(-1), expected["logits_argmax"])
    answer = lite.generate(message(golden, facts["parts"]), Sampling(max_new_tokens=len(facts["greedy"])))
    assert list(answer.ids) == facts["greedy"]


@pytest.mark.parametrize("architectures", [["NVILALiteForConditionalGeneration"], ["Other"], None])
def test_model_type_goes_last(golden: Path, lite: NVILA, tmp_path: Path, architectures: list[str] | None) -> None:
    """Third parties write Lite models with ``model_type: nvila``: their architecture or projector is right."""
    for file in (golden / "hf_lite" / "checkpoint").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "nvila", "architectures": architectures}))
    again = NVILA.from_pretrained(tmp_path, dtype="float32", optimize=False)
    assert again.config == lite.config
    assert not again.processor.strip_messages


@pytest.mark.parametrize("layout", ["original", "hf"])
def test_other_layouts_read_every_message_alike(golden: Path, lite: NVILA, tmp_path: Path, layout: str) -> None:
    """A picture at the end of a message keeps its newline."""
    export(lite, tmp_path, layout=layout)
    again = NVILA.from_pretrained(tmp_path, dtype="float32", optimize=False, parity=MAIN)
    for file in (golden / "hf_lite" / "cases").glob("*.json"):
        given = message(golden, json.loads(file.read_text())["parts"])
        (mine,), (wanted,) = again.processor(given).input_ids, lite.processor(given).input_ids
        assert torch.equal(mine, wanted), file.stem
