"""Folds against peers of torch and transformers, and against plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_compress import (
    AdaptivePool,
    AveragePool,
    CAbstractor,
    NestedPool,
    PixelShuffle,
    SpatialToChannel,
    TokenPacker,
)
from torch import Tensor, nn

SIDES = {"rows": st.integers(1, 9), "columns": st.integers(1, 9)}


def draw(rows: int, columns: int, c: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 10 + columns)
    return torch.randn(2, rows * columns, c, dtype=torch.float64, generator=generator)


def test_pixel_shuffle_is_that_of_the_models() -> None:
    pytest.importorskip("transformers")
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.internvl.modeling_internvl import InternVLModel
    from transformers.models.llama4.modeling_llama4 import pixel_shuffle

    tokens = draw(6, 6)
    ours = PixelShuffle(2)(tokens)
    assert torch.equal(ours, Idefics3Connector.pixel_shuffle(None, tokens, 2))
    assert torch.equal(ours, InternVLModel.pixel_shuffle(None, tokens.view(2, 6, 6, 3), 0.5).reshape(2, 9, 12))
    assert torch.equal(ours, pixel_shuffle(tokens, 0.5))
    assert torch.equal(ours, SpatialToChannel(2)(tokens))


def test_channel_major_is_torchs() -> None:
    tokens = draw(4, 6)
    map_ = tokens.view(2, 4, 6, 3).permute(0, 3, 1, 2)
    ours = PixelShuffle(2, order="channel_major")(tokens, (4, 6))
    assert torch.equal(ours, nn.PixelUnshuffle(2)(map_).flatten(2).mT)
    assert torch.equal(ours, nn.functional.unfold(map_, 2, stride=2).mT)


@settings(max_examples=40, deadline=None)
@given(**SIDES, factor=st.integers(1, 4))
def test_average_pool_is_the_mean_of_each_block(rows: int, columns: int, factor: int) -> None:
    tokens = draw(rows, columns)
    map_ = tokens.view(2, rows, columns, 3)
    expected = [
        map_[:, i : i + factor, j : j + factor].mean((1, 2))
        for i in range(0, rows, factor)
        for j in range(0, columns, factor)
    ]
    torch.testing.assert_close(AveragePool(factor)(tokens, (rows, columns)), torch.stack(expected, dim=1))


@settings(max_examples=40, deadline=None)
@given(**SIDES, out=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_adaptive_pool_by_hand(rows: int, columns: int, out: tuple[int, int]) -> None:
    tokens = draw(rows, columns)
    map_ = tokens.view(2, rows, columns, 3)
    h, w = min(rows, out[0]), min(columns, out[1])
    expected = [
        map_[:, i * rows // h : -(-(i + 1) * rows // h), j * columns // w : -(-(j + 1) * columns // w)].mean((1, 2))
        for i in range(h)
        for j in range(w)
    ]
    torch.testing.assert_close(AdaptivePool(out)(tokens, (rows, columns)), torch.stack(expected, dim=1))


def test_nested_levels_are_nested() -> None:
    """The papers' counts, and each level the pooled one before it."""
    nested = NestedPool(0, levels=6)
    tokens, counts = draw(24, 24), []
    before, grid = tokens, (24, 24)
    for level in range(6):
        nested.level = level
        out = nested(tokens)
        if level:
            torch.testing.assert_close(out, AveragePool(2)(before, grid))
        before, grid = out, nested.out_grid((24, 24))
        counts.append(out.shape[1])
    assert counts == [576, 144, 36, 9, 4, 1]
    torch.testing.assert_close(before[:, 0].mean(), before.mean())
    nested.level = 3
    torch.testing.assert_close(nested(tokens), AveragePool(8)(tokens), msg="where sides divide, the mean of the whole")


