"""Compiled products and what stands between them: against float64, on every kind of instructions that can run here."""

import json
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels.cpu import Arena
from nvila_kernels.cpu.compiled import layout
from nvila_kernels.cpu.kernels.numba_int4 import NUMBA_INT8
from nvila_kernels.cpu.measurement import measure
from nvila_kernels.cpu.shape import Shape
from nvila_kernels.quantization import Int4Codes, quantize_int4
from torch import Tensor
from torch.nn import functional as F

if NUMBA_INT8.missing():
    pytest.skip(f"nothing can be compiled: {NUMBA_INT8.missing()}", allow_module_level=True)

import numpy as np
from llvmlite import binding
from numba import njit
from numba.core.errors import TypingError
from nvila_kernels.cpu.compiled import functions, instructions, program
from nvila_kernels.cpu.compiled import product as product_module
from nvila_kernels.cpu.compiled.addresses import integers
from nvila_kernels.cpu.compiled.barrier import barrier, split_work, started
from nvila_kernels.cpu.compiled.product import Product
from nvila_kernels.cpu.compiled.program import OPTIONS, Program, compile_program, load_program
from nvila_kernels.cpu.compiled.threads import ThreadTeam

if TYPE_CHECKING:
    from nvila_kernels.cpu.compiled.instructions import Instructions

