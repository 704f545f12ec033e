"""A whole small model in few bits: folds that change nothing, calibration that pays, and what is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from nvila_kernels import Int4Linear, Int8Linear
from nvila_kernels.calibrate import Fold, fold_
from nvila_kernels.calibrate.fold import width
from nvila_model import NVILA, Image, ModelInputs
from nvila_model.network.qwen2 import Qwen2
from nvila_model.network.vision import VisionTower
from nvila_model.quantization.blocks import SIGLIP_FOLDS, quantize_model, qwen2_folds
from torch import Tensor, nn

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def pictures(model: NVILA, count: int, *, seed: int = 0) -> list[ModelInputs]:
    """Conversations about noise of ragged sizes."""
    assert model.processor is not None
    random = np.random.default_rng(seed)
    sizes = [(7 * (1 + index % 5), 30 + index) for index in range(count)]
    images = [Image(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return [
        model.processor([{"role": "user", "content": [image, f"Question {index}?"]}])
        for index, image in enumerate(images)
    ]


def scores(model: NVILA, inputs: list[ModelInputs]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(each).logits[0].float() for each in inputs])


def fold_everything(block: nn.Module, folds: tuple[Fold, ...]) -> None:
    for fold in folds:
        source, targets = fold.modules(block)
        made = width(source)
        fold_(source, targets, torch.randn(made).exp(), fold.channels(made, targets[0].in_features))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@torch.no_grad()
def test_the_folds_of_qwen2_change_nothing(kv_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    llm = Qwen2(vocab_size=31, width=48, layers=2, heads=6, kv_heads=kv_heads, mlp_width=70).to(dtype).eval()
    embeds = torch.randn(2, 9, 48).to(dtype)
    expected = llm(embeds)
    before = [parameter.clone() for parameter in llm.layers.parameters()]
    for block in llm.layers:
        fold_everything(block, qwen2_folds(llm.head_dim))
    changed = [not torch.equal(old, new) for old, new in zip(before, llm.layers.parameters(), strict=True)]
    assert sum(changed) == 2 * (2 + 7 + 1)  # in each block both norms, all seven weights, the bias of v_proj
    torch.testing.assert_close(llm(embeds), expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@torch.no_grad()
def test_the_folds_of_siglip_change_nothing(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tower = VisionTower.siglip(image_size=28, patch_size=7, width=48, layers=3, heads=4, mlp_width=101)
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.2)
    tower = tower.to(dtype).eval()
    pixels = torch.randn(2, 3, 28, 28)
    expected = tower(pixels)
    for block in tower.blocks:
        fold_everything(block, SIGLIP_FOLDS)
    torch.testing.assert_close(tower(pixels), expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()))


def with_outliers(model: NVILA) -> NVILA:
    """Give a few channels of every norm the size that they have in trained models."""
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.data = torch.rand_like(parameter) + 0.5
            parameter.data[::8] *= 30
    return model


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_whole_model(make_model: Callable[..., NVILA], dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    inputs = pictures(model, 4)
    expected = scores(model, inputs)
    report = quantize_model(model, calibration=inputs)
    kinds = [type(layer) for block in model.llm.layers for layer in block.modules() if not list(layer.children())]
    assert kinds.count(Int4Linear) == 2 * 7
    assert isinstance(model.vision, VisionTower)
    assert sum(isinstance(module, Int8Linear) for module in model.vision.modules()) == 2 * 4
    assert not any(type(module) is nn.Linear for module in [*model.llm.modules(), *model.vision.modules()])
    names = [layer.name for layer in report.layers]
    assert names[0] == "vision.blocks.0.attn.qkv"
    assert names[-1] == "llm.layers.1.mlp.down_proj"
    assert len(names) == 2 * 4 + 2 * 7
    assert report.kept == ("projector.layers.2", "projector.layers.4")
    assert all(layer.output_error is not None and layer.output_error < 0.3 for layer in report.layers)
    assert float((scores(model, inputs) - expected).norm() / expected.norm()) < 0.3
    assert model.generate([{"role": "user", "content": "Hello"}]).text is not None


@pytest.mark.parametrize(("llm", "vision"), [("w4a16", None), (None, "w8a8")])
def test_calibration_pays(make_model: Callable[..., NVILA], llm: str | None, vision: str | None) -> None:
    errors: list[float] = []
    for calibrated in (False, True):
        model = with_outliers(make_model())
        inputs, unseen = pictures(model, 6), pictures(model, 6, seed=1)
        before = scores(model, unseen)
        report = quantize_model(model, llm=llm, vision=vision, calibration=inputs if calibrated else None)
        assert all((layer.output_error is None) != calibrated for layer in report.layers)
        assert {layer.name.split(".")[0] for layer in report.layers} == {"llm" if llm else "vision"}
        errors.append(float((scores(model, unseen) - before).norm()))
    assert errors[1] < 0.8 * errors[0]


def test_what_is_not_asked_for_stays_to_the_bit(make_model: Callable[..., NVILA]) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantize_model(model, vision=None, calibration=pictures(model, 1))
    after = model.state_dict()
    untouched = [name for name in before if not name.startswith("llm.layers.")]
    assert untouched
    assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_refusals(make_model: Callable[..., NVILA]) -> None:
    model = make_model()
    assert model.processor is not None
    with pytest.raises(ValueError, match="llm 'int4' with vision None is not known: use 'w4a16' or None"):
        quantize_model(model, llm="int4", vision=None)  # pyright: ignore[reportArgumentType]
    text = model.processor([{"role": "user", "content": "Hello"}])
    with pytest.raises(ValueError, match=r"none of 1 calibration inputs has a picture: .*pass vision=None"):
        quantize_model(model, calibration=[text])
    pair = model.processor([[{"role": "user", "content": text}] for text in ("Hello", "Hello there")])
    with pytest.raises(ValueError, match=r"calibration input 1 holds 2 conversations.*give one each"):
        quantize_model(model, calibration=[text, pair])
    with pytest.raises(ValueError, match="there is no calibration input: give at least one, or None"):
        quantize_model(model, vision=None, calibration=[])
    assert not any(isinstance(module, Int4Linear | Int8Linear) for module in model.modules())
    model.vision = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="the blocks of a Identity are not known: pass vision=None"):
        quantize_model(model)
