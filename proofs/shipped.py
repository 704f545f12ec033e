"""Every kernel that this package launches, as the compiler sees it, from the tables of ``nvila_kernels.triton.tiles``.

Those of ``AMD`` hold no inline assembly.
"""
# pyright: basic
# Kernels carry no usable types.

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton.language as tl
from nvila_kernels.quantization import FP8_MAX, FP8_SMALLEST_SCALE, padded_features
from nvila_kernels.triton import fp8, w4a16, w8a8
from nvila_kernels.triton.byte_product import byte_product
from nvila_kernels.triton.tiles import (
    AMD,
    ARCHITECTURES,
    DECODE_ROWS,
    FP8,
    INT4,
    INT8,
    UNFUSED,
    Tile,
    row_options,
)

from proofs.ahead import Launch

FLOATS = {"fp16": tl.float16, "bf16": tl.bfloat16}
FLOAT8 = (("e4m3", "*fp8e4nv", FP8_MAX[torch.float8_e4m3fn]), ("e5m2", "*fp8e5", FP8_MAX[torch.float8_e5m2]))
GROUPS = (128, 64, 32, 0)
SIGLIP = (1152, 4304)
"""Features of SigLIP so400m: its width and that of its MLP."""

Unit = Literal["instructions_per_weight", "macs_per_instruction", "instructions_per_element"]


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """One compiled variant of a kernel.

    kernel, phase, dtype, arch, config: its name; phase is decode, prefill, product or rows.
    launch: what the compiler gets.
    unit, work: what it is measured by, and how many weights, multiply-adds or elements one thread deals with in a round
        of the main loop (in the whole program where there is no loop).
    half: whether it sums in float16.
    """

    kernel: str
    phase: str
    dtype: str
    arch: int
    config: str
    launch: Launch
    unit: Unit
    work: int
    half: bool = False

    @property
    def name(self) -> str:
        """The key of the golden file."""
        return f"{self.kernel} {self.dtype} {self.config} sm_{self.arch}"


def launch_of(kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any]) -> Launch:
    """A launch whose pointers are aligned, and whose widths (``N``, ``K``, strides) are multiples of 16."""
    aligned = tuple(name for name, kind in types.items() if kind[0] == "*" or name in ("N", "K") or "stride" in name)
    return Launch(
        kernel=kernel,
        types=types,
        aligned=aligned,
        constants=constants,
        warps=options["num_warps"],
        stages=options.get("num_stages", 3),
        fusion=options["enable_fp_fusion"],
        registers=options.get("maxnreg"),
    )


def int4_launch(dtype: str, tile: Tile, group: int, *, half: bool, split: int = 1, assembly: bool = True) -> Launch:
    """The 4-bit kernel of one tile."""
    decode = tile.block_m <= DECODE_ROWS
    out = "*fp32" if split > 1 else f"*{dtype}"
    types = {"x": f"*{dtype}", "packed": "*i16", "scale_zero": "*i32", "bias": f"*{dtype}", "out": out}
    types |= {"M": "i32", "N": "i32", "BLOCKS": "i32", "stride_x": "i32"}
    constants = {"BIAS": True, "GROUP": group, "SCALE": tl.float16, "HALF": half, "ASM": assembly, "NARROW": False}
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n} | ({"SPLIT": split} if decode else {})
    return launch_of(w4a16.decode if decode else w4a16.prefill, types, constants, tile.options(fusion=True))


def int4(arch: int) -> Iterator[Shipped]:
    """W4A16: each tile, group and type; float16 sums and split K once for each tile."""
    for tile in INT4[arch].values():
        threads = tile.warps * 32
        decode = tile.block_m <= DECODE_ROWS
        variants = [(dtype, group, False, 1) for dtype in FLOATS for group in GROUPS] + [("fp16", 128, True, 1)]
        variants += [("fp16", 128, False, 4)] if decode else []
        for dtype, group, half, split in variants:
            extra = " float16 sums" if half else f" split {split}" if split > 1 else ""
            yield Shipped(
                kernel="w4a16",
                phase="decode" if decode else "prefill",
                dtype=dtype,
                arch=arch,
                config=f"{tile.block_m}x{tile.block_n} group {group or 'row'}{extra}",
                launch=int4_launch(dtype, tile, group, half=half, split=split, assembly=arch != AMD),
                unit="instructions_per_weight" if decode else "macs_per_instruction",
                work=128 * tile.block_n * (1 if decode else tile.block_m) // threads,
                half=half,
            )


