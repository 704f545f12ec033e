"""Machine code without a GPU: the reader on hand-written listings, the rules, and a few real kernels.

All kernels are compiled by ``benchmarks/bench_sass.py``, which ``.ci/run`` starts.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed on this platform", allow_module_level=True)

from nvila_kernels.triton.tiles import AMD, ARCHITECTURES, SHARED_LIMIT

from proofs.ahead import amd, compile_ahead, nvidia
from proofs.cubin import Cubin, macs, parse
from proofs.findings import examine, faults, target_of
from proofs.shipped import Shipped, shipped

LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4.64] ;
        /*0020*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R49], [R24.64], !P0 ;
        /*0040*/                   HMMA.16816.F32 R52, R52, R20.reuse, RZ ;
        /*0050*/               @P1 IADD3 R1, R1, 0x1, RZ ;
        /*0060*/              @!P0 CALL.REL.NOINC `(.L_x_2) ;
        /*0070*/                   BRA `(.L_x_1) ;
.L_x_2:
        /*0080*/                   EXIT ;
"""


def case_named(name: str) -> Shipped:
    return next(case for case in shipped() if case.name == name)


DECODE = case_named("w4a16 fp16 8x128 group 128 sm_89")
INT8_PRODUCT = case_named("w8a8 int8 128x128x64 to fp16 sm_80")


def cubin(*loop: str, spill_bytes: int = 0) -> Cubin:
    return Cubin(registers=64, spill_bytes=spill_bytes, program=loop, loop=loop)


def test_the_main_loop_is_the_one_that_multiplies() -> None:
    program, loop = parse(LISTING)
    assert len(program) == 9
    assert loop == ["LDGSTS.E.BYPASS.128", "HMMA.16816.F32", "IADD3", "CALL.REL.NOINC", "BRA"]


def test_a_program_without_a_loop() -> None:
    assert parse("        /*0000*/    EXIT ;\n") == (["EXIT"], [])


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        ("HMMA.16816.F32", 64),
        ("IMMA.16832.S8.S8.SAT", 128),
        ("QMMA.16832.F32.E4M3.E4M3", 128),
        ("HGMMA.64x128x16.F32", 1024),
        ("UTCHMMA", None),
    ],
)
def test_multiply_adds_of_an_instruction(opcode: str, expected: int | None) -> None:
    assert macs(opcode) == expected


SOUND = ("HMMA.16816.F32",) * 32
"""An 8 x 128 x 128 tile on 64 threads."""


@pytest.mark.parametrize(
    ("code", "shared", "sentence"),
    [
        (cubin(*SOUND, spill_bytes=8), 0, "spills 8 bytes of registers"),
        (cubin(*SOUND), 102400, "needs 102400 bytes of shared memory, sm_89 has 101376"),
        (cubin(*SOUND, "I2F.F16"), 0, "the loop converts 1 integers"),
        (cubin(*SOUND, "LDG.E"), 0, "the loop waits for 1 loads"),
        (cubin(*SOUND[1:]), 0, "the loop does 1984 multiply-adds a thread, its tile asks for 2048"),
        (cubin(*("HMMA.16816.F16",) * 32), 0, "sums in the wrong type: ['HMMA.16816.F16']"),
        (cubin("FFMA"), 0, "the loop multiplies no matrices"),
    ],
)
def test_faults_of_a_decode_kernel(code: Cubin, shared: int, sentence: str) -> None:
    assert faults(DECODE, cubin(*SOUND), 0, 1.9, set()) == []
    assert faults(DECODE, code, shared, 1.9, set()) == [sentence]


