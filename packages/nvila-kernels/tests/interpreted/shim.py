"""Repairs of triton's interpreter, for tests only.

Version 3.9 keeps bfloat16 as bare uint16 (arithmetic, negation and ``tl.dot`` treat the bits as an integer), truncates
when it narrows float32 to bfloat16, loses the carry of the rounding to float8, and knows no inline assembly. Here
bfloat16 is computed in float32 and rounded to nearest even, casts go through torch, and the few PTX instructions that
the kernels use are emulated. ``check_shim.py`` compares all of it with torch.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

FLOATS = {
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}
STORED = {1: torch.uint8, 2: torch.uint16, 4: torch.float32, 8: torch.float64}


def to_torch(data: np.ndarray, dtype: tl.dtype) -> torch.Tensor:
    """The numpy array that stands for values of ``dtype`` as a tensor of that type."""
    tensor = torch.from_numpy(np.array(data, copy=True))
    wanted = FLOATS[dtype]
    return tensor if tensor.dtype == wanted else tensor.view(wanted)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The way the interpreter stores a tensor: bfloat16 as uint16, float8 as uint8."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        return tensor.view(torch.uint8).numpy()
    return tensor.numpy()


def cast(data: np.ndarray, source: tl.dtype, target: tl.dtype) -> np.ndarray:
    """Round to nearest even; to float8 with saturation, as ``cvt.rn.satfinite`` does."""
    tensor = to_torch(data, source)
    wanted = FLOATS[target]
    if wanted in (torch.float8_e4m3fn, torch.float8_e5m2):
        limit = torch.finfo(wanted).max
        tensor = tensor.float().clamp(-limit, limit)
    return to_numpy(tensor.to(wanted))


def widened(operation: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """An interpreter's operation, with bfloat16 operands taken to float32 and its bfloat16 result rounded back."""

    def run(self: InterpreterBuilder, *handles: Any) -> TensorHandle:
        if not any(isinstance(h, TensorHandle) and h.dtype.scalar == tl.bfloat16 for h in handles):
            return operation(self, *handles)
        wide = [
            TensorHandle(cast(h.data, tl.bfloat16, tl.float32), tl.float32)
            if isinstance(h, TensorHandle) and h.dtype.scalar == tl.bfloat16
            else h
            for h in handles
        ]
        result = operation(self, *wide)
        if result.data.dtype == np.bool_:
            return result
        return TensorHandle(cast(result.data, tl.float32, tl.bfloat16), tl.bfloat16)

    return run


def float_cast(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """Casts between floating-point types by torch; the rest by the interpreter."""

    def run(self: InterpreterBuilder, source: TensorHandle, target: tl.dtype, *rest: Any) -> TensorHandle:
        before, after = source.dtype.scalar, target.scalar
        if before in FLOATS and after in FLOATS:
            return TensorHandle(cast(source.data, before, after), after)
        if before == tl.bfloat16:
            source = TensorHandle(cast(source.data, before, tl.float32), tl.float32)
        if after == tl.bfloat16:
            wide = original(self, source, tl.float32, *rest)
            return TensorHandle(cast(wide.data, tl.float32, after), after)
        return original(self, source, target, *rest)

    return run


def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, *_: Any) -> TensorHandle:
    """Products of 16- and 8-bit floats are exact in float32; sums are taken in float64 and rounded once."""
    if a.dtype.is_int():
        data = np.matmul(a.data.astype(np.int64), b.data.astype(np.int64)) + d.data
        return TensorHandle(data.astype(d.data.dtype), d.dtype.scalar)
    left = to_torch(a.data, a.dtype.scalar).double()
    right = to_torch(b.data, b.dtype.scalar).double()
    total = left @ right + to_torch(d.data, d.dtype.scalar).double()
    return TensorHandle(to_numpy(total.to(FLOATS[d.dtype.scalar])), d.dtype.scalar)


# --- the PTX in use, on uint32 registers ---


