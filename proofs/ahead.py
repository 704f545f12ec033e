"""Compile a kernel for a GPU that is not here.

Triton's compiler needs no driver: given the types of the arguments, the constants and the architecture it makes the
same machine code that a launch on that GPU would make. It cannot where triton interprets (``TRITON_INTERPRET=1``).
"""
# pyright: basic
# Triton's compiler carries no usable types.

from dataclasses import dataclass
from typing import Any

import triton
from nvila_kernels.backends import interpreted
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ALIGNMENT = 16
"""Bytes to which torch aligns memory, and the divisor that a launch looks for in integers."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel with everything that a launch would tell the compiler.

    kernel: a function under ``triton.jit``.
    types: of the arguments that are no constants, in triton's spelling: ``"*fp16"`` is a pointer.
    aligned: arguments that are multiples of 16 (integers) or point to multiples of 16 bytes.
    constants: the values of the ``tl.constexpr`` arguments.
    warps, stages: of the block and of the software pipeline.
    fusion: whether a product and a sum may become one rounding.
    registers: the most that a thread may use; NVIDIA only.
    """

    kernel: Any
    types: dict[str, str]
    aligned: tuple[str, ...]
    constants: dict[str, Any]
    warps: int
    stages: int
    fusion: bool
    registers: int | None = None


def compile_ahead(launch: Launch, target: GPUTarget) -> Any:
    """The compiled kernel: ``.asm`` holds its stages, ``.metadata.shared`` its bytes of shared memory.

    Raises: RuntimeError where triton interprets.
    """
    if interpreted():
        raise RuntimeError("TRITON_INTERPRET=1 is set, which keeps triton from compiling: unset it")
    names = launch.kernel.arg_names
    signature = {name: launch.types.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in launch.aligned}
    source = ASTSource(launch.kernel, signature, constexprs=launch.constants, attrs=attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": launch.fusion}
    if launch.registers and target.backend == "cuda":
        options["maxnreg"] = launch.registers
    return triton.compile(source, target=target, options=options)


def nvidia(architecture: int) -> GPUTarget:
    """An NVIDIA GPU: 89 for compute capability 8.9."""
    return GPUTarget("cuda", architecture, 32)


def amd(architecture: str) -> GPUTarget:
    """An AMD GPU: ``"gfx942"`` has wavefronts of 64, ``"gfx1100"`` of 32."""
    return GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)