def test_targets_are_faults() -> None:
    assert faults(DECODE, cubin(*SOUND), 0, 2.1, set()) == ["2.10 instructions per weight, the target is 2.0"]
    product = cubin(*("IMMA.16832.S8.S8.SAT",) * 64)
    assert faults(INT8_PRODUCT, product, 0, 51.0, set()) == ["51.00 macs per instruction, the target is 52.0"]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("w4a16 fp16 8x128 group 128", {80: 2.0, 86: 2.0, 87: 2.0, 89: 2.0, 90: 2.4, 100: 3.0, 120: 2.0}),
        ("w4a16 fp16 16x128 group row", {80: 2.0, 86: 2.0, 87: 2.0, 89: 2.0, 90: 2.4, 100: 3.0, 120: 2.0}),
        ("w4a16 bf16 8x128 group 64", {80: 2.3, 86: 2.3, 87: 2.3, 89: 2.3, 90: 2.7, 100: None, 120: None}),
        ("w4a16 fp16 8x128 group 32", dict.fromkeys(ARCHITECTURES)),
        ("w4a16 fp16 8x128 group 128 float16 sums", dict.fromkeys(ARCHITECTURES)),
        ("w8a8 int8 64x128x64 to fp16", {80: 52.0, 86: 52.0, 87: 52.0, 89: 52.0, 120: None}),
        ("w8a8 int8 64x128x128 to fp16", {90: None, 100: None}),
        ("w8a8 int8 128x256x128 to int8 gelu", {90: 120.0, 100: None}),
    ],
)
def test_which_kernels_have_targets(name: str, target: dict[int, float | None]) -> None:
    """Of every architecture that has the tile."""
    assert {case.arch: target_of(case) for case in shipped() if case.name.rsplit(" ", 1)[0] == name} == target


def test_float16_sums_exactly_when_asked() -> None:
    half = dataclasses.replace(DECODE, half=True)
    assert faults(half, cubin(*("HMMA.16816.F16",) * 32), 0, 1.9, set()) == []
    assert faults(half, cubin(*SOUND), 0, 1.9, set()) == ["sums in the wrong type: ['HMMA.16816.F32']"]
    assert faults(half, cubin("UTCHMMA"), 0, 1.9, {"f32"}) == ["sums are ['f32']"]


def test_every_architecture_has_every_family() -> None:
    names = {(case.arch, case.phase) for case in shipped()}
    assert names == {(arch, phase) for arch in ARCHITECTURES for phase in ("decode", "prefill", "product", "rows")}
    assert len({case.name for case in shipped()}) == len(shipped())


@pytest.mark.parametrize("case", [DECODE, INT8_PRODUCT], ids=lambda case: case.name)
def test_real_kernels_are_sound_and_reach_their_targets(case: Shipped) -> None:
    finding = examine(case)
    assert finding.target is not None
    assert finding.faults == ()


GPUS_OF_AMD = ["gfx942", "gfx1100"]


def check_amd(case: Shipped, architecture: str) -> None:
    """Compiled, without PTX, within the 64 KiB of shared memory that one block has."""
    compiled = compile_ahead(case.launch, amd(architecture))
    assert compiled.asm["hsaco"][:4] == b"\x7fELF"
    assert "inline_asm" not in compiled.asm["ttir"]
    assert compiled.metadata.shared <= SHARED_LIMIT[AMD]


@pytest.mark.parametrize("architecture", GPUS_OF_AMD)
@pytest.mark.parametrize("name", ["w4a16 fp16 16x128 group 128", "w8a8 int8 64x128x64 to int8 gelu"])
def test_amd_compiles_through_the_twin(architecture: str, name: str) -> None:
    check_amd(next(case for case in shipped((AMD,)) if case.name == f"{name} sm_{AMD}"), architecture)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", GPUS_OF_AMD)
@pytest.mark.parametrize("case", shipped((AMD,)), ids=lambda case: case.name)
def test_every_kernel_compiles_for_amd(architecture: str, case: Shipped) -> None:
    check_amd(case, architecture)


def test_the_check_for_ptx_can_fail() -> None:
    assert "inline_asm" in compile_ahead(DECODE.launch, nvidia(89)).asm["ttir"]


def test_an_interpreting_process_cannot_compile() -> None:
    program = (
        "from proofs.ahead import compile_ahead, nvidia\n"
        "from proofs.shipped import shipped\n"
        "compile_ahead(shipped((89,))[0].launch, nvidia(89))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TRITON_INTERPRET=1 is set, which keeps triton from compiling: unset it" in run.stderr
