"""The repaired interpreter against torch, over every 16-bit input."""

import pytest
import torch
import triton
import triton.language as tl

NAMES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
}
COUNT = 65536


@triton.jit
def cast_kernel(x, out, TARGET: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at).to(TARGET))


@triton.jit
def arithmetic_kernel(x, y, total, product, negative, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.arange(0, BLOCK)
    a = tl.load(x + at)
    b = tl.load(y + at)
    tl.store(total + at, a + b)
    tl.store(product + at, a * b)
    tl.store(negative + at, -a)


@triton.jit
def dot_kernel(x, y, out, SIZE: tl.constexpr):  # noqa: N803
    row = tl.arange(0, SIZE)[:, None]
    column = tl.arange(0, SIZE)[None, :]
    tl.store(out + row * SIZE + column, tl.dot(tl.load(x + row * SIZE + column), tl.load(y + row * SIZE + column)))


@triton.jit
def round_kernel(x, out, BLOCK: tl.constexpr):  # noqa: N803
    at = tl.arange(0, BLOCK)
    code = tl.inline_asm_elementwise("cvt.rni.s32.f32 $0, $1;", "=r,r", [tl.load(x + at)], tl.int32, True, 1)
    tl.store(out + at, code)


def every(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 values of a 16-bit type."""
    return torch.arange(COUNT, dtype=torch.int32).to(torch.uint16).view(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, where any NaN equals any other."""
    a, b = a.float(), b.float()
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def converted(x: torch.Tensor, target: torch.dtype) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=target)
    cast_kernel[(1,)](x, out, TARGET=NAMES[target], BLOCK=x.numel())
    return out


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.bfloat16])
def check_casts_between_16_and_32_bits(source: torch.dtype, target: torch.dtype) -> None:
    assert same(converted(every(source), target), every(source).to(target))


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16])
def check_float32_rounds_to_nearest_even(target: torch.dtype) -> None:
    bits = torch.arange(COUNT, dtype=torch.int64) << 16
    tails = (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)
    for tail in tails:
        x = (bits | tail).to(torch.uint32).view(torch.float32)
        assert same(converted(x, target), x.to(target))


@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float8_e4m3fn, torch.float8_e5m2])
def check_casts_to_float8_saturate(source: torch.dtype, target: torch.dtype) -> None:
    x = every(source).float()
    limit = torch.finfo(target).max
    assert same(converted(x, target), x.clamp(-limit, limit).to(target))


def check_bfloat16_arithmetic() -> None:
    x = every(torch.bfloat16)
    y = x[torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))]
    total, product, negative = (torch.empty_like(x) for _ in range(3))
    arithmetic_kernel[(1,)](x, y, total, product, negative, BLOCK=COUNT)
    assert same(total, x + y)
    assert same(product, x * y)
    assert same(negative, -x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def check_dot(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, 32, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(32, 32)
    dot_kernel[(1,)](x, y, out, SIZE=32)
    assert torch.equal(out, (x.double() @ y.double()).float())


def check_rounding_instruction() -> None:
    x = torch.cat([torch.arange(-130, 130, 0.5), torch.randn(504)])
    x = torch.cat([x, torch.zeros(1024 - x.numel())])
    out = torch.empty(1024, dtype=torch.int32)
    round_kernel[(1,)](x, out, BLOCK=1024)
    assert torch.equal(out, x.round().to(torch.int32))