FEATURES = binding.get_host_cpu_features()
WIDE = FEATURES.get("avx512vl") and FEATURES.get("avx512vnni")
"""These have the instruction of AVX-VNNI too, by another name."""
HAVE = {**FEATURES, "avxvnni": FEATURES.get("avxvnni") or WIDE}
KINDS = [kind for kind in instructions.KINDS if all(HAVE.get(name) for name in kind.needs)]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def random_codes(n: int, k: int, group: int, seed: int = 0) -> Int4Codes:
    """All codes and zero points there are, scales over four powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-k // group)
    return Int4Codes(
        codes=torch.randint(16, (n, k), generator=generator, dtype=torch.uint8),
        scale=10 ** (torch.rand(n, groups, generator=generator) * 4 - 4),
        zero=torch.randint(16, (n, groups), generator=generator, dtype=torch.uint8),
        group_size=group,
    )


def oracle(codes: Int4Codes, x: Tensor) -> Tensor:
    """In float64: activations rounded to 127 levels of the largest in their group, scales to float16."""
    k = codes.in_features
    group, groups = codes.group_size, codes.scale.shape[1]
    factor = 2.0 ** (codes.scale.max() / layout.LARGEST).log2().floor()
    scale = (codes.scale / factor).half().double() * factor
    rows = F.pad(x, (0, groups * group - k)).view(len(x), groups, group)
    largest = rows.abs().amax(-1, keepdim=True) / 127
    levels = torch.where(largest > 0, (rows * (1 / largest)).round(), 0.0)
    rounded = (levels.double() * largest).view(len(x), -1)[:, :k]
    spread = [values.repeat_interleave(group, 1)[:, :k] for values in (scale, codes.zero.double())]
    return rounded @ ((codes.codes.double() - spread[1]) * spread[0]).T


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def product(codes: Int4Codes, kind: "Instructions") -> Product:
    return Product(layout.pack(codes, Arena()), instructions=kind)


@each_kind
@pytest.mark.parametrize(
    ("rows", "n", "k", "group"),
    [
        (1, 64, 128, 128),
        (1, 1, 32, 32),  # a single output, the smallest group
        (3, 100, 200, 64),  # no whole block, no whole group
        (9, 130, 96, 32),  # two tiles of rows and one row
        (520, 65, 48, 32),  # more rows than pass a block at a time
        (2, 70, 4320, 4320),  # a whole row shares a scale
    ],
)
def test_products_differ_from_the_oracle_by_rounding_of_floats_alone(
    kind: "Instructions", rows: int, n: int, k: int, group: int
) -> None:
    codes = random_codes(n, k, group)
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(1))
    found = product(codes, kind)(x)
    assert found.dtype == torch.float32
    assert distance(found, oracle(codes, x)) < 2e-6


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 12), n=st.integers(1, 140), k=st.integers(1, 300),
    group=st.sampled_from([32, 64, 96, 128]), seed=st.integers(0, 2**16), kind=st.sampled_from(KINDS),
)  # fmt: skip
def test_products_of_any_shape(rows: int, n: int, k: int, group: int, seed: int, kind: "Instructions") -> None:
    codes = random_codes(n, k, group, seed)
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(seed))
    exact = oracle(codes, x)
    # a sum that happens to cancel has few bits left
    assert float((product(codes, kind)(x) - exact).abs().max()) < 1e-5 * float(exact.abs().max() + x.abs().max())


@each_kind
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("code", [0, 15])
def test_the_largest_sums_are_exact(kind: "Instructions", sign: float, code: int) -> None:
    """Codes and activations at their ends: no sum of 16 bits in between may overflow."""
    k = 8192
    codes = Int4Codes(
        codes=torch.full((64, k), code, dtype=torch.uint8), scale=torch.ones(64, 1),
        zero=torch.full((64, 1), 15 - code, dtype=torch.uint8), group_size=k,
    )  # fmt: skip
    found = product(codes, kind)(torch.full((5, k), sign * 127))
    assert torch.equal(found, torch.full((5, 64), sign * 127.0 * k * (2 * code - 15)))


@each_kind
def test_every_code_has_its_place(kind: "Instructions") -> None:
    """One input at a time: each output gives the code back that belongs to it, in every lane and half."""
    codes = random_codes(130, 96, 32)
    plain = replace(codes, scale=torch.ones_like(codes.scale), zero=torch.zeros_like(codes.zero))
    found = product(plain, kind)(127 * torch.eye(96))
    torch.testing.assert_close(found.T, 127 * codes.codes.float(), rtol=0, atol=0)


@each_kind
def test_rows_of_nothing_and_of_what_is_no_number(kind: "Instructions") -> None:
    x = torch.randn(6, 64)
    x[1], x[3, 5], x[4, 40] = 0, float("nan"), float("inf")
    found = product(random_codes(70, 64, 32), kind)(x)
    assert not found[1].any()
    assert found[3].isnan().all()
    assert not found[4].isfinite().any()
    assert found[[0, 2, 5]].isfinite().all()


@each_kind
def test_a_row_is_the_same_among_others(kind: "Instructions") -> None:
    """Alone, in a tile of rows, behind whole tiles; by one thread and by several."""
    run, x = product(random_codes(70, 96, 32), kind), torch.randn(11, 96)
    together = run(x)
    for row in range(11):
        torch.testing.assert_close(run(x[row : row + 1])[0], together[row], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(300, 1024, 128)
    x = torch.randn(40, 1024)
    run = product(codes, KINDS[0])
    monkeypatch.setattr("nvila_kernels.cpu.compiled.product.FEW", 2**62)
    alone = run(x)
    monkeypatch.setattr("nvila_kernels.cpu.compiled.product.FEW", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(run(x), alone)
    with ThreadPoolExecutor(4) as pool:  # several callers at once
        assert all(torch.equal(each, alone) for each in pool.map(run, [x] * 12))


def test_scales_of_any_size_keep_their_bits() -> None:
    """Far below what float16 holds, far above, and both in one weight: then the smallest round to what is left."""
    x = torch.randn(2, 64)
    for size in (1e-30, 1e-7, 1.0, 1e6, 1e30):
        codes = random_codes(64, 64, 32)
        codes = replace(codes, scale=codes.scale * size)
        found = product(codes, KINDS[0])(x)
        exact = oracle(codes, x)
        assert distance(found.double() / size, exact / size) < 2e-6
        plain = replace(codes, scale=codes.scale.double())
        assert distance(found.double() / size, oracle(plain, x) / size) < 1e-3
    nothing = replace(codes, scale=torch.zeros_like(codes.scale))
    assert not product(nothing, KINDS[0])(x).any()


def test_groups_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 48; it takes multiples of 32"):
        layout.pack(random_codes(8, 96, 48), Arena())


def test_a_packed_weight_takes_what_is_said() -> None:
    for n, k, group in ((64, 128, 128), (100, 200, 64), (1, 32, 32)):
        weight = layout.pack(random_codes(n, k, group), Arena())
        assert len(weight.stream) == layout.size(n, k, group) == NUMBA_INT8.bytes(n, k, group)
        assert weight.stream.data_ptr() % 64 == 0
    assert layout.size(1536, 8960, 128) * 8 / (1536 * 8960) == 4.1875  # bits a weight


def test_a_weight_is_packed_a_few_blocks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(330, 200, 32)
    whole = layout.pack(codes, Arena()).stream.clone()
    monkeypatch.setattr(layout, "SOME", 1)
    assert torch.equal(layout.pack(codes, Arena()).stream, whole)


def test_a_processor_without_these_instructions_is_told() -> None:
    weight = layout.pack(random_codes(8, 32, 32), Arena())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvila_kernels.cpu.compiled.product.here", lambda: None)
        with pytest.raises(RuntimeError, match="the processor has not AVX2, which these products need"):
            Product(weight)


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    def fails(_: object) -> None:
        raise TypingError("no such function\nand a long story")

    monkeypatch.setattr("nvila_kernels.cpu.compiled.multiply.product_function", fails)
    product_module.product_program.cache_clear()
    measured = measure({"numba int8": NUMBA_INT8}, Shape(rows=1, k=32, n=8, group=32))["numba int8"]
    assert measured.seconds is None
    assert (measured.refused or "").endswith("cannot compile the product: no such function")


def test_numba_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(RuntimeError, match=r"numba cannot be imported \(.*\): pip install 'nvila-kernels\[cpu\]'"):
        compile_program(lambda: None)


def test_the_best_instructions_that_a_processor_has() -> None:
    old = dict.fromkeys(("avx2", "fma", "f16c"), True)
    assert instructions.best({}) is None
    assert instructions.best({"avx2": True, "fma": False, "f16c": True}) is None
    names = [
        getattr(instructions.best({**old, **dict.fromkeys(more, True)}), "name", None)
        for more in ((), ("avx512f",), ("avxvnni",), ("avx512f", "avx512vnni", "avxvnni"))
    ]
    assert names == ["AVX2", "AVX2", "AVX-VNNI", "AVX-512 VNNI"]


def test_a_kind_that_is_named_is_used_if_there_is_one() -> None:
    new = dict.fromkeys(("avx2", "fma", "f16c", "avxvnni"), True)
    kind = instructions.best(new, "AVX2")
    assert kind is not None
    assert kind.name == "AVX2"
    told = (
        r"NVILA_KERNELS_INSTRUCTIONS is 'AVX-512 VNNI', this processor has AVX-VNNI, AVX2: name one of them, or leave"
    )
    with pytest.raises(ValueError, match=told):
        instructions.best(new, "AVX-512 VNNI")
    with pytest.raises(ValueError, match="this processor has none of those that are known"):
        instructions.best({}, "AVX2")


@pytest.mark.parametrize("name", ["AVX2", "AVX9"])
def test_the_environment_names_a_kind_for_a_process(name: str, cache_folder: Path) -> None:
    code = (
        "import nvila_kernels.cpu as cpu; from nvila_kernels.cpu.compiled.instructions import here; "
        "cpu.timings().of(cpu.Shape(rows=1, k=64, n=8, group=32)); print(here().name)"
    )
    told = {**os.environ, "NVILA_KERNELS_INSTRUCTIONS": name}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True)
    kept = json.loads((cache_folder / "cpu.json").read_text())
    (where,) = kept
    assert f", {name}, " in where
    found = kept[where]["1x64x8 w4 g32"]["numba int8"]
    if name == "AVX2":
        assert done.stdout == "AVX2\n"
        assert found["refused"] is None
    else:
        assert "NVILA_KERNELS_INSTRUCTIONS is 'AVX9'" in done.stderr
        assert "NVILA_KERNELS_INSTRUCTIONS is 'AVX9'" in found["refused"]


def counting() -> object:
    """Each thread writes its round and, when all have come, looks whether the others wrote theirs."""

    @njit(**OPTIONS)
    def run(thread: int, threads: int, state: int, arguments: int) -> None:
        if not started(thread, state):
            return
        rounds = integers(arguments, 1)[0]
        seen = integers(arguments + 8, 2 * threads)
        for each in range(1, rounds + 1):
            seen[2 * thread] = each
            barrier(threads, state)
            for other in range(threads):
                if seen[2 * other] != each:
                    seen[2 * thread + 1] += 1
            barrier(threads, state)

    return run


@pytest.fixture(scope="module")
def counted() -> Program:
    return Program(compile_program(counting))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_wait_for_each_other(threads: int, counted: Program) -> None:
    """More threads than cores too: who waits lets others have the core."""
    team, numbers = ThreadTeam(threads), np.zeros(1 + 2 * threads, np.int64)
    numbers[0] = 200
    for _ in range(3):
        team.run(counted, numbers)
    assert numbers.tolist() == [200, *[200, 0] * threads]


class Interrupted:
    """A program that Ctrl-C keeps the first thread from."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, thread: int, *given: object) -> None:
        if thread == 0:
            raise KeyboardInterrupt
        self.program(thread, *given)


