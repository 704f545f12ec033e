"""Folding a scale changes no function: norms, linear layers, gates, repeated heads, in every float type."""

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels.calibrate import Fold, fold_
from nvila_kernels.calibrate.fold import width
from torch import Tensor, nn
from torch.nn import functional as F

DTYPES = {torch.float32: 1e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}


class ShiftedNorm(nn.Module):
    """Multiplies by one more than its weight, as Gemma's norm does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:]) * (1 + self.weight)


def random_(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def close(expected: Tensor, found: Tensor, dtype: torch.dtype) -> None:
    """Operands are of size 1, and may cancel."""
    torch.testing.assert_close(found, expected, rtol=0, atol=DTYPES[dtype] * (1 + float(expected.abs().max())))


@settings(max_examples=40, deadline=None)
@given(
    made=st.integers(1, 40),
    readers=st.integers(1, 3),
    source=st.sampled_from(["layer", "plain layer", "rms", "linear", "plain linear"]),
    dtype=st.sampled_from(list(DTYPES)),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_the_function_stays(made: int, readers: int, source: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    sources = {
        "layer": lambda: nn.LayerNorm(made),
        "plain layer": lambda: nn.LayerNorm(made, bias=False),
        "rms": lambda: nn.RMSNorm(made, eps=1e-6),
        "linear": lambda: nn.Linear(made, made),
        "plain linear": lambda: nn.Linear(made, made, bias=False),
    }
    first = random_(sources[source]()).to(dtype)
    targets = [random_(nn.Linear(made, 5)).to(dtype) for _ in range(readers)]
    assert all(isinstance(target, nn.Linear) for target in targets)
    x = torch.randn(7, made).to(dtype)
    expected, hidden = [target(first(x)) for target in targets], first(x)
    scale = torch.randn(made).exp()
    real = fold_(first, [t for t in targets if isinstance(t, nn.Linear)], scale, torch.arange(made))
    torch.testing.assert_close(real, scale, rtol=5e-3, atol=0)
    close(hidden, (first(x).float() * real).to(dtype), dtype)
    for target, before in zip(targets, expected, strict=True):
        close(before, target(first(x)), dtype)


@torch.no_grad()
def test_a_rounded_norm_weight_is_made_up_for() -> None:
    """In bfloat16 the quotient is 0.4 % off; the readers get the factor that was really divided by."""
    norm, reader = nn.LayerNorm(64).bfloat16(), nn.Linear(64, 64, bias=False)
    scale = torch.linspace(0.1, 9.7, 64)
    before = reader.weight * norm.weight
    real = fold_(norm, [reader], scale, torch.arange(64))
    assert float((real / scale - 1).abs().max()) > 1e-3
    torch.testing.assert_close(reader.weight * norm.weight, before, rtol=1e-6, atol=0)


@torch.no_grad()
def test_a_scale_of_one_changes_no_bit() -> None:
    norm, reader = random_(nn.LayerNorm(8)), random_(nn.Linear(8, 8))
    before = [parameter.clone() for module in (norm, reader) for parameter in module.parameters()]
    assert isinstance(reader, nn.Linear)
    fold_(norm, [reader], torch.ones(8), torch.arange(8))
    after = [parameter for module in (norm, reader) for parameter in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("repeats", [1, 3])
@torch.no_grad()
def test_repeated_heads(repeats: int, dtype: torch.dtype) -> None:
    kv, head = 2, 5
    fold = Fold(source="v", targets=("o",), head_dim=head)
    v, o = nn.Linear(12, kv * head).to(dtype), nn.Linear(kv * repeats * head, 12).to(dtype)
    x = torch.randn(4, 12).to(dtype)

    def attend(x: Tensor) -> Tensor:
        heads = rearrange(v(x), "t (kv d) -> kv t d", d=head).repeat_interleave(repeats, dim=0)
        mixed = torch.linspace(0, 1, 16).reshape(4, 4).softmax(-1).to(dtype) @ heads
        return o(rearrange(mixed, "h t d -> t (h d)"))

    expected = attend(x)
    channels = fold.channels(width(v), o.in_features)
    assert len(channels) == o.in_features
    fold_(v, [o], torch.randn(kv * head).exp(), channels)
    close(expected, attend(x), dtype)


@torch.no_grad()
def test_a_gate() -> None:
    gate, up, down = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 6)
    x = torch.randn(5, 6)
    expected = down(F.silu(gate(x)) * up(x))
    fold_(up, [down], torch.randn(9).exp(), torch.arange(9))
    close(expected, down(F.silu(gate(x)) * up(x)), torch.float32)


def test_a_channel_of_zeros_can_be_folded() -> None:
    norm = nn.LayerNorm(4)
    nn.init.zeros_(norm.weight)
    real = fold_(norm, [nn.Linear(4, 2)], torch.full((4,), 3.0), torch.arange(4))
    assert real.tolist() == [3.0] * 4


@pytest.mark.parametrize(
    ("norm", "scale"),
    [(ShiftedNorm(8), torch.full((8,), 2.0)), (nn.LayerNorm(8).half(), torch.full((8,), 1e9))],
    ids=["shifted", "underflow"],
)
def test_a_norm_that_does_not_take_the_scale_is_left_alone(norm: nn.Module, scale: Tensor) -> None:
    random_(norm)
    reader = nn.Linear(8, 8)
    before = [parameter.clone() for module in (norm, reader) for parameter in module.parameters()]
    with pytest.raises(ValueError, match=r"does not divide by scales of .*fold into norms that multiply"):
        fold_(norm, [reader], scale, torch.arange(8))
    after = [parameter for module in (norm, reader) for parameter in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_refusals() -> None:
    fold = Fold(source="v", targets=("o",), head_dim=5)
    with pytest.raises(ValueError, match="v makes 10 channels, o read 25: give the head_dim of repeated heads"):
        fold.channels(10, 25)
    with pytest.raises(ValueError, match="v makes 10 channels, o read 20: give the head_dim"):
        Fold(source="v", targets=("o",)).channels(10, 20)
    with pytest.raises(ValueError, match="the block has no v, o: declare folds by the names of its modules"):
        fold.modules(nn.Sequential())
    with pytest.raises(ValueError, match=r"o is a ReLU: fold into torch\.nn\.Linear, before quantizing"):
        fold.modules(nn.ModuleDict({"v": nn.Linear(2, 2), "o": nn.ReLU()}))
    for module in (nn.LayerNorm(4, elementwise_affine=False), nn.GELU(), nn.Conv1d(2, 2, 1)):
        with pytest.raises(ValueError, match=f"a {type(module).__name__} has no weight for each channel"):
            width(module)
    for scale in (torch.ones(3), torch.zeros(4), torch.full((4,), float("inf")), -torch.ones(4)):
        with pytest.raises(ValueError, match="give 4 positive finite factors"):
            fold_(nn.LayerNorm(4), [nn.Linear(4, 4)], scale, torch.arange(4))
