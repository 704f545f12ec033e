"""Four-bit codes to floats inside a kernel, without a conversion instruction.

OR-ing a code into the mantissa of 1024 (float16) or 128 (bfloat16) gives exactly ``1024 + code``, and one fused
multiply-add takes the magic number and the zero point off again. Two nibbles of a 16-bit word fit under float16's
mantissa, so that half of the shifts fall away: the upper one reads as ``1024 + 16 code``, which the multiply-add
divides by 16.

Source: "Who says elephants can't run" (Kim et al., 2022), section 4; ``nvila_kernels.pack`` describes the layout.
"""
# ruff: noqa: N803, SIM108 - constants of a kernel are in capitals; a constexpr branch is a statement
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportRedeclaration=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# The body of a kernel is triton's language, whose functions carry no usable types.

import triton
import triton.language as tl

_FLOAT16_ASM = tl.constexpr("""{
.reg .b32 high, sixteenth;
mov.b32 sixteenth, 0x2c002c00;
shr.u32 high, $4, 8;
lop3.b32 $0, $4, 0x000f000f, 0x64006400, 0xea;
lop3.b32 $1, $4, 0x00f000f0, 0x64006400, 0xea;
lop3.b32 $2, high, 0x000f000f, 0x64006400, 0xea;
lop3.b32 $3, high, 0x00f000f0, 0x64006400, 0xea;
sub.f16x2 $0, $0, $5;
fma.rn.f16x2 $1, $1, sixteenth, $6;
sub.f16x2 $2, $2, $5;
fma.rn.f16x2 $3, $3, sixteenth, $6;
}""")

_BFLOAT16_ASM = tl.constexpr("""{
.reg .b32 one, second, third, fourth;
mov.b32 one, 0x3f803f80;
shr.u32 second, $4, 4;
shr.u32 third, $4, 8;
shr.u32 fourth, $4, 12;
lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
lop3.b32 $1, second, 0x000f000f, 0x43004300, 0xea;
lop3.b32 $2, third, 0x000f000f, 0x43004300, 0xea;
lop3.b32 $3, fourth, 0x000f000f, 0x43004300, 0xea;
fma.rn.bf16x2 $0, $0, one, $5;
fma.rn.bf16x2 $1, $1, one, $5;
fma.rn.bf16x2 $2, $2, one, $5;
fma.rn.bf16x2 $3, $3, one, $5;
}""")


@triton.jit
def centred_twin(words, scale_word, FLOAT: tl.constexpr):
    """``code - zero`` of the four nibbles of each int16 word, in plain triton: for the interpreter and AMD."""
    low = scale_word.to(tl.int16)  # 1024 + zero
    if tl.float16 == FLOAT:
        MAGIC: tl.constexpr = 0x6400
    else:
        MAGIC: tl.constexpr = 0x4300
        low = ((low & 63) | MAGIC).to(tl.int16)  # 128 + zero
    offset = low.to(FLOAT, bitcast=True)
    first = ((words & 15) | MAGIC).to(tl.int16).to(FLOAT, bitcast=True) - offset
    second = (((words >> 4) & 15) | MAGIC).to(tl.int16).to(FLOAT, bitcast=True) - offset
    third = (((words >> 8) & 15) | MAGIC).to(tl.int16).to(FLOAT, bitcast=True) - offset
    fourth = (((words >> 12) & 15) | MAGIC).to(tl.int16).to(FLOAT, bitcast=True) - offset
    return first, second, third, fourth


@triton.jit
def centred_asm(words, scale_word, FLOAT: tl.constexpr):
    """The same with packed instructions: for 8 weights 1 shift, 4 LOP3, 4 HFMA2 (float16), or 3, 4, 4 (bfloat16)."""
    low = scale_word.to(tl.int16)  # 1024 + zero
    if tl.float16 == FLOAT:
        smaller = 960.0 - low.to(tl.float16, bitcast=True)  # -(64 + zero)
        parts = tl.inline_asm_elementwise(
            _FLOAT16_ASM,
            "=&r,=&r,=&r,=&r,r,r,r",
            [words, low, smaller.to(tl.float16)],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    else:
        offset = ((low & 63) | 0xC300 - 0x10000).to(tl.int16)  # -(128 + zero)
        parts = tl.inline_asm_elementwise(
            _BFLOAT16_ASM,
            "=&r,=&r,=&r,=&r,r,r",
            [words, offset],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    return parts


@triton.jit
def centred(words, scale_word, FLOAT: tl.constexpr, ASM: tl.constexpr):
    """``code - zero``, exact: int16 words ``[n, 32]`` and packed scale words ``[n]`` to four ``[n, 32]``."""
    if ASM:
        parts = centred_asm(words, scale_word[:, None], FLOAT)
    else:
        parts = centred_twin(words, scale_word[:, None], FLOAT)
    return parts


@triton.jit
def scale_of(word, SCALE: tl.constexpr):
    """The scale in the upper half of a packed word, as float32."""
    return (word >> 16).to(tl.int16).to(SCALE, bitcast=True).to(tl.float32)
