"""The vision tower against transformers' SigLIP with the same random weights."""

import pytest
import torch
from nvila_model.checkpoint.names import from_published, published_names, to_published
from nvila_model.network.vision import VisionTower

SIZES = {"image_size": 56, "patch_size": 14, "width": 48, "layers": 4, "heads": 4, "mlp_width": 101}


def reference():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    config = SiglipVisionConfig(
        image_size=56, patch_size=14, hidden_size=48, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=101, hidden_act="gelu_pytorch_tanh", vision_use_head=False,
    )  # fmt: skip
    model = SiglipVisionModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def published(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of transformers' model under the names in a checkpoint's files."""
    prefix = (
        "vision_tower." if "vision_model.post_layernorm.weight" in model.state_dict() else "vision_tower.vision_model."
    )
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def fill(tower: VisionTower, state: dict[str, torch.Tensor]) -> None:
    for name, parameter in tower.named_parameters():
        sources = published_names(f"vision.{name}")
        parameter.data.copy_(from_published(name, [state[source] for source in sources]))


@pytest.mark.parametrize("select_layer", [-1, -2, -3])
@torch.no_grad()
def test_equals_transformers(select_layer: int):
    theirs = reference()
    tower = VisionTower.siglip(**SIZES, select_layer=select_layer).eval()
    fill(tower, published(theirs))
    pixels = torch.randn(3, 3, 56, 56)
    expected = theirs(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(pixels), expected[select_layer], atol=1e-5, rtol=0)
    for state, other in zip(tower.hidden_states(pixels), expected[1:], strict=False):
        torch.testing.assert_close(state, other, atol=1e-5, rtol=0)


def test_layers_behind_the_selected_one_are_not_built():
    whole = VisionTower.siglip(**SIZES, select_layer=-1)
    cut = VisionTower.siglip(**SIZES)
    assert len(cut.trunk.blocks) == 3
    assert not any("norm." in name and "blocks" not in name for name, _ in whole.named_parameters())


def test_names_go_there_and_back():
    tower = VisionTower.siglip(**SIZES)
    for name, parameter in tower.named_parameters():
        pieces = to_published(f"vision.{name}", parameter)
        assert list(pieces) == published_names(f"vision.{name}")
        assert torch.equal(from_published(name, list(pieces.values())), parameter)


def test_true_size():
    with torch.device("meta"):
        tower = VisionTower.siglip(image_size=448, patch_size=14, width=1152, layers=27, heads=16, mlp_width=4304)
    assert tower.side == 32
    assert sum(parameter.numel() for parameter in tower.parameters()) == 26 * 15_239_504 + 1152 * (
        1024 + 3 * 14 * 14 + 1
    )


def test_an_open_clip_tower_is_cut_the_same_way():
    tower = VisionTower.from_open_clip("ViT-B-16-SigLIP")
    assert len(tower.trunk.blocks) == 11
    with torch.no_grad():
        assert tower(torch.randn(1, 3, 224, 224)).shape == (1, 196, 768)


def test_tiles_of_another_size_are_refused():
    tower = VisionTower.siglip(**SIZES)
    with pytest.raises(ValueError, match=r"\[2, 3, 28, 28\] do not fit this tower: give \[n, 3, 56, 56\]"):
        tower(torch.zeros(2, 3, 28, 28))


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="select_layer -5 leaves 0 of 4 layers"):
        VisionTower.siglip(**SIZES, select_layer=-5)
