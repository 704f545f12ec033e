"""Read machine code: what a compiled kernel needs, and what one round of its main loop executes.

The main loop is the piece between a backward branch and its target that holds the most matrix instructions; of several
with the same number, the shortest. Needs the disassemblers that triton brings along.
"""

# pyright: basic
# Triton carries no usable types.

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);")
_PREDICATE = re.compile(r"^@!?U?P[T\d]+\s+")
_BACKWARD = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
_WARP_SHAPE = re.compile(r"^[A-Z]*MMA\.(?:SP\.)?(16|8)(8)(32|16|8)\b")
_GROUP_SHAPE = re.compile(r"^[A-Z]*GMMA\.(\d+)x(\d+)x(\d+)\b")
WARP, WARP_GROUP = 32, 128


@dataclass(frozen=True, kw_only=True)
class Cubin:
    """What the code of one kernel says of itself.

    registers: of a thread.
    spill_bytes: of a thread, written to memory for want of registers.
    program: every instruction, without predicates and operands.
    loop: those of the main loop; empty if nothing is repeated.
    """

    registers: int
    spill_bytes: int
    program: tuple[str, ...]
    loop: tuple[str, ...]

    def count(self, *names: str) -> int:
        """How many instructions of the main loop have one of these names, whatever their modifiers."""
        return sum(opcode.split(".")[0] in names for opcode in self.loop)

    def products(self) -> Counter[str]:
        """The matrix instructions of the main loop."""
        return Counter(opcode for opcode in self.loop if is_product(opcode))


def is_product(opcode: str) -> bool:
    """Whether an instruction multiplies matrices (HMMA, IMMA, QMMA, HGMMA, UTCHMMA and their like)."""
    return opcode.split(".")[0].endswith("MMA")


def macs(opcode: str) -> int | None:
    """Multiplications of one matrix instruction for each thread that takes part; None if its name does not tell."""
    for pattern, threads in ((_WARP_SHAPE, WARP), (_GROUP_SHAPE, WARP_GROUP)):
        if found := pattern.match(opcode):
            m, n, k = map(int, found.groups())
            return m * n * k // threads
    return None


def main_loop(instructions: list[str], labels: dict[str, int]) -> list[str]:
    """The instructions between the busiest backward branch and its target."""
    best: list[str] = []
    score = (0, 0)
    for end, instruction in enumerate(instructions):
        branch = _BACKWARD.search(instruction)
        start = labels.get(branch[1], end + 1) if branch else end + 1
        body = instructions[start : end + 1]
        found = (sum(is_product(opcode_of(line)) for line in body), -len(body))
        if body and (found > score or not best):
            best, score = body, found
    return best


def opcode_of(instruction: str) -> str:
    """``@!P0 LDG.E R0, [R2]`` -> ``LDG.E``."""
    return _PREDICATE.sub("", instruction).split()[0]


def parse(disassembly: str) -> tuple[list[str], list[str]]:
    """All opcodes and those of the main loop, of what ``nvdisasm -c`` prints."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append(found[1].strip("{} "))
    opcodes = [opcode_of(line) for line in instructions]
    return opcodes, [opcode_of(line) for line in main_loop(instructions, labels)]


def read_cubin(code: bytes) -> Cubin:
    """Disassemble one kernel.

    Raises: RuntimeError if the tools' answers hold no resource usage, FileNotFoundError if triton lacks them.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        disassembly = _run("nvdisasm", "-c", file.name)
        usage = _USAGE.search(_run("cuobjdump", "-res-usage", file.name))
    if usage is None:
        raise RuntimeError("cuobjdump printed no REG and STACK, which this reader needs: use triton 3.9's tools")
    program, loop = parse(disassembly)
    return Cubin(registers=int(usage[1]), spill_bytes=int(usage[2]), program=tuple(program), loop=tuple(loop))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
