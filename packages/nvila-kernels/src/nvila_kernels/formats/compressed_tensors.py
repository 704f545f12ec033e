"""compressed-tensors: 4-bit weights packed (``pack-quantized``), 8-bit weights as they are (``int-quantized``).

``pack-quantized``  ``weight_packed`` int32 ``[n, k / 8]`` of code + 8 in natural order, ``weight_scale``
``[n, k / g]``, ``weight_zero_point`` int32 ``[n / 8, k / g]`` of zero + 8, packed along the outputs, if there are any,
and ``weight_shape`` ``[2]``

``int-quantized``  ``weight`` int8 ``[n, k]``, ``weight_scale`` ``[n, 1]``, ``input_scale`` ``[1]`` if it is static
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from nvila_kernels.formats.layer import FormatError, Tensors, group_of, shapes_agree
from nvila_kernels.formats.words import PER_WORD, pack_words, unpack_words
from nvila_kernels.quantization import Int4Codes, Int8Codes

METHOD: Final = "compressed-tensors"


@dataclass(frozen=True, kw_only=True)
class PackQuantized:
    """4 bits.

    Args:
        group_size: input features that share a scale, for the configuration; -1 for a whole row.
        symmetric: no zero points.
    """

    group_size: int = 128
    symmetric: bool = False
    names: tuple[str, ...] = ("weight_packed", "weight_scale")
    optional: tuple[str, ...] = ("weight_zero_point", "weight_shape", "weight_g_idx")

    def read(self, tensors: Tensors) -> Int4Codes:
        codes, scale = unpack_words(tensors["weight_packed"]), tensors["weight_scale"]
        if (shape := tensors.get("weight_shape")) is not None:
            codes = codes[:, : int(shape[1])]
        if tensors.get("weight_g_idx") is not None:
            raise FormatError(
                "weight_g_idx orders inputs by activation, which the kernels cannot read: use actorder=null"
            )
        group = group_of(codes.shape[1], scale.shape[1])
        shapes_agree("weight_scale", scale, (len(codes), codes.shape[1] // group))
        zero = torch.full(scale.shape, 8, dtype=torch.uint8)
        if (packed := tensors.get("weight_zero_point")) is not None:
            zero = unpack_words(packed.T.contiguous()).T[: len(codes)].contiguous()
        return Int4Codes(codes=codes.contiguous(), scale=scale, zero=zero, group_size=group)

    def write(self, weight: Int4Codes) -> dict[str, Tensor]:
        n, k = weight.codes.shape
        if k % PER_WORD or n % PER_WORD or k % weight.group_size:
            raise FormatError(
                f"pack-quantized cannot hold {n} outputs and {k} inputs in groups of {weight.group_size}: both must be "
                f"multiples of {PER_WORD}, and the inputs of the group"
            )
        found = {
            "weight_packed": pack_words(weight.codes),
            "weight_scale": weight.scale.contiguous(),
            "weight_shape": torch.tensor([n, k]),
        }
        if not self.symmetric:
            found["weight_zero_point"] = pack_words(weight.zero.T).T.contiguous()
        elif not bool((weight.zero == 8).all()):
            raise FormatError("a symmetric weight has no zero points but 8: quantize with symmetric=True")
        return found

    def config(self, *, skipped: tuple[str, ...] = ()) -> dict[str, Any]:
        grouped: dict[str, Any] = {"strategy": "group", "group_size": self.group_size}
        if self.group_size < 0:
            grouped = {"strategy": "channel", "group_size": None}
        weights = {"num_bits": 4, "type": "int", "symmetric": self.symmetric, "dynamic": False, **grouped}
        return _config("pack-quantized", weights, None, skipped)


@dataclass(frozen=True, kw_only=True)
class IntQuantized:
    """8 bits for weights and activations.

    Args:
        static: activations have one scale, measured beforehand, instead of one a token.
    """

    static: bool = False
    names: tuple[str, ...] = ("weight_scale", "weight")
    optional: tuple[str, ...] = ("input_scale",)

    def read(self, tensors: Tensors) -> Int8Codes:
        codes, scale = tensors["weight"], tensors["weight_scale"]
        if codes.dtype != torch.int8:
            raise FormatError(f"the weight is {codes.dtype}, int-quantized has int8: check the format")
        if scale.numel() == 1:
            scale = scale.reshape(1, 1).expand(len(codes), 1)
        shapes_agree("weight_scale", scale, (len(codes), 1))
        x_scale = tensors.get("input_scale")
        return Int8Codes(
            codes=codes,
            scale=scale[:, 0].float().contiguous(),
            x_scale=None if x_scale is None else x_scale.float().reshape(1),
        )

    def write(self, weight: Int8Codes) -> dict[str, Tensor]:
        if (weight.x_scale is not None) != self.static:
            said, has = ("static", "none") if self.static else ("a token", "a static one")
            raise FormatError(f"the activation scale is to be {said}, the layer has {has}: quantize all layers alike")
        found = {"weight": weight.codes.contiguous(), "weight_scale": weight.scale[:, None].contiguous()}
        if weight.x_scale is not None:
            found["input_scale"] = weight.x_scale
        return found

    def config(self, *, skipped: tuple[str, ...] = ()) -> dict[str, Any]:
        both = {"num_bits": 8, "type": "int", "symmetric": True}
        weights = {**both, "strategy": "channel", "dynamic": False}
        inputs = {**both, "strategy": "tensor" if self.static else "token", "dynamic": not self.static}
        return _config("int-quantized", weights, inputs, skipped)


def mixed_config(forms: Mapping[str, PackQuantized | IntQuantized], *, skipped: tuple[str, ...] = ()) -> dict[str, Any]:
    """The ``quantization_config`` of layers that differ in bits or groups: one group of it for each scheme.

    Args:
        forms: of each layer, by the name that the checkpoint gives it.
        skipped: linear layers that stay floats.
    """
    alike: dict[PackQuantized | IntQuantized, list[str]] = {}
    for name, form in forms.items():
        alike.setdefault(form, []).append(name)
    groups: dict[str, Any] = {}
    for number, (form, names) in enumerate(alike.items()):
        config = form.config()
        groups[f"group_{number}"] = {**config["config_groups"]["group_0"], "targets": names, "format": config["format"]}
    layouts = {group["format"] for group in groups.values()}
    layout = layouts.pop() if len(layouts) == 1 else "mixed-precision"
    return _whole(layout, groups, skipped)


def _config(
    layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None, skipped: tuple[str, ...]
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return _whole(layout, {"group_0": group}, skipped)


def _whole(layout: str, groups: dict[str, Any], skipped: tuple[str, ...]) -> dict[str, Any]:
    return {
        "quant_method": METHOD,
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(skipped),
        "kv_cache_scheme": None,
    }
