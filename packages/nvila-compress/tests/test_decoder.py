"""FastV and PyramidDrop in tiny Llama and Qwen2 models, against layers run one by one with the tokens cut by hand."""

from typing import Any

import pytest
import torch
from nvila_compress.decoder import FastV, PyramidDrop, drop_tokens
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

IMAGE, LAYERS = 7, 4


def make(kind: str, attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**sizes, attn_implementation=attention)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.25)
    return model


@pytest.fixture(scope="module", params=["Llama", "Qwen2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param)


def prompt(images: int = 8, seed: int = 0) -> Tensor:
    text = torch.randint(8, 32, (5,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([text[:2], torch.full((images,), IMAGE), text[2:]])[None]


def by_hand(model: Any, ids: Tensor, counts: list[int], kept: list[list[int]] | None = None) -> Any:
    """Logits of the last token, and what entered each layer: full attention weights from the model itself.

    With ``kept`` the tokens of each layer are given instead of ranked.
    """
    hidden = model.model.embed_tokens(ids)
    here, entered = list(range(ids.shape[1])), []
    weights: Tensor = torch.empty(0)
    for index, layer in enumerate(model.model.layers):
        images = [i for i in here if ids[0, i] == IMAGE]
        wanted = set(here)
        if kept is not None:
            wanted = set(kept[index])
        elif counts[index] < len(images):
            received = weights[0, :, -1].mean(0)
            ranked = sorted(images, key=lambda i: -float(received[here.index(i)]))
            wanted = set(here) - set(ranked[counts[index] :])
        hidden = hidden[:, [here.index(i) for i in sorted(wanted)]]
        here = sorted(wanted)
        entered.append(here)
        places = torch.tensor([here])
        rotation = model.model.rotary_emb(hidden, places)
        mask = torch.full((len(here), len(here)), torch.finfo(torch.float32).min).triu(1)[None, None]
        normed = layer.input_layernorm(hidden)
        attended, weights = layer.self_attn(hidden_states=normed, position_embeddings=rotation, attention_mask=mask)
        hidden = hidden + attended
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))[:, -1], entered


SCHEDULES = [FastV(2, 0.5), FastV(1, 3), PyramidDrop(4, 0.5), PyramidDrop(2, 0.25)]


def test_counts_by_hand() -> None:
    assert FastV(2, 0.5).counts(576, 32) == [576] * 2 + [288] * 30
    assert PyramidDrop(4, 0.5).counts(576, 32) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert FastV(1, 3).counts(8, 3) == [8, 3, 3]
    assert FastV(1, 30).counts(8, 3) == [8, 8, 8]
    assert FastV().counts(0, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_prefill_and_decode(model: nn.Module, schedule: FastV) -> None:
    """Logits, what each layer's cache holds, and three steps of decoding, as cut by hand in an eager twin."""
    eager = make(type(model).__name__.removesuffix("ForCausalLM"), "eager")
    eager.load_state_dict(model.state_dict())
    ids, counts = prompt(), schedule.counts(8, LAYERS)
    expected, entered = by_hand(eager, ids, counts)
    with drop_tokens(model, schedule, image_token_id=IMAGE) as dropping:
        out = model(input_ids=ids, use_cache=True)
        torch.testing.assert_close(out.logits[:, -1], expected, rtol=1e-4, atol=1e-4)
        for index, places in enumerate(entered):
            assert len(places) == 5 + counts[index]
            assert out.past_key_values.layers[index].keys.shape[2] == len(places)
            if dropping.positions[index] is not None:
                assert dropping.positions[index].tolist() == [places]
        cache, following = out.past_key_values, ids
        for step in range(3):
            token = out.logits[:, -1:].argmax(-1)
            following = torch.cat([following, token], dim=1)
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
            kept = [[*places, *range(13, 14 + step)] for places in entered]
            expected, _ = by_hand(eager, following, counts, kept)
            torch.testing.assert_close(out.logits[:, -1], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_generate_is_the_same_step_by_step(model: nn.Module) -> None:
    with drop_tokens(model, FastV(2, 0.25), image_token_id=IMAGE):
        out = model(input_ids=prompt(), use_cache=True)
        tokens = [out.logits[:, -1].argmax(-1)]
        for _ in range(4):
            out = model(input_ids=tokens[-1][:, None], past_key_values=out.past_key_values)
            tokens.append(out.logits[:, -1].argmax(-1))
        settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "eos_token_id": 31}
        answer = model.generate(prompt(), **settings)
        assert answer[0, 13:].tolist() == torch.cat(tokens).tolist() or 31 in torch.cat(tokens)
        beams = model.generate(prompt(), **settings, num_beams=3)
        assert beams.shape == answer.shape


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_left_padding_and_batches(attention: str) -> None:
    """Padded on the left, beside another prompt: the same answers as alone, step after step."""
    model = make("Qwen2", attention)
    first, second = prompt(seed=1), torch.cat([torch.tensor([[9, 10, 11]]), prompt(seed=2)], dim=1)
    padded = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), first], dim=1), second])
    mask = (padded != 0).long()
    with drop_tokens(model, PyramidDrop(4, 0.5), image_token_id=IMAGE):
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "output_logits": True,
                    "return_dict_in_generate": True}  # fmt: skip
        together = model.generate(padded, attention_mask=mask, **settings)
        for row, alone in enumerate((first, second)):
            single = model.generate(alone, attention_mask=torch.ones_like(alone), **settings)
            for a, b in zip(single.logits, together.logits, strict=True):
                torch.testing.assert_close(a[0], b[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_keeping_all_and_removing_change_nothing(model: nn.Module) -> None:
    ids = prompt()
    before = model(input_ids=ids).logits
    dropping = drop_tokens(model, FastV(1, 1.0), image_token_id=IMAGE)
    assert torch.equal(model(input_ids=ids).logits, before)
    dropping.remove()
    dropping = drop_tokens(model, FastV(1, 0.5), image_token_id=IMAGE)
    assert model(input_ids=ids).logits.shape[1] == 9
    text = torch.randint(8, 32, (1, 6))
    cut = model(input_ids=text).logits
    dropping.remove()
    assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=text).logits, cut), "a prompt without images is left alone"
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_a_second_turn_of_text(model: nn.Module) -> None:
    """More text after the answer: the mask of several queries over a cut cache."""
    more = torch.tensor([[8, 9, 10]])
    with drop_tokens(model, FastV(2, 0.5), image_token_id=IMAGE):
        cache = model(input_ids=prompt(), use_cache=True).past_key_values
        chunk = model(input_ids=more, past_key_values=cache).logits[:, -1]
        cache = model(input_ids=prompt(), use_cache=True).past_key_values
        for token in more[0]:
            single = model(input_ids=token.view(1, 1), past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(chunk, single, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="an image after the first prefill"):
            model(input_ids=prompt(), past_key_values=cache)


@torch.no_grad()
def test_in_a_vision_language_model() -> None:
    """A LLaVA knows its image token; its language model sees fewer of them."""
    text = make("Llama").config
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    pixels, ids = torch.randn(1, 3, 12, 12), prompt(9)
    with drop_tokens(model, PyramidDrop(4, 0.5)) as dropping:
        out = model.generate(
            input_ids=ids, pixel_values=pixels, max_new_tokens=3, min_new_tokens=3, do_sample=False,
            return_dict_in_generate=True,
        )  # fmt: skip
        lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        assert lengths == [5 + 2 + count for count in (9, 5, 2, 1)]
        assert dropping.positions[3].shape == (1, 6)


def test_refusals(model: nn.Module) -> None:
    for wrong, message in [
        (lambda: FastV(0), "layer 0 < 1"),
        (lambda: FastV(2, 0), "keep 0 < 1"),
        (lambda: PyramidDrop(1), "stages 1, keep 0.5: pass at least 2 stages"),
        (lambda: PyramidDrop(4, 1.0), "stages 4, keep 1.0"),
        (lambda: drop_tokens(model, FastV(4), image_token_id=IMAGE), "drops after layer 4 of 4: pass at least 1"),
        (lambda: drop_tokens(model, PyramidDrop(5), image_token_id=IMAGE), "4 layers make no 5 stages"),
        (lambda: drop_tokens(model, FastV()), "names no image token in its config: pass image_token_id="),
        (lambda: drop_tokens(nn.Linear(1, 1), FastV()), "Linear holds 0 decoders of kind LlamaModel or Qwen2Model"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    with drop_tokens(model, FastV(), image_token_id=IMAGE):
        with pytest.raises(ValueError, match="rows with 8 and 9 image tokens"):
            model(input_ids=torch.cat([prompt(8), torch.full((1, 13), IMAGE).index_fill(1, torch.arange(4), 9)]))
        with pytest.raises(ValueError, match="no logits to compare labels with"):
            model(input_ids=prompt(), labels=prompt())
        cache = transformers.StaticCache(config=model.config, max_cache_len=32)
        with pytest.raises(ValueError, match="a static cache has room for all tokens"):
            model(input_ids=prompt(), past_key_values=cache)


def test_sliding_windows_are_refused() -> None:
    config = make("Qwen2").config
    config.layer_types = ["full_attention", "sliding_attention"] * 2
    config.use_sliding_window, config.sliding_window = True, 8
    with pytest.raises(ValueError, match="sliding windows"):
        drop_tokens(transformers.Qwen2ForCausalLM(config), FastV(), image_token_id=IMAGE)
