"""A block in graphs against the same block in torch."""

from collections.abc import Callable

import pytest
import torch
from nvila_kernels import W4A16, QuantPolicy, quantize_
from nvila_kernels.cpu import Choice
from nvila_kernels.cpu.matmul_nbits import NBITS_FLOAT
from nvila_model import graph_block as module
from nvila_model.graph_block import GraphBlock, graph_block
from nvila_model.joined import join_
from nvila_model.qwen2 import Block, Qwen2, causal_mask
from nvila_model.settled import settle_language
from torch import Tensor

LAYERS = 2
FLOATS: Callable[..., Choice] = lambda *_, **__: Choice(  # noqa: E731
    kernels={"decode": NBITS_FLOAT.name, "prefill": NBITS_FLOAT.name}, bytes=1.0
)


@pytest.fixture
def llm() -> Qwen2:
    torch.manual_seed(0)
    made = Qwen2(vocab_size=32, width=64, layers=LAYERS, heads=4, kv_heads=2, mlp_width=96, tied=True).eval()
    for name, parameter in made.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    quantize_(made.layers, QuantPolicy((("*", W4A16(group_size=32)),)))
    return made


@pytest.fixture
def graphs(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Qwen2]:
    """Turns the blocks into graphs that round nothing."""
    monkeypatch.setattr(module, "chosen", FLOATS)

    def turn() -> Qwen2:
        done = settle_language(llm)
        assert [each.name for each in done] == [
            f"layers.{index}.{part}" for index in range(LAYERS) for part in ("before", "behind")
        ]
        assert all(isinstance(layer, GraphBlock) for layer in llm.layers)
        return llm

    return turn


def talk(llm: Qwen2) -> list[Tensor]:
    """A prompt of two rows, one padded, then two tokens; and plain causal attention on one row."""
    embeds = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1))
    cache = llm.cache(2, 12)
    mask = causal_mask(7, 0, device=embeds.device).repeat(2, 1, 1, 1)
    mask[1, :, :, :2] = False
    mask[1, :, :2, 0] = True  # rows of padding look somewhere
    positions = torch.stack([torch.arange(7), (torch.arange(7) - 2).clamp(min=0)])
    found = [llm(embeds, positions=positions, mask=mask, cache=cache)]
    for step in range(2):
        seen = torch.cat([mask[:, :, -1:, :7], torch.ones(2, 1, 1, step + 1, dtype=torch.bool)], dim=-1)
        at = positions[:, -1:] + step + 1
        found.append(llm(embeds[:, step : step + 1], positions=at, mask=seen, cache=cache))
    wanted = torch.tensor([[False, True, True, False, False, False, True]])
    return [*found, llm(embeds[:1]), llm(embeds[:1], wanted=wanted)]


def test_says_what_the_block_says(llm: Qwen2, graphs: Callable[[], Qwen2]) -> None:
    with torch.inference_mode():
        expected = talk(llm)
        found = talk(graphs())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_lower_precision_outside_stays_outside(llm: Qwen2, graphs: Callable[[], Qwen2]) -> None:
    x = torch.randn(1, 5, 64)
    with torch.inference_mode():
        expected = llm(x)
        graphs().norm.bfloat16()
        found = llm(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_a_graph_is_one_operator_when_compiled(llm: Qwen2, graphs: Callable[[], Qwen2]) -> None:
    x = torch.randn(1, 5, 64)
    torch.compiler.reset()
    with torch.inference_mode():
        compiled = torch.compile(graphs(), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), llm(x))


def test_a_graph_cannot_be_saved(graphs: Callable[[], Qwen2]) -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.before is packed for this machine and cannot be saved"):
        graphs().state_dict()


def test_blocks_stay_where_kernels_differ(llm: Qwen2, monkeypatch: pytest.MonkeyPatch) -> None:
    block = llm.layers[0]
    assert isinstance(block, Block)
    monkeypatch.setattr(module, "chosen", FLOATS)
    assert graph_block(block) is None  # its layers are not joined
    join_(block)
    kernels = iter([NBITS_FLOAT.name, "torch int4", NBITS_FLOAT.name, NBITS_FLOAT.name])
    monkeypatch.setattr(module, "chosen", lambda *_, **__: Choice(kernels={"decode": next(kernels)}, bytes=1.0))
    assert graph_block(block) is None
    monkeypatch.setattr(module, "chosen", lambda *_, **__: Choice(kernels={"decode": "torch int4"}, bytes=1.0))
    assert graph_block(block) is None


def test_float_blocks_stay() -> None:
    block = Block(64, heads=4, kv_heads=2, head_dim=16, mlp_width=96, eps=1e-6)
    assert graph_block(block) is None
