"""Our Qwen2 against transformers' with the same random weights, and its own laws."""

import nvila_model.generation.prompt as reading
import pytest
import torch
from nvila_model.network.masks import padding_mask
from nvila_model.network.qwen2 import Qwen2

SIZES = {"vocab_size": 97, "width": 48, "layers": 3, "heads": 6, "kv_heads": 2, "mlp_width": 80}


def make(**changes: object) -> Qwen2:
    torch.manual_seed(0)
    return Qwen2(**(SIZES | changes)).eval()


def reference(ours: Qwen2, *, tied: bool, factor: float):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rope = {"rope_theta": ours.rope_theta, "rope_type": "linear" if factor > 1 else "default", "factor": factor}
    config = Qwen2Config(
        vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=80, rms_norm_eps=1e-6, tie_word_embeddings=tied, rope_parameters=rope,
    )  # fmt: skip
    theirs = Qwen2ForCausalLM(config).eval()
    state = {(name if name.startswith("lm_head") else f"model.{name}"): t for name, t in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if tied else [])
    return theirs


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_equals_transformers(tied: bool, factor: float):
    ours = make(tied=tied, rope_factor=factor)
    theirs = reference(ours, tied=tied, factor=factor)
    ids = torch.randint(97, (2, 19))
    states = ours.hidden_states(ours.embed_tokens(ids))
    expected = theirs(ids, output_hidden_states=True)
    torch.testing.assert_close(ours.logits(states[-1]), expected.logits, atol=1e-5, rtol=0)
    assert len(states) == len(expected.hidden_states)
    for state, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, other, atol=1e-5, rtol=0)


def test_gradients_equal_those_of_transformers():
    ours = make()
    theirs = reference(ours, tied=False, factor=1.0)
    ids = torch.randint(97, (2, 11))
    ours.logits(ours(ours.embed_tokens(ids))).square().mean().backward()
    theirs(ids).logits.square().mean().backward()
    for name, parameter in theirs.named_parameters():
        mine = ours.get_parameter(name.removeprefix("model."))
        torch.testing.assert_close(mine.grad, parameter.grad, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 6], [12]])
@torch.no_grad()
def test_cached_equals_uncached(chunks: list[int]):
    model = make()
    embeds = torch.randn(2, 12, 48)
    cache = model.cache(2, 12)
    parts = [model(part, cache=cache) for part in embeds.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(embeds), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [1, 3])
def test_wanted_states_are_those_of_all(layers: int):
    """Of any positions, none of a row included, and with their gradients."""
    ours = make(layers=layers)
    embeds = torch.randn(3, 9, 48, requires_grad=True)
    wanted = torch.rand(3, 9) < 0.4
    wanted[1] = False
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, 9, 9)
    for options in ({}, {"mask": mask}):
        found, expected = ours(embeds, wanted=wanted, **options), ours(embeds, **options)[wanted]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        mine, theirs = (torch.autograd.grad(each.square().mean(), embeds)[0] for each in (found, expected))
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_padded_batch_equals_its_rows(side: str):
    model = make()
    rows = [torch.randn(length, 48) for length in (7, 12, 1)]
    embeds = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    keep = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True, padding_side=side
    )
    mask = padding_mask(keep)
    assert (mask is None) == (side == "right")
    out = model(embeds, positions=(keep.cumsum(1) - 1).clamp(min=0), mask=mask)
    for row, found, kept in zip(rows, out, keep, strict=True):
        torch.testing.assert_close(found[kept], model(row[None])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_prompt_read_in_pieces_equals_the_whole(monkeypatch: pytest.MonkeyPatch, side: str):
    model = make()
    embeds = torch.randn(2, 12, 48)
    keep = torch.ones(2, 12, dtype=torch.bool)
    keep[0, slice(5) if side == "left" else slice(7, None)] = False
    positions, mask = (keep.cumsum(1) - 1).clamp(min=0), padding_mask(keep)
    whole, pieces = model.cache(2, 12), model.cache(2, 12)
    expected = model(embeds, positions=positions, mask=mask, cache=whole)[:, -1]
    monkeypatch.setattr(reading, "PIECE", 5)
    found = reading.prefill(model, embeds, positions=positions, mask=mask, cache=pieces)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert pieces.length == 12
    torch.testing.assert_close(pieces.keys, whole.keys, atol=1e-5, rtol=0)
    torch.testing.assert_close(pieces.values, whole.values, atol=1e-5, rtol=0)


def test_checkpointing_changes_no_gradient():
    embeds = torch.randn(2, 9, 48)
    grads = []
    for enabled in (False, True):
        model = make().train()
        model.gradient_checkpointing = enabled
        model(embeds).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.layers.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], atol=1e-7, rtol=1e-5)


def test_a_full_cache_says_so():
    model = make()
    cache = model.cache(1, 4)
    with pytest.raises(ValueError, match="position 5 is beyond the cache of 4"):
        model(torch.randn(1, 5, 48), cache=cache)


def test_heads_must_divide():
    with pytest.raises(ValueError, match="6 query heads cannot be shared by 4"):
        make(kv_heads=4)
