"""Quantized replacements of ``torch.nn.Linear``."""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from nvila_kernels import functional
from nvila_kernels.pack import BLOCK, NO_SCALE, blocks, kernel_group, kernel_groups, pack_int4, pack_scale_zero
from nvila_kernels.quantization import Int4Codes, Int8Codes, pad_features, padded_features, quantize_int4, quantize_int8
from nvila_kernels.reference import int4_codes


class Int4Linear(nn.Module):
    """A linear layer with 4-bit weights and 16-bit activations.

    ``y = x @ (scale * (codes - zero)).T + bias``

    Args:
        in_features, out_features: of the layer.
        bias: whether there is one.
        group_size: input features that share a scale: 32, 64, a multiple of 128, or 0 for a whole row.
        scale_dtype: float16 (as AutoAWQ's files have it) or bfloat16.
        accumulate: of the sums; float16 for float16 activations only, see :func:`~nvila_kernels.w4a16_linear`.
        dtype: of the bias.

    Shapes: ``[..., in_features] -> [..., out_features]``, float16, bfloat16 or (on the CPU) float32.
    """

    packed: Tensor
    scale_zero: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        group_size: int = BLOCK,
        scale_dtype: torch.dtype = torch.float16,
        accumulate: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        self.scale_dtype = scale_dtype
        self.accumulate = accumulate
        group = kernel_group(in_features, group_size)
        groups = kernel_groups(in_features, group)
        packed = torch.zeros(blocks(in_features), out_features, 32, dtype=torch.int16, device=device)
        self.register_buffer("packed", packed)
        words = torch.full((groups, out_features), NO_SCALE, dtype=torch.int32, device=device)
        self.register_buffer("scale_zero", words)
        self.register_buffer("bias", torch.zeros(out_features, device=device, dtype=dtype) if bias else None)

    @classmethod
    def from_codes(cls, weight: Int4Codes, bias: Tensor | None = None) -> Self:
        """Take over a weight read from a file; its scales become float16 unless they are bfloat16."""
        scale = weight.scale if weight.scale.dtype == torch.bfloat16 else weight.scale.to(torch.float16)
        layer = cls(
            weight.in_features,
            weight.out_features,
            bias=bias is not None,
            group_size=weight.group_size,
            scale_dtype=scale.dtype,
            device="meta",
        )
        layer.packed = pack_int4(weight.codes)
        layer.scale_zero = pack_scale_zero(
            scale, weight.zero, in_features=weight.in_features, group_size=weight.group_size
        )
        layer.bias = None if bias is None else bias.detach().clone()
        return layer

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        group_size: int = BLOCK,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
    ) -> Self:
        """Quantize a layer by rounding to nearest."""
        weight = quantize_int4(linear.weight.detach(), group_size=group_size, symmetric=symmetric, dtype=scale_dtype)
        return cls.from_codes(weight, linear.bias)

    def codes(self) -> Int4Codes:
        """The weight as plain tensors, for writing it into a file; groups of more than 128 come back as
        groups of 128.
        """
        group = kernel_group(self.in_features, self.group_size)
        return int4_codes(self.packed, self.scale_zero, self.in_features, group, self.scale_dtype)

    def forward(self, x: Tensor) -> Tensor:
        return functional.w4a16_linear(
            x,
            self.packed,
            self.scale_zero,
            self.bias,
            group_size=self.group_size,
            scale_dtype=self.scale_dtype,
            accumulate=self.accumulate,
        )

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, group_size={self.group_size}"


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and activations.

    ``y = (round(x / x_scale) @ codes.T) * x_scale * weight_scale + bias``, then GELU (tanh) if asked.

    Args:
        in_features, out_features: of the layer.
        bias: whether there is one.
        static: one activation scale for all tokens (the buffer ``x_scale``) instead of one a token, measured
            as it comes.
        gelu: apply GELU (tanh) to the result.
        dtype: of the bias.

    Shapes: ``[..., in_features] -> [..., out_features]`` of the same float type.
    """

    weight: Tensor
    weight_scale: Tensor
    x_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        static: bool = False,
        gelu: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.gelu = gelu
        weight = torch.zeros(out_features, padded_features(in_features), dtype=torch.int8, device=device)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", torch.ones(out_features, dtype=torch.float32, device=device))
        self.register_buffer("x_scale", torch.ones(1, dtype=torch.float32, device=device) if static else None)
        self.register_buffer("bias", torch.zeros(out_features, device=device, dtype=dtype) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, x_scale: Tensor | None = None, gelu: bool = False) -> Self:
        """Quantize a layer: one scale an output channel, activations by ``x_scale`` or, without one, token by
        token.
        """
        bias = cast("Tensor | None", linear.bias)
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias=bias is not None,
            static=x_scale is not None,
            gelu=gelu,
            device="meta",
        )
        layer.weight, layer.weight_scale = quantize_int8(
            linear.weight.detach(), padded=padded_features(linear.in_features)
        )
        layer.x_scale = None if x_scale is None else x_scale.float().reshape(1)
        layer.bias = None if bias is None else bias.detach().clone()
        return layer

    @classmethod
    def from_codes(cls, weight: Int8Codes, bias: Tensor | None = None, *, gelu: bool = False) -> Self:
        """Take over a weight read from a file."""
        n, k = weight.codes.shape
        layer = cls(k, n, bias=bias is not None, static=weight.x_scale is not None, gelu=gelu, device="meta")
        layer.weight = pad_features(weight.codes, padded_features(k)).contiguous()
        layer.weight_scale, layer.x_scale = weight.scale.float(), weight.x_scale
        layer.bias = None if bias is None else bias.detach().clone()
        return layer

    def codes(self) -> Int8Codes:
        """The weight as plain tensors, for writing it into a file."""
        return Int8Codes(codes=self.weight[:, : self.in_features], scale=self.weight_scale, x_scale=self.x_scale)

    def forward(self, x: Tensor) -> Tensor:
        return functional.w8a8_linear(
            x, self.weight, self.weight_scale, self.bias, x_scale=self.x_scale, gelu=self.gelu
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A cast of the whole model to 16 bits must not round the scales, which multiply every product.
        scales = self.weight_scale, self.x_scale
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        device = self.weight.device
        if not scales[0].is_meta:
            self.weight_scale = scales[0].to(device)
            self.x_scale = None if scales[1] is None else scales[1].to(device)
        return self

    def extra_repr(self) -> str:
        bias, static = self.bias is not None, self.x_scale is not None
        return f"{self.in_features}, {self.out_features}, bias={bias}, static={static}"
