"""What the times of a kernel depend on besides its shape."""

import ctypes
import ctypes.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name, as far as the system tells; clouds give one name to several generations."""
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if "model name" in told:
            generation = [told[key] for key in ("cpu family", "model") if key in told]
            return " ".join([told["model name"], *(["/".join(generation)] if generation else [])])
    return platform.processor() or platform.machine()


def machine() -> str:
    """Processor, its vector instructions as torch sees them, threads and how they wait, and versions of libraries."""
    try:
        onnxruntime = version("onnxruntime")
    except PackageNotFoundError:
        onnxruntime = "absent"
    return (
        f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads "
        f"({waiting()}), torch {torch.__version__}, onnxruntime {onnxruntime}"
    )


def waiting() -> str:
    """What torch's threads do when there is nothing to do, by OpenMP's setting: the other kernels share their cores."""
    return os.environ.get("OMP_WAIT_POLICY", "waiting as OpenMP likes").lower()


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    After the first large tensor is freed, glibc serves its like from its heap, and packing layer after layer leaves
    holes there that add up to several times the model.
    """
    name = ctypes.util.find_library("c") if platform.system() == "Linux" else None
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
