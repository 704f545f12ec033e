"""Prompts and batches: from messages to scores and greedy answers, against the reference."""

import pytest
import torch
from nvila_model import Sampling
from nvila_model.generation.decoding import generate

pytestmark = pytest.mark.filterwarnings("ignore:.* in the text is removed")

KINDS = ("prompt", "batch")
FEATURES = {"atol": 1e-4, "rtol": 0}
LOGITS = {"atol": 2e-4, "rtol": 0}


@torch.no_grad()
def test_embeddings(golden_case, loaded):
    model = loaded(golden_case)
    inputs, expected = model.processor(golden_case.conversations), golden_case.tensors
    images, videos = model.encode_images(inputs.images), model.encode_video(inputs.videos)
    flat = {"image": [tokens for image in images for tokens in image], "video": videos}
    for kind, media in flat.items():
        shapes = golden_case.facts.get("media_embeds_shapes", {}).get(kind, [])
        assert [list(tokens.shape) for tokens in media] == shapes
        for index, tokens in enumerate(media):
            if (name := f"media_embeds.{kind}.{index}") in expected:
                torch.testing.assert_close(tokens, expected[name], **FEATURES)
    fused = model.embed(inputs)
    assert list(fused.embeds.shape) == golden_case.facts["inputs_embeds_shape"]
    assert list(fused.lengths) == golden_case.facts["valid_lengths"]
    assert torch.equal(fused.mask, expected["attention_mask"].bool())
    if "inputs_embeds" in expected:
        torch.testing.assert_close(fused.embeds[fused.mask], expected["inputs_embeds"][fused.mask], **FEATURES)


@torch.no_grad()
def test_token_counts_are_known_before_any_compute(golden_case, loaded):
    model = loaded(golden_case)
    inputs = model.processor(golden_case.conversations)
    assert list(inputs.token_counts(model.image_tokens, model.video_tokens)) == golden_case.facts["valid_lengths"]


@torch.no_grad()
def test_logits(golden_case, loaded):
    model = loaded(golden_case)
    output = model(model.processor(golden_case.conversations))
    keep, expected = output.fused.mask, golden_case.tensors
    logits = output.logits[..., : golden_case.facts["logits_vocab"]]
    assert output.logits.shape[-1] == golden_case.facts["model_vocab_after_load"]
    if "logits" in expected:
        torch.testing.assert_close(logits[keep], expected["logits"][keep], **LOGITS)
    if "logits_tail" in expected:
        tail = golden_case.facts["logits_tail_positions"]
        torch.testing.assert_close(
            logits[:, -tail:][keep[:, -tail:]], expected["logits_tail"][keep[:, -tail:]], **LOGITS
        )
        torch.testing.assert_close(logits.logsumexp(-1)[keep], expected["logits_lse"][keep], **LOGITS)
        assert torch.equal(logits.argmax(-1)[keep], expected["logits_argmax"][keep])


@torch.no_grad()
def test_stages(golden_case, loaded):
    """What lies between tiles and embeddings, in the cases that stored it."""
    from nvila_tiling import merge_scales

    model, expected = loaded(golden_case), golden_case.tensors
    inputs = model.processor(golden_case.conversations)
    tiles = [media.tiles for media in (*inputs.images, *inputs.videos)]
    if "vision_features.0" in expected:
        features = model.features(torch.cat(tiles))
        torch.testing.assert_close(features, expected["vision_features.0"], **FEATURES)
        for index, name in enumerate(sorted(name for name in expected if name.startswith("merged_features."))):
            maps = merge_scales(features, [image.plan for image in inputs.images])
            torch.testing.assert_close(maps[index].permute(2, 0, 1)[None], expected[name], **FEATURES)
    if "projector_input.0" in expected or "projector_output.0" in expected:
        seen = {}
        hooks = [
            model.compressor.register_forward_pre_hook(lambda _, given: seen.setdefault("projector_input.0", given[0])),
            model.projector.register_forward_hook(lambda _, __, out: seen.setdefault("projector_output.0", out)),
        ]
        model.encode_images(inputs.images)
        model.encode_video(inputs.videos)
        for hook in hooks:
            hook.remove()
        for name, tensor in seen.items():
            if name in expected:
                torch.testing.assert_close(tensor, expected[name], **FEATURES)
    if "hidden_states.0" in expected:
        states = model.llm.hidden_states(model.embed(inputs).embeds)
        for index, state in enumerate(states):
            torch.testing.assert_close(state, expected[f"hidden_states.{index}"], **FEATURES)


@torch.no_grad()
def test_greedy_answers(golden_case, loaded):
    model = loaded(golden_case)
    inputs = model.processor(golden_case.conversations)
    for key in ("greedy", "greedy_with_other_eos"):
        if (wanted := golden_case.facts.get(key)) is None:
            continue
        sampling = Sampling(max_new_tokens=wanted.get("max_new_tokens", 24))
        answers = generate(model, inputs, sampling, eos_ids=wanted["eos_token_ids"])
        for answer, ids in zip(answers, wanted["ids"], strict=True):
            assert list(answer.ids) == ids[: len(answer.ids)]
            assert len(answer.ids) == len(ids) or answer.ids[-1] in wanted["eos_token_ids"]
        if "text" in wanted:
            assert [answer.text for answer in answers] == wanted["text"]


@torch.no_grad()
def test_stream_equals_generate(golden_case, loaded):
    model = loaded(golden_case)
    for conversation in golden_case.conversations:
        sampling = Sampling(max_new_tokens=8)
        assert "".join(model.stream(conversation, sampling)) == model.generate(conversation, sampling).text
