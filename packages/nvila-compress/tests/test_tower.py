"""Token merging inside real ViTs of timm and open-clip, tiny and random."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from nvila_compress import merged_count, patch_tower, unpatch_tower
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=24, depth=4, num_heads=3, num_classes=5, reg_tokens=2, init_values=0.7,
        qk_norm=True,
    )  # fmt: skip


def clip_vit() -> nn.Module:
    open_clip = pytest.importorskip("open_clip")
    return open_clip.transformer.VisionTransformer(
        image_size=32, patch_size=4, width=24, layers=4, heads=3, mlp_ratio=2.0, output_dim=8, output_tokens=True
    )


TOWERS: dict[str, tuple[Callable[[], nn.Module], int]] = {"timm": (timm_vit, 3), "open-clip": (clip_vit, 1)}


@pytest.fixture(params=list(TOWERS))
def tower(request: pytest.FixtureRequest) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    make, special = TOWERS[request.param]
    model = make().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, special


def tokens_of(model: nn.Module, images: Tensor) -> Tensor:
    """All tokens after the last block."""
    last = model.blocks[-1] if hasattr(model, "blocks") else model.transformer.resblocks[-1]
    seen: list[Tensor] = []
    handle = last.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_merging_nothing_changes_nothing(tower: tuple[nn.Module, int]) -> None:
    model, _ = tower
    before = tokens_of(model, images())
    patch_tower(model, 0)
    torch.testing.assert_close(tokens_of(model, images()), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("r", [1, 8, 13, 100])
def test_counts_are_known_before(tower: tuple[nn.Module, int], r: int) -> None:
    model, special = tower
    state = patch_tower(model, r)
    out = tokens_of(model, images())
    assert out.shape[1] == merged_count(64 + special, blocks=4, r=r, protected=special)
    assert state.sizes is not None
    assert state.sizes.sum(1).tolist() == [64 + special] * 2, "every patch is in one token"
    assert (state.sizes[:, :special] == 1).all()


def test_undone_bit_for_bit(tower: tuple[nn.Module, int]) -> None:
    model, _ = tower
    before, keys, kinds = tokens_of(model, images()), list(model.state_dict()), [type(m) for m in model.modules()]
    patch_tower(model, 8)
    assert list(model.state_dict()) == keys
    assert not torch.equal(tokens_of(model, images())[:, 0], before[:, 0])
    unpatch_tower(model)
    assert torch.equal(tokens_of(model, images()), before)
    assert [type(m) for m in model.modules()] == kinds
    buffer = io.BytesIO()
    torch.save(model, buffer)


def test_equal_patches_merge_without_loss(tower: tuple[nn.Module, int]) -> None:
    """Proportional attention: tokens that were equal and are merged weigh as much as before.

    Without positions every patch of a grey picture is the same, whatever is merged.
    """
    model, special = tower
    position = model.pos_embed if hasattr(model, "pos_embed") else model.positional_embedding
    nn.init.zeros_(position)
    grey = torch.ones(1, 3, 32, 32)
    before = tokens_of(model, grey)
    patch_tower(model, 10)
    after = tokens_of(model, grey)
    torch.testing.assert_close(after, before[:, : after.shape[1]], rtol=1e-3, atol=1e-3)
    assert after.shape[1] < special + 64


def test_rows_do_not_see_each_other(tower: tuple[nn.Module, int]) -> None:
    model, _ = tower
    patch_tower(model, 8)
    together = tokens_of(model, images(3))
    alone = torch.cat([tokens_of(model, image[None]) for image in images(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_gradients_and_copies(tower: tuple[nn.Module, int]) -> None:
    model, _ = tower
    patch_tower(model, 8)
    again = copy.deepcopy(model)
    out = again(images())
    (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert all(p.grad is not None for name, p in again.named_parameters() if "mlp" in name or "qkv" in name)
    unpatch_tower(again)
    assert tokens_of(model, images()).shape[1] < tokens_of(again, images()).shape[1], "each has its own"


def test_first_block_formula(tower: tuple[nn.Module, int]) -> None:
    """Between the halves of the first block the most alike pairs are averaged, one by one."""
    model, special = tower
    block = model.blocks[0] if hasattr(model, "blocks") else model.transformer.resblocks[0]
    x = torch.randn(1, special + 7, 24)
    keys = torch.randn(1, special + 7, 8)
    state = patch_tower(model, 2)
    state.sizes = torch.ones(1, special + 7)
    merged = block.merge(x, keys)
    unit = nn.functional.normalize(keys[0, special:], dim=-1)
    edges = [max((float(unit[i] @ unit[j]), i, j) for j in (1, 3, 5)) for i in (0, 2, 4, 6)]
    groups = {i: [i] for i in range(7)}
    for _, i, j in sorted(edges, reverse=True)[:2]:
        groups[j] += groups.pop(i)
    expected = [x[0, special:][members].mean(0) for _, members in sorted(groups.items())]
    torch.testing.assert_close(merged[0], torch.cat([x[0, :special], torch.stack(expected)]))


def test_refusals(tower: tuple[nn.Module, int]) -> None:
    model, _ = tower
    with pytest.raises(ValueError, match="r -1 < 0"):
        patch_tower(model, -1)
    with pytest.raises(ValueError, match="is not patched"):
        unpatch_tower(model)
    patch_tower(model, 1)
    with pytest.raises(ValueError, match="is patched already"):
        patch_tower(model, 1)
    with pytest.raises(ValueError, match="Linear holds 0 VisionTransformers"):
        patch_tower(nn.Linear(1, 1), 1)