def test_none_runs_a_program_that_the_first_thread_was_kept_from(counted: Program) -> None:
    team, numbers = ThreadTeam(3), np.zeros(7, np.int64)
    numbers[0] = 5
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            team.run(Interrupted(counted), numbers)
    assert numbers.tolist() == [5, 0, 0, 0, 0, 0, 0]
    team.run(counted, numbers)
    assert numbers.tolist() == [5, 5, 0, 5, 0, 5, 0]


def test_threads_that_wait_for_the_first_are_released_by_the_next_program(counted: Program) -> None:
    """Ctrl-C may come again while the first one is dealt with."""
    team, numbers = ThreadTeam(2), np.zeros(5, np.int64)
    numbers[0] = 5
    team.jobs[0].put((counted, 1, 2, team.state, numbers))
    team.run(counted, numbers)
    assert numbers.tolist() == [5, 5, 0, 5, 0]


def test_threads_of_a_team_end_with_it() -> None:
    before = {each.name for each in threading.enumerate()}
    team = ThreadTeam(3)
    mine = [each for each in threading.enumerate() if each.name.startswith("nvila ")]
    assert len(mine) >= 2
    alive = weakref.ref(team)
    del team
    assert alive() is None
    for each in mine:
        if each.name not in before:
            each.join(5)
            assert not each.is_alive()


