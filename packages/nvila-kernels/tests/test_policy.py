"""Which rule decides, and what a policy refuses."""

import pytest
import torch
from nvila_kernels import W4A16, W8A8, QuantPolicy
from torch import nn


def model() -> nn.Module:
    block = nn.ModuleDict({"attn": nn.Linear(64, 64), "mlp": nn.Linear(64, 48), "norm": nn.LayerNorm(64)})
    return nn.ModuleDict({"blocks": nn.ModuleList([block]), "head": nn.Linear(64, 8)})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("head", None),
        ("blocks.0.attn", W8A8()),
        ("blocks.0.mlp", W4A16(group_size=32)),
        ("blocks.11.mlp", W4A16(group_size=32)),
        ("elsewhere", None),
        ("Blocks.0.mlp", None),
    ],
)
def test_the_first_match_decides(name: str, expected: object) -> None:
    policy = QuantPolicy((("head", None), ("*.attn", W8A8()), ("blocks.*", W4A16(group_size=32))))
    assert policy.scheme_of(name) == expected


def test_a_policy_is_a_value() -> None:
    policy = QuantPolicy((("*", W4A16()),))
    assert policy == QuantPolicy((("*", W4A16()),))
    assert len({policy, QuantPolicy((("*", W4A16()),))}) == 1
    with pytest.raises(AttributeError):
        policy.rules = ()  # pyright: ignore[reportAttributeAccessIssue]


def test_schemes_say_what_they_are() -> None:
    every = W4A16(group_size=0, symmetric=True, clip=True), W4A16(), W8A8(), W8A8(static=True)
    assert [str(scheme) for scheme in every] == ["w4a16 row symmetric clipped", "w4a16 g128", "w8a8", "w8a8 static"]


def test_assigning_needs_no_weights() -> None:
    with torch.device("meta"):
        large = nn.Sequential(nn.Linear(2**20, 2**20), nn.LayerNorm(2**20))
    assert QuantPolicy((("*", W4A16()),)).assign(large) == {"0": W4A16()}


def test_a_layer_in_two_places_is_found_in_both() -> None:
    shared = nn.Linear(64, 64)
    assert set(QuantPolicy((("*", W8A8()),)).assign(nn.Sequential(shared, shared))) == {"0", "1"}


def test_rules_that_reach_nothing_are_named() -> None:
    rules = (("absent", None), ("block.*", W8A8()), ("blocks.0.norm", W4A16()), ("head", W8A8()))
    with pytest.raises(ValueError, match="nothing was quantized") as caught:
        QuantPolicy(rules).assign(model())
    assert "rule 'block.*' matches no layer of that kind" in str(caught.value)
    assert "rule 'blocks.0.norm' names a LayerNorm" in str(caught.value)
    assert "absent" not in str(caught.value)
    assert "head" not in str(caught.value)


def test_every_layer_that_does_not_fit_is_named() -> None:
    odd = nn.ModuleDict({"attention": nn.MultiheadAttention(64, 2), "a": nn.Linear(64, 8), "b": nn.Linear(96, 8)})
    with pytest.raises(ValueError, match="nothing was quantized") as caught:
        QuantPolicy((("*", W4A16(group_size=48)),)).assign(odd)
    message = str(caught.value)
    assert "attention.out_proj is a NonDynamicallyQuantizableLinear" in message
    assert "a: group size 48" in message
    assert "b: group size 48" in message


def test_a_layer_alone_cannot_be_replaced_in_place() -> None:
    with pytest.raises(ValueError, match=r"nothing holds it: use Int4Linear or Int8Linear\.from_linear"):
        QuantPolicy((("*", W8A8()),)).assign(nn.Linear(8, 8))


def test_what_sums_are_made_in() -> None:
    assert str(W4A16(accumulate="float16")) == "w4a16 g128 float16 sums"
    with pytest.raises(ValueError, match="'bfloat16' cannot accumulate: use 'float32' or 'float16'"):
        W4A16(accumulate="bfloat16")  # pyright: ignore
