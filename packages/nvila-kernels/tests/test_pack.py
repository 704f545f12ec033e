"""The planar layout: a bijection, at the bit positions that the kernels read."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels import pack_int4, unpack_int4
from nvila_kernels.pack import kernel_group, pack_scale_zero, unpack_scale_zero


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 400), seed=st.integers(0, 99))
def test_unpack_inverts_pack(n: int, k: int, seed: int) -> None:
    codes = torch.randint(0, 16, (n, k), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack_int4(codes)
    assert packed.shape == (-(-k // 128), n, 32)
    assert packed.dtype == torch.int16
    assert torch.equal(unpack_int4(packed, k), codes)


def test_a_feature_lies_where_the_layout_says() -> None:
    for feature in (0, 31, 32, 95, 127, 128, 200):
        codes = torch.zeros(3, 256, dtype=torch.uint8)
        codes[1, feature] = 9
        block, plane, word = feature // 128, feature % 128 // 32, feature % 32
        expected = torch.zeros(2, 3, 32, dtype=torch.int32)
        expected[block, 1, word] = 9 << 4 * plane
        assert torch.equal(pack_int4(codes).to(torch.int32) & 0xFFFF, expected)


def test_every_word_survives() -> None:
    words = torch.arange(65536, dtype=torch.int32).to(torch.int16).reshape(2, 1024, 32)
    assert torch.equal(pack_int4(unpack_int4(words, 256)), words)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scales_and_zeros_survive(dtype: torch.dtype) -> None:
    scale = torch.randn(5, 3).to(dtype)
    zero = torch.randint(0, 17, (5, 3), dtype=torch.uint8)
    words = pack_scale_zero(scale, zero, in_features=384, group_size=128)
    assert words.shape == (3, 5)
    again = unpack_scale_zero(words, dtype)
    assert torch.equal(again[0], scale)
    assert torch.equal(again[1], zero)


def test_large_groups_repeat_their_scales() -> None:
    scale = torch.tensor([[1.0, 2.0]], dtype=torch.float16)
    words = pack_scale_zero(scale, torch.zeros(1, 2, dtype=torch.uint8), in_features=384, group_size=256)
    assert unpack_scale_zero(words, torch.float16)[0].tolist() == [[1.0, 1.0, 2.0]]


@pytest.mark.parametrize(("k", "group", "seen"), [(256, 32, 32), (256, 256, 0), (100, 128, 0), (512, 256, 128)])
def test_kernel_group(k: int, group: int, seen: int) -> None:
    assert kernel_group(k, group) == seen


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"codes span 0..16, 0..15 fit: quantize to 4 bits first"):
        pack_int4(torch.tensor([[0, 16]]))
    with pytest.raises(ValueError, match=r"codes have 1 dimensions"):
        pack_int4(torch.zeros(4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"300 features take 3 blocks of 128, the packed weight has 2"):
        unpack_int4(torch.zeros(2, 1, 32, dtype=torch.int16), 300)
    with pytest.raises(ValueError, match="group size 48 is none of"):
        kernel_group(256, 48)
    with pytest.raises(ValueError, match=r"scales are torch.float32"):
        pack_scale_zero(torch.ones(1, 1), torch.zeros(1, 1), in_features=32, group_size=32)
    with pytest.raises(ValueError, match=r"zero points span 0..64, 0..63 fit"):
        pack_scale_zero(torch.ones(1, 2, dtype=torch.float16), torch.tensor([[0, 64]]), in_features=64, group_size=32)


@pytest.mark.parametrize(("in_features", "group_size", "rows"), [(33, 32, 4), (160, 64, 4), (273, 32, 12), (200, 0, 1)])
def test_scales_fill_whole_blocks(in_features: int, group_size: int, rows: int) -> None:
    """A kernel reads the scales of whole blocks; those beyond the last feature must be there, and be 0."""
    groups = -(-in_features // group_size) if group_size else 1
    scale, zero = torch.ones(5, groups, dtype=torch.float16), torch.full((5, groups), 8, dtype=torch.uint8)
    words = pack_scale_zero(scale, zero, in_features=in_features, group_size=group_size)
    assert words.shape == (rows, 5)
    padded, _ = unpack_scale_zero(words, torch.float16)
    assert torch.equal(padded[:, :groups], scale)
    assert int(padded[:, groups:].count_nonzero()) == 0
