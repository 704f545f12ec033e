"""Which format a checkpoint has, from its ``quantization_config``."""

from collections.abc import Mapping
from typing import Any

from nvila_kernels.formats.autoawq import AwqGemm, AwqGemv
from nvila_kernels.formats.compressed_tensors import METHOD, IntQuantized, PackQuantized
from nvila_kernels.formats.gptq import Gptq
from nvila_kernels.formats.layer import FormatError, LayerFormat
from nvila_kernels.formats.tinychat import TinyChat

KNOWN = "awq (gemm, gemv), gptq, tinychat, compressed-tensors (pack-quantized, int-quantized)"


def formats_of(config: Mapping[str, Any]) -> tuple[LayerFormat, ...]:
    """The formats that a ``quantization_config`` describes: several where compressed-tensors mixes schemes.

    A layer has the first one whose tensors are all there.

    Raises: FormatError as :func:`format_of`, and for a configuration without a scheme.
    """
    if str(config.get("quant_method", "")).lower() != METHOD:
        return (format_of(config),)
    schemes: Mapping[str, Mapping[str, Any]] = config.get("config_groups") or {}
    if not schemes:
        raise FormatError("0 config_groups say nothing of the layers: the configuration is not whole")
    found = [_compressed(scheme.get("format") or config.get("format"), scheme) for scheme in schemes.values()]
    return tuple(
        sorted(found, key=lambda form: isinstance(form, IntQuantized))
    )  # whose names are a part of the other's


def format_of(config: Mapping[str, Any]) -> LayerFormat:
    """The one format that a ``quantization_config`` describes.

    TinyChat's checkpoints have no configuration; give it one: ``{"quant_method": "tinychat", "group_size": 128}``.

    Raises: FormatError for another method, layout or number of bits.
    """
    method = str(config.get("quant_method", "")).lower()
    bits = int(config.get("bits", config.get("w_bit", 4)))
    group = int(config.get("group_size", config.get("q_group_size", 128)))
    if method in ("awq", "gptq", "tinychat") and bits != 4:
        raise FormatError(f"{method} with {bits} bits is not supported: only 4 are")
    if method == "awq":
        version = str(config.get("version", "gemm")).lower()
        if version not in ("gemm", "gemv"):
            raise FormatError(f"awq version {version!r} is not supported: gemm and gemv are")
        return AwqGemm(group_size=group) if version == "gemm" else AwqGemv(group_size=group)
    if method == "gptq":
        return Gptq(version=2 if config.get("checkpoint_format") == "gptq_v2" else 1)
    if method == "tinychat":
        return TinyChat(group_size=group)
    if method == METHOD:
        form, *others = formats_of(config)
        if others:
            raise FormatError(f"{1 + len(others)} config_groups are several formats, one was asked for: use formats_of")
        return form
    raise FormatError(f"quant_method {method!r} is not supported: {KNOWN} are")


def _compressed(layout: Any, scheme: Mapping[str, Any]) -> LayerFormat:
    weights: Mapping[str, Any] = scheme.get("weights") or {}
    inputs: Mapping[str, Any] | None = scheme.get("input_activations")
    bits = weights.get("num_bits")
    if layout == "pack-quantized" and bits == 4 and inputs is None:
        return PackQuantized(
            group_size=int(weights.get("group_size") or -1), symmetric=bool(weights.get("symmetric", True))
        )
    if layout == "int-quantized" and bits == 8 and weights.get("symmetric", True):
        return IntQuantized(static=inputs is not None and not inputs.get("dynamic", False))
    raise FormatError(
        f"compressed-tensors {layout!r} with {bits} bits is not supported: pack-quantized with 4 and int-quantized "
        "with 8 symmetric bits are"
    )