def test_split_work_is_everything_once() -> None:
    for count in (0, 1, 5, 24):
        parts = [split_work.py_func(count, thread, 7) for thread in range(7)]
        assert [each for first, last in parts for each in range(first, last)] == list(range(count))


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 95), torch.zeros(2, 97), torch.zeros(96), torch.zeros(2, 96).half(), torch.zeros(96, 2).T]
)
def test_rows_of_another_form_are_refused(x: Tensor) -> None:
    """A product writes by addresses alone, so what does not fit must not come that far."""
    with pytest.raises(ValueError, match=r"the product reads contiguous torch.float32 \[rows, 96\]: pass such rows"):
        product(random_codes(70, 96, 32), KINDS[0])(x)


def test_no_rows_make_no_rows() -> None:
    assert product(random_codes(70, 96, 32), KINDS[0])(torch.zeros(0, 96)).shape == (0, 70)


def load(folder: Path, compiled: object, **options: object) -> Program:
    return load_program("counting", compiled, **{"instructions": "AVX2", **options})  # pyright: ignore


def test_a_program_is_compiled_once(cache_folder: Path) -> None:
    program = load(cache_folder, counting)
    (file,) = (cache_folder / "compiled").iterdir()
    numbers = np.array([3, 0, 0], np.int64)
    for loaded in (program, load(cache_folder, lambda: pytest.fail("compiled again"))):
        loaded(0, 1, np.zeros(16, np.int64), numbers)
        assert numbers.tolist() == [3, 3, 0]
    file.write_bytes(file.read_bytes()[:-1])  # half a file
    load(cache_folder, counting)
    load(cache_folder, lambda: pytest.fail("compiled again"))
    (cache_folder / "source.py").write_text("x = 1")
    made: list[int] = []

    def compiled() -> object:
        made.append(1)
        return counting()

    load(cache_folder, compiled, sources=[cache_folder / "source.py"])
    load(cache_folder, compiled, sources=[cache_folder / "source.py"])
    (cache_folder / "source.py").write_text("x = 2")
    load(cache_folder, compiled, sources=[cache_folder / "source.py"])
    assert len(made) == 2


