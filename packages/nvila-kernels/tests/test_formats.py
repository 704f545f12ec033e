"""Formats against what their own library writes and reads, and against vectors packed by hand."""

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from nvila_kernels import Int4Linear, Int8Linear
from nvila_kernels.formats import (
    AwqGemm,
    AwqGemv,
    FormatError,
    Gptq,
    IntQuantized,
    PackQuantized,
    TinyChat,
    format_of,
)
from nvila_kernels.formats.words import AWQ, NATURAL, pack_words, unpack_columns, unpack_words
from nvila_kernels.quantization import Int4Codes, dequantize_int4, quantize_int4
from torch import Tensor

N, K = 16, 256


def weight(seed: int = 0) -> Tensor:
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed))


def codes(group: int = 64, *, symmetric: bool = False) -> Int4Codes:
    return quantize_int4(weight(), group_size=group, symmetric=symmetric)


def same(one: Int4Codes, other: Int4Codes) -> bool:
    pairs = zip((one.codes, one.scale, one.zero), (other.codes, other.scale, other.zero), strict=True)
    return one.group_size == other.group_size and all(torch.equal(a, b) for a, b in pairs)


def word(*nibbles: int) -> int:
    """Eight codes, the lowest nibble first, as a signed 32-bit number."""
    value = sum(nibble << 4 * place for place, nibble in enumerate(nibbles))
    return value - 2**32 if value >= 2**31 else value


@pytest.mark.parametrize("group", [32, 64, 128, K])
@pytest.mark.parametrize("form", [AwqGemm(), PackQuantized()])
def test_written_weights_come_back_bit_for_bit(form: Any, group: int) -> None:
    written = form.write(codes(group))
    assert set(written) <= {*form.names, *form.optional}
    assert same(form.read(written), codes(group))


def test_a_layer_goes_through_a_file_and_gives_the_same_numbers() -> None:
    layer = Int4Linear.from_codes(codes())
    again = Int4Linear.from_codes(AwqGemm().read(AwqGemm().write(layer.codes())))
    assert torch.equal(again.packed, layer.packed)
    assert torch.equal(again.scale_zero, layer.scale_zero)


def test_autoawq_gemm_packed_by_hand() -> None:
    """Eight outputs of one input: the word's nibbles hold outputs 0 2 4 6 1 3 5 7."""
    outputs = [3, 14, 1, 5, 9, 2, 6, 15]
    qweight = torch.full((32, 1), word(*(outputs[i] for i in (0, 2, 4, 6, 1, 3, 5, 7))), dtype=torch.int32)
    zeros = torch.tensor([[word(*(outputs[i] ^ 1 for i in (0, 2, 4, 6, 1, 3, 5, 7)))]], dtype=torch.int32)
    found = AwqGemm().read({"qweight": qweight, "qzeros": zeros, "scales": torch.ones(1, 8, dtype=torch.float16)})
    assert found.codes[:, 7].tolist() == outputs
    assert found.zero[:, 0].tolist() == [code ^ 1 for code in outputs]
    assert found.group_size == 32


