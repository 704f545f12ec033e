"""Compressors that need more than tokens: what the tower attended to, read from the host as it runs."""

import copy
from typing import Any

import pytest
import torch
from nvila_compress import PruMerge, VisionZip, attention_received, build
from nvila_compress.adapters import attach, detach

transformers = pytest.importorskip("transformers")
import tiny_hosts  # noqa: E402
from tiny_hosts import Case  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def embeddings(case: Case, inputs: Any) -> torch.Tensor:
    """What stands at the placeholders when the language model reads them."""
    seen: list[torch.Tensor] = []
    inputs.pop("labels", None)
    hook = case.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        case.model(**inputs)
    hook.remove()
    return seen[0][inputs["input_ids"] == case.token_id]


def attentions(case: Case, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """By the host's own way: all of the tower computes eagerly and hands its attention out."""
    tower = copy.deepcopy(case.model.model.vision_tower)
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        return tower(pixels, output_attentions=True).attentions[layer]


@pytest.mark.parametrize("method", [VisionZip(12), PruMerge(12)])
@pytest.mark.parametrize(("name", "layer", "class_token"), [("llava", -2, True), ("gemma3", -1, False)])
def test_attention_is_that_of_the_tower(name: str, layer: int, class_token: bool, method: Any) -> None:
    case = tiny_hosts.make(name)
    fresh = copy.deepcopy(case)
    tokens = embeddings(fresh, fresh.inputs((2,))).unflatten(0, (2, 36))
    pixels = fresh.inputs((2,))["pixel_values"]
    received = attention_received(attentions(fresh, pixels, layer), class_token=class_token)
    if name == "gemma3":  # one token of 2 x 2 patches
        received = torch.nn.functional.avg_pool2d(received.view(2, 1, 12, 12), 2).view(2, 36)
    expected = method(tokens, (6, 6), attention=received).flatten(0, 1)
    attach(case.model, case.processor, copy.deepcopy(method))
    torch.testing.assert_close(embeddings(case, case.inputs((2,))), expected, rtol=1e-4, atol=1e-5)
    detach(case.model, case.processor)
    assert torch.equal(embeddings(case, case.inputs((2,))), embeddings(fresh, fresh.inputs((2,))))


ATTENTION = [
    "llava", "vipllava", "video_llava", "paligemma", "idefics3", "smolvlm", "internvl", "aya_vision", "gemma3",
    "llava_next", "llava_onevision", "llava_next_video",
]  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_generates_with_attention(name: str) -> None:
    case = tiny_hosts.make(name)
    attach(case.model, case.processor, "visionzip-25%")
    inputs = case.inputs((2, 1))
    inputs.pop("labels", None)
    with torch.no_grad():
        out = case.model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert out.shape == (2, inputs["input_ids"].shape[1] + 2)


@pytest.mark.parametrize("method", ["evs-25%", "vidcom2-25%", "fastvid-25%"])
@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video", "video_llava", "qwen2_vl"])
def test_video_methods(name: str, method: str) -> None:
    case = tiny_hosts.make(name)
    if method.startswith("fastvid") and name in ("video_llava", "qwen2_vl"):
        with pytest.raises(ValueError, match=f"FastVID needs attention, which is not read from {name} hosts"):
            attach(case.model, case.processor, method)
        return
    before = case.video_inputs()["input_ids"].shape[1]
    attach(case.model, case.processor, method)
    inputs = case.video_inputs(videos=2)
    assert inputs["input_ids"].shape[1] < before
    with torch.no_grad():
        out = case.model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert out.shape == (1, inputs["input_ids"].shape[1] + 2)


@pytest.mark.parametrize("name", ["idefics2", "llama4", "qwen2_vl", "mistral3"])
def test_hosts_that_give_no_attention(name: str) -> None:
    case = tiny_hosts.make(name)
    with pytest.raises(
        ValueError, match=f"VisionZip needs attention, which is not read from {case.model.config.model_type}"
    ):
        attach(case.model, case.processor, build("visionzip-25%"))