def _halves(register: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(register.astype(np.uint32)).view(torch.uint16).view(dtype).double()


def _register(values: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    return values.to(dtype).view(torch.uint16).view(torch.uint32).numpy()


def _lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    result = np.zeros_like(a)
    for index in range(8):
        if int(table.flat[0]) >> index & 1:
            terms = [v if index >> shift & 1 else ~v for v, shift in ((a, 2), (b, 1), (c, 0))]
            result |= terms[0] & terms[1] & terms[2]
    return result


def _fma(dtype: torch.dtype) -> Callable[..., np.ndarray]:
    return lambda a, b, c: _register(_halves(a, dtype) * _halves(b, dtype) + _halves(c, dtype), dtype)


INSTRUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "mov.b32": lambda a: a,
    "shr.u32": lambda a, b: a >> b,
    "lop3.b32": _lop3,
    "sub.f16x2": lambda a, b: _register(_halves(a, torch.float16) - _halves(b, torch.float16), torch.float16),
    "fma.rn.f16x2": _fma(torch.float16),
    "fma.rn.bf16x2": _fma(torch.bfloat16),
    "cvt.rni.s32.f32": lambda a: np.rint(a.view(np.float32)).astype(np.int32).view(np.uint32),
}


def run_ptx(assembly: str, outputs: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Execute straight-line PTX on arrays of 32-bit registers: ``$0`` and on are outputs, then inputs."""
    registers: dict[str, np.ndarray] = {f"${outputs + i}": value for i, value in enumerate(inputs)}

    def operand(text: str) -> np.ndarray:
        return registers[text] if text in registers else np.full_like(inputs[0], int(text, 0))

    for statement in re.sub(r"[{}]", "", assembly).split(";"):
        if not statement.strip() or statement.strip().startswith(".reg"):
            continue
        opcode, rest = statement.strip().split(None, 1)
        target, *sources = [word.strip() for word in rest.split(",")]
        registers[target] = INSTRUCTIONS[opcode](*(operand(s) for s in sources))
    return [registers[f"${i}"] for i in range(outputs)]


def inline_asm(
    self: InterpreterBuilder,
    assembly: str,
    constraints: str,
    values: list[TensorHandle],
    types: Any,
    pure: bool,
    pack: int,
) -> Any:
    """Pack operands into registers, run the PTX, unpack the results."""
    kinds = list(types) if isinstance(types, (list, tuple)) else [types]
    shape = values[0].data.shape
    registers = [np.ascontiguousarray(v.data).reshape(-1).view(np.uint32) for v in values]
    results = run_ptx(assembly, constraints.count("="), registers)
    handles = [
        TensorHandle(np.ascontiguousarray(r).view(interpreter._get_np_dtype(k.scalar)).reshape(shape), k.scalar)
        for r, k in zip(results, kinds, strict=True)
    ]
    return InlineResults(handles)


class InlineResults:
    """What the language layer expects of an inline-assembly call: an operation with numbered results."""

    def __init__(self, handles: list[TensorHandle]) -> None:
        self.handles = handles

    def get_result(self, index: int) -> TensorHandle:
        return self.handles[index]


WIDENED = [
    "create_fadd",
    "create_fsub",
    "create_fmul",
    "create_fdiv",
    "create_fneg",
    "create_fma",
    "create_fabs",
    "create_clampf",
    "create_exp",
    "create_sqrt",
    "create_maximumf",
    "create_minimumf",
    "create_maxnumf",
    "create_minnumf",
    "create_fcmpOLT",
    "create_fcmpOGT",
    "create_fcmpOEQ",
]


def install() -> None:
    """Replace the interpreter's defective operations in this process."""
    for name in WIDENED:
        setattr(InterpreterBuilder, name, widened(getattr(InterpreterBuilder, name)))
    for name in [
        "create_fp_ext",
        "create_fp_trunc",
        "create_fp_to_fp",
        "create_si_to_fp",
        "create_ui_to_fp",
        "create_fp_to_si",
    ]:
        setattr(InterpreterBuilder, name, float_cast(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.create_inline_asm = inline_asm