@pytest.mark.parametrize("order", [NATURAL, AWQ])
def test_columns_of_words_are_words_turned(order: tuple[int, ...]) -> None:
    words = torch.randint(-(2**31), 2**31, (6, 5), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    turned = unpack_columns(words, order)
    assert torch.equal(turned, unpack_words(words, order).T)
    assert turned.is_contiguous()
    assert torch.equal(pack_words(turned.T, order), words)


def test_autoawq_gemv_packed_by_hand() -> None:
    """Along the inputs, in order; scales and zero points are padded to whole words of eight."""
    row = [i % 16 for i in range(64)]
    qweight = torch.tensor([[word(*row[i : i + 8]) for i in range(0, 64, 8)]], dtype=torch.int32)
    qzeros = torch.tensor([[word(7, 9, 0, 0, 0, 0, 0, 0)]], dtype=torch.int32)
    scales = torch.tensor([[0.5, 0.25, 0, 0, 0, 0, 0, 0]], dtype=torch.float16)
    found = AwqGemv(group_size=32).read({"qweight": qweight, "qzeros": qzeros, "scales": scales})
    assert found.codes[0].tolist() == row
    assert found.zero.tolist() == [[7, 9]]
    assert found.scale.tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize("version", [1, 2])
def test_gptq_packed_by_hand(version: int) -> None:
    column = [(3 * i) % 16 for i in range(32)]
    qweight = torch.tensor([[word(*column[i : i + 8])] * 8 for i in range(0, 32, 8)], dtype=torch.int32)
    qzeros = torch.tensor([[word(0, 1, 2, 3, 4, 5, 6, 7)]], dtype=torch.int32)
    tensors = {"qweight": qweight, "qzeros": qzeros, "scales": torch.ones(1, 8, dtype=torch.float16)}
    found = Gptq(version=version).read({**tensors, "g_idx": torch.zeros(32, dtype=torch.int32)})
    assert found.codes[5].tolist() == column
    assert found.zero[:, 0].tolist() == [zero + (version == 1) for zero in range(8)]


def test_gptq_by_activation_order_is_refused() -> None:
    layer = AwqGemm().write(codes())  # any shapes will do: the order is what is looked at
    tensors = {"qweight": torch.zeros(K // 8, N, dtype=torch.int32), "qzeros": layer["qzeros"]}
    order = torch.arange(K).flip(0) // 64
    with pytest.raises(FormatError, match="desc_act=false"):
        Gptq().read({**tensors, "scales": layer["scales"], "g_idx": order})


def test_tinychat_packed_by_hand() -> None:
    """Every code packed one by one, by the description of the layout, not by reshaping."""
    k, generator = 128, torch.Generator().manual_seed(3)
    rows = torch.randint(16, (8, k), generator=generator)
    packed = torch.zeros(2, k, dtype=torch.int32)
    for row in range(8):
        for column in range(k):
            block, inside = divmod(column, 32)
            a, b, c = inside // 8, inside // 2 % 4, inside % 2
            moved = (b * 4 + a) * 2 + c
            eight, place = divmod(moved, 8)
            moved = eight * 8 + (place % 2) * 4 + place // 2
            stride, offset = divmod(block * 32 + moved, 64)
            flat = stride * 256 + offset * 4 + row % 4
            packed[row // 4, flat // 4] |= int(rows[row, column]) << 4 * (flat % 4)
    words = torch.where(packed >= 2**15, packed - 2**16, packed).to(torch.int16)
    scale = torch.rand(8, 8, generator=generator).half() + 0.5
    zero = torch.randint(16, (8, 8), generator=generator)
    scaled = -(scale.float() * zero).half()
    found = TinyChat(group_size=128).read({"qweight": words, "scales": scale, "scaled_zeros": scaled})
    assert torch.equal(found.codes.long(), rows)
    assert torch.equal(found.zero[:, 0].long(), zero[0])
    assert torch.equal(found.scale[:, 0], scale[0])


def scheme(bits: int, *, group: int | None, symmetric: bool, tokens: bool = False) -> QuantizationScheme:
    weights = QuantizationArgs(
        num_bits=bits, strategy="group" if group else "channel", group_size=group, symmetric=symmetric
    )
    inputs = QuantizationArgs(num_bits=8, strategy="token", dynamic=True) if tokens else None
    return QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)


@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized_equals_its_library(symmetric: bool) -> None:
    ours = codes(symmetric=symmetric)
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    theirs = library.compress(
        {
            "weight": dequantize_int4(ours),
            "weight_scale": ours.scale.float(),
            "weight_zero_point": ours.zero.to(torch.int8) - 8,
        },
        scheme(4, group=64, symmetric=symmetric),
    )
    form = PackQuantized(group_size=64, symmetric=symmetric)
    assert torch.equal(form.read(theirs).codes, ours.codes)
    assert torch.equal(form.read(theirs).zero, ours.zero)
    written = form.write(ours)
    assert torch.equal(written["weight_packed"], theirs["weight_packed"])
    if not symmetric:
        assert torch.equal(written["weight_zero_point"], theirs["weight_zero_point"])
    wide = {**written, "weight_scale": written["weight_scale"].float()}
    back = library.decompress(wide, scheme(4, group=64, symmetric=symmetric))
    assert torch.equal(back["weight"], dequantize_int4(ours))


def test_int_quantized_equals_its_library() -> None:
    layer = Int8Linear.from_linear(linear())
    written = IntQuantized().write(layer.codes())
    library = BaseCompressor.get_value_from_registry("int-quantized")
    kind = scheme(8, group=None, symmetric=True, tokens=True)
    back = library.decompress(written, kind)["weight"]
    assert torch.equal(back, layer.codes().codes * layer.weight_scale[:, None])
    theirs = library.compress({"weight": back, "weight_scale": written["weight_scale"]}, kind)
    assert torch.equal(theirs["weight"], written["weight"])
    again = Int8Linear.from_codes(IntQuantized().read(theirs))
    assert torch.equal(again.weight, layer.weight)
    assert torch.equal(again.weight_scale, layer.weight_scale)


def linear() -> torch.nn.Linear:
    layer = torch.nn.Linear(K, N, bias=False)
    layer.weight.data = weight()
    return layer


def test_static_activation_scales_are_kept_and_never_lost() -> None:
    layer = Int8Linear.from_linear(linear(), x_scale=torch.tensor([0.03]))
    assert IntQuantized(static=True).read(IntQuantized(static=True).write(layer.codes())).x_scale == layer.x_scale
    with pytest.raises(FormatError, match="quantize all layers alike"):
        IntQuantized().write(layer.codes())


FORMS = [
    AwqGemm(group_size=64),
    AwqGemm(group_size=-1),
    PackQuantized(group_size=32, symmetric=True),
    PackQuantized(group_size=-1),
    IntQuantized(),
    IntQuantized(static=True),
]


@pytest.mark.parametrize("form", FORMS)
def test_a_configuration_leads_back_to_its_format(form: Any) -> None:
    assert format_of(form.config(skipped=("lm_head",))) == form


@pytest.mark.parametrize("form", FORMS[2:])
def test_the_library_understands_the_configuration(form: Any) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    found = QuantizationConfig.model_validate(form.config())
    assert found.config_groups["group_0"].weights.num_bits == (4 if isinstance(form, PackQuantized) else 8)


def test_other_configurations() -> None:
    assert format_of({"quant_method": "awq", "version": "GEMV", "bits": 4, "group_size": 64}) == AwqGemv(group_size=64)
    assert format_of({"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}) == Gptq(version=2)
    assert format_of({"quant_method": "gptq", "bits": 4}) == Gptq(version=1)
    assert format_of({"quant_method": "tinychat", "group_size": 64}) == TinyChat(group_size=64)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not supported"),
        ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits"),
        ({"quant_method": "awq", "version": "marlin"}, "awq version 'marlin'"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "0 config_groups"),
        ({**PackQuantized().config(), "format": "marlin-24"}, "'marlin-24' with 4 bits"),
    ],
)
def test_what_is_not_supported_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        format_of(config)


def test_weights_that_do_not_fit_are_refused() -> None:
    odd = quantize_int4(torch.randn(12, 128), group_size=64)
    with pytest.raises(FormatError, match="multiple of 8"):
        AwqGemm().write(odd)
    wide = quantize_int4(torch.randn(16, 128) * 1e-6, group_size=64, dtype=torch.bfloat16)
    with pytest.raises(FormatError, match="do not fit float16"):
        AwqGemm().write(wide)
    with pytest.raises(FormatError, match="symmetric=True"):
        PackQuantized(symmetric=True).write(codes())
    with pytest.raises(FormatError, match="not whole"):
        AwqGemm().read({**AwqGemm().write(codes()), "scales": torch.ones(3, N)})
