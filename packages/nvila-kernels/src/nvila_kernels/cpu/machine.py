"""What the times of a kernel depend on besides its shape."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

INSTRUCTIONS = "NVILA_KERNELS_INSTRUCTIONS"
"""Environment variable that names the vector instructions of compiled products, by default the best there are."""
CPUINFO = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name, as far as the system tells; clouds give one name to several generations."""
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if "model name" in fields:
            generation = [fields[key] for key in ("cpu family", "model") if key in fields]
            return " ".join([fields["model name"], *(["/".join(generation)] if generation else [])])
    return platform.processor() or platform.machine()


def machine() -> str:
    """Processor, its vector instructions as torch sees them or as they are named for compiled products, threads and how
    they wait, and versions of libraries.
    """
    libraries = ", ".join(f"{name} {installed(name)}" for name in ("numba",))
    vectors = os.environ.get(INSTRUCTIONS) or torch.backends.cpu.get_cpu_capability()
    return (
        f"{processor()}, {vectors}, {torch.get_num_threads()} threads "
        f"({waiting()}), torch {torch.__version__}, {libraries}"
    )


def installed(package: str) -> str:
    """Its version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def waiting() -> str:
    """How torch's threads wait for work, by OpenMP's settings: the other kernels share their cores."""
    if spins := os.environ.get("GOMP_SPINCOUNT"):
        return f"waiting {spins} turns"
    return os.environ.get("OMP_WAIT_POLICY", "waiting as OpenMP likes").lower()
