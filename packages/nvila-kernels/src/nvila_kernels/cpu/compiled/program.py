"""Machine code of a program: compiled once, kept on disk, and run without numba.

Compiling takes some seconds and importing numba most of one, so what comes out is kept in the user's cache folder and
the next process only has llvmlite load it. The file's name holds a digest of everything that it comes from: the sources
of all programs, the versions of numba, llvmlite and Python, the processor and its instructions. A file begins with the
digest of the rest, and is written in one step; so processes may write at the same time, and one that is not whole is
compiled anew.
"""

# pyright: basic
import ctypes
import logging
import platform
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding

from nvila_kernels.cpu.folder import replace_file, user_folder
from nvila_kernels.cpu.machine import installed

logger = logging.getLogger(__name__)

SIGNATURE = "void(int64, int64, int64, int64)"
"""Of what numba compiles: the thread, how many there are, and the addresses of the state and of the arguments."""
OPTIONS = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""How numba compiles it: nothing in it calls Python."""
ENTRY = "nvila_program"
NATIVE = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64
)
"""numba's own convention: where a result and an error would go, then the arguments."""
OUTSIDE = {"NRT_MemInfo_call_dtor", "sched_yield", "sqrt", "sqrtf", "sinf", "cosf", "floorf", "rintf"}
"""What a program may call outside of itself. The first would free an array of numba's; it has none of those."""
DIGEST = 32
SOURCES = Path(__file__).parent

Compiled = Callable[[], Any]
"""Makes numba's function of a program; called only where there is something to compile."""


class Program:
    """A compiled function that all threads of a team run.

    Args:
        code: an object file with ``ENTRY``.
    """

    def __init__(self, code: bytes) -> None:
        self.engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine())
        self.engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self.engine.finalize_object()
        self.native = NATIVE(self.engine.get_function_address(ENTRY))

    def __call__(self, thread: int, threads: int, state: np.ndarray, arguments: np.ndarray) -> None:
        """Run the part of one thread, without the GIL."""
        self.native(RESULT, ERROR, thread, threads, state.ctypes.data, arguments.ctypes.data)


_nowhere = (ctypes.c_int64 * 2)()
RESULT, ERROR = ctypes.addressof(_nowhere), ctypes.addressof(_nowhere) + 8
"""Nothing is ever written there."""
nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)


def target_machine() -> binding.TargetMachine:
    """Code for this processor. Each program has one of its own, which it ends with."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    if binding.address_of_symbol("NRT_MemInfo_call_dtor") is None:  # numba is not here
        binding.add_symbol("NRT_MemInfo_call_dtor", ctypes.cast(nothing, ctypes.c_void_p).value)
    target = binding.Target.from_default_triple()
    features = binding.get_host_cpu_features().flatten()
    return target.create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3, reloc="default", codemodel="jitdefault"
    )


def load_program(name: str, compiled: Compiled, *, instructions: str, sources: Sequence[Path] = ()) -> Program:
    """The program as an earlier process left it, or compiled now.

    Args:
        name: of its file.
        compiled: makes numba's function.
        instructions: the kind that it was written for.
        sources: files that it comes from beside those of this package.

    Raises: RuntimeError where numba cannot be imported or cannot compile it.
    """
    file = None
    try:
        file = user_folder() / "compiled" / f"{name}-{digest_of(instructions, sources)}"
        if code := read(file):
            return Program(code)
    except OSError as error:
        logger.warning("compiled programs cannot be read: %s", error)
    code = compile_program(compiled)
    try:
        if file is not None:
            replace_file(file, sha256(code).digest() + code)
    except OSError as error:
        logger.warning("%s cannot be written, so the next process compiles again: %s", file, error)
    return Program(code)


def read(file: Path) -> bytes | None:
    """The code of a file; None if there is none, or not all of it. Raises: OSError."""
    if not file.is_file():
        return None
    held = file.read_bytes()
    code = held[DIGEST:]
    return code if sha256(code).digest() == held[:DIGEST] else None


def digest_of(instructions: str, sources: Sequence[Path]) -> str:
    """Of everything that code comes from."""
    made = sha256()
    for source in [*sorted(SOURCES.glob("*.py")), *sources]:
        made.update(source.read_bytes())
    versions = [installed(package) for package in ("numba", "llvmlite", "numpy")]
    processor = [binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), binding.get_process_triple()]
    made.update("\n".join([platform.python_version(), *versions, *processor, instructions]).encode())
    return made.hexdigest()[:DIGEST]


def compile_program(compiled: Compiled) -> bytes:
    """An object file in which numba's function is ``ENTRY``. Raises: RuntimeError where numba cannot make it."""
    try:
        from numba.core.errors import NumbaError
    except ImportError as error:  # it is absent, or older than the numpy that is here
        raise RuntimeError(f"numba cannot be imported ({error}): pip install 'nvila-kernels[cpu]'") from None
    try:
        function = compiled()
        function.compile(SIGNATURE)
    except NumbaError as error:
        message = getattr(error, "msg", error)
        raise RuntimeError(f"numba {installed('numba')} cannot compile the product: {message}") from error
    ((signature, made),) = function.overloads.items()
    target = target_machine()
    text = function.inspect_llvm(signature).replace(made.fndesc.llvm_func_name, ENTRY)
    module = binding.parse_assembly(text)
    outside = {each.name for each in module.functions if each.is_declaration and not each.name.startswith("llvm.")}
    assert outside <= OUTSIDE, f"the program calls {sorted(outside - OUTSIDE)}"
    return target.emit_object(module)