def test_nested_draws_every_level() -> None:
    nested = NestedPool(levels=4)
    generator = torch.Generator().manual_seed(0)
    drawn = [nested.draw(generator) for _ in range(60)]
    assert set(drawn) == {0, 1, 2, 3}
    assert nested.level == drawn[-1]


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (1, 1)])
def test_token_packer_formula(grid: tuple[int, int]) -> None:
    """Neighbourhood after neighbourhood, with torch's own attention of one head on copied weights."""
    torch.manual_seed(0)
    packer = TokenPacker(channels=6, factor=2, heads=1).double()
    rows, columns = grid
    map_ = draw(rows, columns, 6).view(2, rows, columns, 6)
    peer = nn.MultiheadAttention(6, 1, batch_first=True).double()
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([packer.to_q.weight, packer.to_kv.weight]))
        peer.in_proj_bias.copy_(torch.cat([packer.to_q.bias, packer.to_kv.bias]))
    peer.out_proj.load_state_dict(packer.to_out.state_dict())
    expected = []
    for i in range(0, rows, 2):
        for j in range(0, columns, 2):
            fine = map_[:, i : i + 2, j : j + 2].flatten(1, 2)
            coarse = fine.mean(1, keepdim=True)
            keys = packer.norm_fine(fine)
            packed = coarse + peer(packer.norm_coarse(coarse), keys, keys)[0]
            expected.append(packed + packer.feed_forward(packed))
    torch.testing.assert_close(packer(map_.flatten(1, 2), grid), torch.cat(expected, dim=1))


def test_c_abstractor_without_blocks_is_pooling() -> None:
    """With the residual branches silenced only the pooling is left, and the SiLU after each block."""
    abstractor = CAbstractor(channels=4, grid=(2, 3), depth=1).double()
    for block in (*abstractor.before, *abstractor.after):
        nn.init.zeros_(block.norms[2].weight)
    tokens = draw(6, 6, 4)
    silu = nn.functional.silu
    pooled = silu(AdaptivePool((2, 3))(silu(tokens)))
    torch.testing.assert_close(abstractor(tokens), pooled)


def test_c_abstractor_block_formula() -> None:
    block = CAbstractor(channels=4, depth=1, hidden=6).before[0].double()
    x = torch.randn(1, 4, 5, 3, dtype=torch.float64)

    def norm(y: Tensor) -> Tensor:
        return (y - y.mean()) / (y.var(unbiased=False) + 1e-5).sqrt()

    silu = nn.functional.silu
    y = silu(norm(torch.einsum("oc,bchw->bohw", block.reduce.weight[:, :, 0, 0], x)))
    padded = nn.functional.pad(y, (1, 1, 1, 1))
    mixed = torch.zeros_like(y)
    for i in range(3):
        for j in range(3):
            mixed += block.mix.weight[:, 0, i, j].view(1, -1, 1, 1) * padded[:, :, i : i + 5, j : j + 3]
    y = silu(norm(mixed))
    squeezed = silu(block.squeeze.weight[:, :, 0, 0] @ y.mean((0, 2, 3)) + block.squeeze.bias)
    gate = (block.excite.weight[:, :, 0, 0] @ squeezed + block.excite.bias).sigmoid()
    y = norm(torch.einsum("oc,bchw->bohw", block.expand.weight[:, :, 0, 0], y * gate.view(1, -1, 1, 1)))
    torch.testing.assert_close(block(x), silu(x + y))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no channel order 'c': take one of row_major, channel_major"):
        PixelShuffle(2, order="c")
    with pytest.raises(ValueError, match="factor 0 < 1"):
        AveragePool(0)
    with pytest.raises(ValueError, match="a grid of 0 x 3 holds no token"):
        AdaptivePool((0, 3))
    with pytest.raises(ValueError, match="level 6 is not one of 0 to 5"):
        NestedPool(6)
    with pytest.raises(ValueError, match="levels 0 < 1"):
        NestedPool(0, levels=0)
    with pytest.raises(ValueError, match="depth 0: each must be at least 1"):
        CAbstractor(channels=4, depth=0)
    with pytest.raises(ValueError, match="heads must divide channels"):
        TokenPacker(channels=6, heads=4)
    with pytest.raises(ValueError, match="tokens 4 wide, but built for 8"):
        TokenPacker(channels=8)(torch.zeros(1, 4, 4))