def product_launch(
    x: str, weight: str, bias: str, out: str, tile: Tile, *, gelu: bool, quantize: bool, assembly: bool = True
) -> Launch:
    """The 8-bit product of one tile, with bias and a scale for each token and channel."""
    types = {"x": x, "weight": weight, "x_scale": "*fp32", "weight_scale": "*fp32", "bias": bias, "out": out}
    types |= {"out_scale": "*fp32", "M": "i32", "N": "i32", "K": "i32", "stride_out": "i32"}
    constants = {"PER_TOKEN": True, "PER_CHANNEL": True, "BIAS": True, "GELU": gelu, "REQUANTIZE": quantize}
    constants |= {"ASM": assembly, "HALVES": tile.halves, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    constants |= {"BLOCK_K": tile.block_k, "GROUP_M": 8}
    return launch_of(byte_product, types, constants, tile.options(fusion=False))


def products(arch: int) -> Iterator[Shipped]:
    """W8A8 with either epilogue, and the float8 product of both operand types."""
    variants = [
        ("w8a8", "int8", INT8, "*i8", "fp16", False),
        ("w8a8", "int8", INT8, "*i8", "int8 gelu", True),
        ("fp8", "e4m3", FP8, "*fp8e4nv", "bf16", False),
        ("fp8", "e5m2", FP8, "*fp8e5", "bf16", False),
    ]
    for kernel, dtype, table, x, ending, quantize in variants:
        for tile in table.get(arch, {}).values():
            weight, kind = ("*i8", "*fp16") if kernel == "w8a8" else ("*fp8e4nv", "*bf16")
            out = "*i8" if quantize else kind
            yield Shipped(
                kernel=kernel,
                phase="product",
                dtype=dtype,
                arch=arch,
                config=f"{tile.block_m}x{tile.block_n}x{tile.block_k} to {ending}",
                launch=product_launch(
                    x, weight, kind, out, tile, gelu=quantize, quantize=quantize, assembly=arch != AMD
                ),
                unit="macs_per_instruction",
                work=tile.block_m * tile.block_n * tile.block_k // (tile.warps * 32),
            )


def row_launches(features: int, *, assembly: bool) -> Iterator[tuple[str, str, dict[str, str], Any, dict[str, Any]]]:
    """The kernels that hold a row: name, type, types of the arguments, kernel, constants."""
    block = 1 << (padded_features(features) - 1).bit_length()
    types = {"x": "*fp16", "codes": "*i8", "scale": "*fp32", "K": "i32"}
    constants = {"PADDED": padded_features(features), "ASM": assembly, "BLOCK": block}
    yield "quantize_rows", "int8", types, w8a8.quantize_rows_kernel, constants | {"GELU": False}
    yield "gelu_quantize", "int8", types, w8a8.quantize_rows_kernel, constants | {"GELU": True}
    norm = types | {"weight": "*fp16", "bias": "*fp16", "epsilon": "fp32"}
    yield "layer_norm_quantize", "int8", norm, w8a8.layer_norm_quantize_kernel, constants
    for dtype, kind, limit in FLOAT8:
        cast = {"LIMIT": limit, "SMALLEST": FP8_SMALLEST_SCALE, "BLOCK": block}
        yield "cast_rows", dtype, types | {"codes": kind, "x": "*bf16"}, fp8.cast_rows, cast


def row_kernels(arch: int) -> Iterator[Shipped]:
    """Kernels without a product, at SigLIP's widths."""
    for features in SIGLIP:
        for name, dtype, types, kernel, constants in row_launches(features, assembly=arch != AMD):
            if dtype != "int8" and arch not in FP8:
                continue
            options = row_options(constants["BLOCK"])
            yield Shipped(
                kernel=name,
                phase="rows",
                dtype=dtype,
                arch=arch,
                config=f"{features} features",
                launch=launch_of(kernel, types, constants, options),
                unit="instructions_per_element",
                work=constants["BLOCK"] // (options["num_warps"] * 32),
            )


def flat_launches(*, assembly: bool) -> Iterator[tuple[str, str, dict[str, str], Any, dict[str, Any]]]:
    """The kernels that take a tensor in blocks of any shape, in the form of ``row_launches``."""
    counts = {"M": "i32", "K": "i32"}
    static = {"x": "*fp16", "scale": "*fp32", "codes": "*i8"} | counts
    yield (
        "quantize_static",
        "int8",
        static,
        w8a8.quantize_static_kernel,
        {"PADDED": 4352, "ASM": assembly, "BLOCK": 1024},
    )
    sums = {"workspace": "*fp32", "bias": "*fp16", "out": "*fp16", "M": "i32", "N": "i32"}
    yield "sum_splits", "fp16", sums, w4a16.sum_splits, {"BIAS": True, "SPLIT": 4, "BLOCK": 1024}
    yield "amax", "bf16", {"x": "*bf16", "largest": "*fp32", "COUNT": "i32"}, fp8.block_amax, {"BLOCK": 4096}
    for dtype, kind, limit in FLOAT8:
        cast = {"x": "*bf16", "scale": "*fp32", "codes": kind} | counts
        noted = {"LIMIT": limit, "BY_ROW": False, "AMAX": True, "BLOCK": 1024}
        yield "cast", dtype, cast | {"largest": "*fp32"}, fp8.cast, noted
        yield "cast_transposed", dtype, cast, fp8.cast_transposed, {"LIMIT": limit, "BLOCK": 64}


def flat_kernels(arch: int) -> Iterator[Shipped]:
    """Kernels that take a tensor in blocks, with triton's usual 4 warps."""
    for name, dtype, types, kernel, constants in flat_launches(assembly=arch != AMD):
        if dtype in ("e4m3", "e5m2") and arch not in FP8:
            continue
        elements = constants["BLOCK"] ** (2 if name == "cast_transposed" else 1)
        yield Shipped(
            kernel=name,
            phase="rows",
            dtype=dtype,
            arch=arch,
            config=f"blocks of {constants['BLOCK']}",
            launch=launch_of(kernel, types, constants, UNFUSED | {"num_warps": 4}),
            unit="instructions_per_element",
            work=elements // 128,
        )


FAMILIES = (int4, products, row_kernels, flat_kernels)


def shipped(architectures: tuple[int, ...] = ARCHITECTURES) -> list[Shipped]:
    """All variants for these architectures."""
    return [case for arch in architectures for family in FAMILIES for case in family(arch)]
