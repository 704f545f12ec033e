"""The vision tower against transformers' SigLIP and timm's, as open-clip builds it, with the same random weights."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from nvila_model.checkpoint.names import from_published, published_names, to_published
from nvila_model.network.meta import meta_device
from nvila_model.network.vision import VisionTower
from torch.overrides import TorchFunctionMode

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


def test_layers_after_the_selected_one_are_not_built():
    whole = VisionTower.siglip(**SIZES, select_layer=-1)
    cut = VisionTower.siglip(**SIZES)
    assert len(cut.blocks) == 3
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


def timm_trunk(**changes: object) -> torch.nn.Module:
    """A small SigLIP as open-clip has timm build it, with random weights."""
    import timm

    torch.manual_seed(1)
    sizes = {"img_size": 56, "patch_size": 14, "embed_dim": 48, "depth": 4, "num_heads": 4, "mlp_ratio": 101.5 / 48}
    trunk = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, **sizes | changes).eval()
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return trunk


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch):
    """Have open-clip give this trunk for ViT-B-16-SigLIP."""
    import open_clip

    def offer(trunk: torch.nn.Module) -> None:
        model = SimpleNamespace(visual=SimpleNamespace(trunk=trunk))
        monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: model)

    return offer


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("select_layer", [-1, -2])
@torch.no_grad()
def test_equals_open_clip(offered: Callable[..., None], select_layer: int, activation: str):
    trunk = timm_trunk(act_layer=activation)
    offered(trunk)
    tower = VisionTower.from_open_clip("ViT-B-16-SigLIP", select_layer=select_layer)
    assert len(tower.blocks) == 5 + select_layer
    pixels = torch.randn(3, 3, 56, 56)
    expected = trunk.forward_intermediates(pixels, output_fmt="NLC", intermediates_only=True)
    for state, other in zip(tower.hidden_states(pixels), expected, strict=False):
        torch.testing.assert_close(state, other, atol=1e-6, rtol=0)
    torch.testing.assert_close(tower(pixels), expected[select_layer], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_token": True},
        {"init_values": 0.1},
        {"qk_norm": True},
        {"pre_norm": True},
        {"qkv_bias": False},
        {"act_layer": "relu"},
    ],
)
def test_an_open_clip_tower_of_another_kind_is_refused(offered: Callable[..., None], changes: dict[str, object]):
    offered(timm_trunk(**changes))
    with pytest.raises(ValueError, match="open-clip's 'ViT-B-16-SigLIP' is no SigLIP: give one such as"):
        VisionTower.from_open_clip("ViT-B-16-SigLIP")


def test_an_open_clip_tower_without_a_trunk_is_refused(monkeypatch: pytest.MonkeyPatch):
    import open_clip

    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: SimpleNamespace(visual=torch.nn.Identity()))
    with pytest.raises(ValueError, match="open-clip's 'ViT-B-32' is no SigLIP: give one such as ViT-B-16-SigLIP"):
        VisionTower.from_open_clip("ViT-B-32")


def test_a_name_that_open_clip_does_not_know_is_refused():
    with pytest.raises(ValueError, match="open-clip has no model 'ViT-B-33': choose one of ViT-B-16-SigLIP, "):
        VisionTower.from_open_clip("ViT-B-33")


@pytest.mark.slow  # a whole CLIP is built
@torch.no_grad()
def test_a_tower_that_open_clip_builds():
    tower = VisionTower.from_open_clip("ViT-B-16-SigLIP")
    assert len(tower.blocks) == 11
    assert tower(torch.randn(1, 3, 224, 224)).shape == (1, 196, 768)


def test_tiles_of_another_size_are_refused():
    tower = VisionTower.siglip(**SIZES)
    with pytest.raises(ValueError, match=r"\[2, 3, 28, 28\] do not fit this tower: give \[n, 3, 56, 56\]"):
        tower(torch.zeros(2, 3, 28, 28))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="5 heads cannot share 48 channels"):
        VisionTower.siglip(**SIZES | {"heads": 5})


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="select_layer -5 leaves 0 of 4 layers"):
        VisionTower.siglip(**SIZES, select_layer=-5)


class Drawn(TorchFunctionMode):
    """The names of the functions that fill tensors and come this far."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names |= {func.__name__} & {"normal_", "uniform_", "kaiming_uniform_", "kaiming_normal_", "trunc_normal_"}
        return func(*args, **(kwargs or {}))


def test_a_network_on_the_meta_device_is_not_drawn():
    with Drawn() as ours, meta_device():
        tower = VisionTower.siglip(**SIZES)
        embedding = torch.nn.Embedding(3, 4)
        torch.nn.init.kaiming_normal_(tensor=embedding.weight)
        embedding.weight.data.normal_()
    assert {parameter.device.type for parameter in (*tower.parameters(), *embedding.parameters())} == {"meta"}
    assert not ours.names
    with Drawn() as others, torch.device("meta"):
        VisionTower.siglip(**SIZES)
    assert others.names