def test_what_code_comes_from_is_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {program.digest_of("AVX2", ()), program.digest_of("AVX-VNNI", ())}
    for name, value in (("get_host_cpu_name", lambda: "other"), ("get_process_triple", lambda: "other")):
        with monkeypatch.context() as patched:
            patched.setattr(program.binding, name, value)
            digests.add(program.digest_of("AVX2", ()))
    monkeypatch.setattr(program, "installed", lambda package: "0.1")
    digests.add(program.digest_of("AVX2", ()))
    assert len(digests) == 5


def test_a_folder_that_cannot_be_written_costs_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NVILA_KERNELS_CACHE", str(tmp_path / "file" / "below"))
    numbers = np.array([3, 0, 0], np.int64)
    load(tmp_path, counting)(0, 1, np.zeros(16, np.int64), numbers)
    assert numbers.tolist() == [3, 3, 0]
    assert "cannot be written, so the next process compiles again" in caplog.text


@pytest.mark.slow
def test_another_process_loads_what_was_compiled_without_numba(cache_folder: Path) -> None:
    code = (
        "import sys, torch; from nvila_kernels import Int4Linear; from nvila_kernels.cpu import optimize_; "
        "layer = torch.nn.Sequential(Int4Linear(64, 8, group_size=32)); optimize_(layer, phases=('decode',)); "
        "print(layer(torch.ones(1, 64)).shape, 'numba' in sys.modules)"
    )
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)]
    assert found == ["torch.Size([1, 8]) True\n", "torch.Size([1, 8]) False\n"]


def test_the_exponential() -> None:
    @njit
    def all_of(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(len(x)):
            out[i] = functions.exponential(x[i])

    x = np.concatenate([np.linspace(-87, 88, 200_001), [0, -0.0, 1e-30, -1e-3]]).astype(np.float32)
    out = np.empty_like(x)
    all_of(x, out)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 3e-7
    assert out[-4] == out[-3] == 1
    beyond = np.array([-1e30, -np.inf, 1e30, np.inf], np.float32)
    ends = np.empty_like(beyond)
    all_of(beyond, ends)
    assert (ends[:2] < 1.7e-38).all()
    assert (ends[2:] > 1.6e38).all()


def test_norms_and_gates_are_those_of_torch() -> None:
    x, weight = torch.randn(3, 70), torch.rand(70)
    out = torch.empty(3, 70)
    functions.normalize(x.numpy(), weight.numpy(), 1e-6, out.numpy())
    torch.testing.assert_close(out, F.rms_norm(x, (70,), weight, 1e-6), rtol=1e-6, atol=1e-6)
    joined = torch.cat([torch.randn(3, 35) * 30, torch.randn(3, 35)], 1)
    gated = torch.empty(3, 35)
    functions.gate(joined.numpy(), gated.numpy())
    torch.testing.assert_close(gated, F.silu(joined[:, :35]) * joined[:, 35:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("positions", [1, 2, 33])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(positions: int, masked: bool) -> None:
    queries, keys, values = torch.randn(3, 24), torch.randn(40, 24), torch.randn(40, 24)
    seen = torch.rand(positions) < 0.6 if masked else torch.ones(positions, dtype=torch.bool)
    seen[-1] = True
    expected = F.scaled_dot_product_attention(queries, keys[:positions], values[:positions], seen[None], scale=1.0)
    masked_places = (~seen).to(torch.uint8) if masked else torch.empty(0, dtype=torch.uint8)
    scores, out = torch.empty(3, 40), queries.clone()
    arrays = (each.numpy() for each in (out, keys, values))
    functions.attend(3, *arrays, positions, masked_places.numpy(), scores.numpy())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_positions_turn_as_in_torch() -> None:
    x, angles = torch.randn(40), torch.rand(12) * 6
    out, double = torch.empty(24), angles.repeat(2)
    functions.rotate(x.numpy(), 8, angles.cos().numpy(), angles.sin().numpy(), 0.5, out.numpy())
    part = x[8:32]
    expected = 0.5 * (part * double.cos() + torch.cat([-part[12:], part[:12]]) * double.sin())
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_a_quantized_layer_is_close_to_its_floats() -> None:
    weight, x = torch.randn(200, 256), torch.randn(20, 256)
    found = NUMBA_INT8.pack(quantize_int4(weight, group_size=64), Arena())(x)
    assert distance(found, x @ weight.T) < 0.11  # of 4 bits; the activations' share is 0.007
