"""What must hold of every compiled kernel, and what was read of one.

No spills; shared memory within the architecture's limit; the matrix instruction that the source asks for, as often as
the tile needs it; in the 4-bit decode loop no conversion from integers and no weight that is waited for. The targets of
the main loops stand here as well.
"""
# pyright: basic
# Compiled kernels carry no usable types.

import re
from dataclasses import asdict, dataclass
from typing import Any

from nvila_kernels.triton.tiles import SHARED_LIMIT

from proofs.ahead import compile_ahead, nvidia
from proofs.cubin import Cubin, macs, read_cubin
from proofs.shipped import Shipped

CONVERSIONS = ("I2F", "I2FP", "I2F2", "I2HFP")
WAITING_LOADS = ("LDG", "LD")
TENSOR_MEMORY = 100
"""The architecture whose sums live in tensor memory; its instructions do not name their type."""

# The third operand is the sum; the first, dequantized weights, may lie in tensor memory too.
_TENSOR_SUM = re.compile(r"tc_gen5_mma .*?(?:!ttg\.memdesc<[^>]*>, ){2}!ttg\.memdesc<[0-9x]+x(f16|f32|i32), #tmem")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one kernel is made of.

    instructions: of one round of the main loop, or of the whole program where nothing is repeated.
    value: by the unit of the kernel: instructions for a weight, multiply-adds for an instruction and thread, or
        instructions for an element.
    products: the matrix instructions of the loop, and how many.
    faults: sentences on what is wrong; empty if all is well.
    """

    name: str
    kernel: str
    phase: str
    dtype: str
    arch: str
    config: str
    unit: str
    value: float
    target: float | None
    instructions: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    products: dict[str, int]
    faults: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """As JSON, the value under the name of its unit."""
        row = asdict(self)
        return row | {row.pop("unit"): row.pop("value")}


def target_of(case: Shipped) -> float | None:
    """What the main loop should reach: at most for instructions a weight, at least for multiply-adds.

    Decoding in groups of 128 or rows, for up to 8 rows in groups of 64 as well; smaller groups have more scales to
    apply. Products of int8, but for few rows on sm_90, where more tiles are worth more than larger ones.
    """
    constants = case.launch.constants
    if case.phase == "decode" and not case.half:
        if constants["GROUP"] == 32 or (constants["GROUP"] == 64 and constants["BLOCK_M"] > 8):
            return None
        if case.dtype == "fp16":
            return {90: 2.4, 100: 3.0}.get(case.arch, 2.0)
        return {80: 2.3, 86: 2.3, 87: 2.3, 89: 2.3, 90: 2.7}.get(case.arch)
    if case.kernel == "w8a8":
        large = {90: 120.0} if constants["BLOCK_M"] >= 128 else {}
        return {80: 52.0, 86: 52.0, 87: 52.0, 89: 52.0, **large}.get(case.arch)
    return None


def examine(case: Shipped) -> Finding:
    """Compile one variant and read it."""
    compiled = compile_ahead(case.launch, nvidia(case.arch))
    code = read_cubin(compiled.asm["cubin"])
    shared = int(compiled.metadata.shared)
    sums = set(_TENSOR_SUM.findall(compiled.asm["ttgir"])) if case.arch == TENSOR_MEMORY else set()
    instructions = len(code.program if case.phase == "rows" else code.loop)
    value = case.work / instructions if case.unit == "macs_per_instruction" else instructions / case.work
    return Finding(
        name=case.name,
        kernel=case.kernel,
        phase=case.phase,
        dtype=case.dtype,
        arch=f"sm_{case.arch}",
        config=case.config,
        unit=case.unit,
        value=round(value, 3),
        target=target_of(case),
        instructions=instructions,
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        shared_bytes=shared,
        products=dict(code.products()),
        faults=tuple(faults(case, code, shared, value, sums)),
    )


def faults(case: Shipped, code: Cubin, shared: int, value: float, tensor_sums: set[str]) -> list[str]:
    """What is wrong with one compiled kernel; ``tensor_sums`` are the types of sums in tensor memory."""
    found = []
    if code.spill_bytes:
        found.append(f"spills {code.spill_bytes} bytes of registers")
    if shared > SHARED_LIMIT[case.arch]:
        found.append(f"needs {shared} bytes of shared memory, sm_{case.arch} has {SHARED_LIMIT[case.arch]}")
    if case.phase != "rows":
        found += product_faults(case, code, tensor_sums)
    if case.phase == "decode":
        if conversions := code.count(*CONVERSIONS):
            found.append(f"the loop converts {conversions} integers")
        if waiting := code.count(*WAITING_LOADS):
            found.append(f"the loop waits for {waiting} loads")
    target = target_of(case)
    if target and (value < target if case.unit == "macs_per_instruction" else value > target):
        found.append(f"{value:.2f} {case.unit.replace('_', ' ')}, the target is {target}")
    return found


def product_faults(case: Shipped, code: Cubin, tensor_sums: set[str]) -> list[str]:
    """Whether the loop multiplies as often as its tile asks, with the sum that the source asks for."""
    products = code.products()
    if not products:
        return ["the loop multiplies no matrices"]
    done = [macs(opcode) for opcode in products]
    if None not in done:
        total = sum((each or 0) * count for each, count in zip(done, products.values(), strict=True))
        wanted = case.work if case.phase != "decode" else case.work * case.launch.constants["BLOCK_M"]
        if total != wanted:
            return [f"the loop does {total} multiply-adds a thread, its tile asks for {wanted}"]
    if case.dtype == "int8":
        return [] if all("IMMA" in opcode or "IGMMA" in opcode for opcode in products) else ["no integer product"]
    if tensor_sums:
        return [] if tensor_sums == {"f16" if case.half else "f32"} else [f"sums are {sorted(tensor_sums)}"]
    in_half = {".F16" in opcode and ".F32" not in opcode for opcode in products}
    return [] if in_half == {case.half} else [f"sums in the wrong type: {sorted(products)}"]
