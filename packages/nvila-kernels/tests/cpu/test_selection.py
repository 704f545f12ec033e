"""The choice among measured kernels, on tables made by hand, and what is remembered of measurements."""

import json
import logging
import math
from pathlib import Path
from time import sleep

import pytest
import torch
from nvila_kernels.cpu import Measurement, Shape, candidates, choose, machine, packed_linear, timings
from nvila_kernels.cpu import measure as measure_all
from nvila_kernels.cpu.integers import FBGEMM4
from nvila_kernels.cpu.kernel import Codes, Kernel, Run
from nvila_kernels.cpu.machine import processor
from nvila_kernels.cpu.measurement import RUNS, expected
from nvila_kernels.cpu.selection import Alike, choose_alike, pays_twice
from nvila_kernels.cpu.shape import Phase
from nvila_kernels.cpu.timings_file import Timings
from torch import Tensor

SHAPE = Shape(rows=1, k=1024, n=1024, group=128)


def table(**seconds: float) -> dict[str, Measurement]:
    names = {"nbits": "onnxruntime MatMulNBits int8", "torch4": "torch int4", "fbgemm": "fbgemm int8"}
    names |= {"exact": "onnxruntime MatMulNBits", "dense": "dequantized float32"}
    return {names[name]: Measurement(seconds=value, error=0.0) for name, value in seconds.items()}


FOUND = {
    "decode": table(nbits=1.0, torch4=2.0, fbgemm=1.5, exact=3.0),
    "prefill": table(nbits=90.0, torch4=300.0, fbgemm=10.0, exact=400.0),
}


def test_one_kernel_serves_both_phases_where_two_packings_do_not_fit() -> None:
    found = choose(SHAPE, FOUND)
    assert found.kernels == {"decode": "onnxruntime MatMulNBits int8", "prefill": "onnxruntime MatMulNBits int8"}
    assert found.bytes <= 1.2 * 1024 * 1024 * 4.25 / 8


def test_each_phase_has_its_own_where_memory_allows() -> None:
    assert choose(SHAPE, FOUND, memory=math.inf).kernels == {
        "decode": "onnxruntime MatMulNBits int8", "prefill": "fbgemm int8"
    }  # fmt: skip


def test_a_module_that_only_sees_many_rows_is_measured_by_them() -> None:
    assert choose(SHAPE, {"prefill": FOUND["prefill"]}, memory=2).kernels == {"prefill": "fbgemm int8"}


def test_int8_activations_can_be_refused() -> None:
    assert set(choose(SHAPE, FOUND, int8_activations=False).kernels.values()) == {"torch int4"}


def test_what_was_refused_is_never_chosen() -> None:
    wrong = {"onnxruntime MatMulNBits int8": Measurement(seconds=0.1, error=0.5, refused="its error of 0.5")}
    assert set(choose(SHAPE, {phase: t | wrong for phase, t in FOUND.items()}).kernels.values()) == {"torch int4"}


def test_the_smallest_is_taken_where_nothing_fits() -> None:
    assert choose(SHAPE, {"decode": table(dense=1.0, fbgemm=2.0)}).kernels == {"decode": "fbgemm int8"}


def test_nothing_left_is_an_error_that_says_why() -> None:
    absent = {"decode": {"torch int4": Measurement(refused="groups of 48")}}
    with pytest.raises(ValueError, match="torch int4: groups of 48"):
        choose(SHAPE, absent)


def test_outputs_that_are_not_measured_count_too() -> None:
    """Of 16,384 outputs half are measured for a token and an eighth for a prompt, so prompts weigh four times more."""
    found = {"decode": table(nbits=1.0, torch4=2.0), "prefill": table(nbits=20.0, torch4=10.0)}
    wide = Shape(rows=1, k=1024, n=16384, group=128)
    assert set(choose(SHAPE, found).kernels.values()) == {"onnxruntime MatMulNBits int8"}
    assert set(choose(wide, found).kernels.values()) == {"torch int4"}


@pytest.mark.parametrize(
    ("k", "n", "decode", "prefill"),
    [(1536, 17920, 17920, 2048), (1536, 151936, 32768, 2048), (18944, 9000, 8192, 2048), (64, 128, 128, 128)],
)
def test_an_output_head_is_measured_by_more_than_a_layer(k: int, n: int, decode: int, prefill: int) -> None:
    shape = Shape(rows=1, k=k, n=n, group=32)
    assert (shape.at("decode").measured.n, shape.at("prefill").measured.n) == (decode, prefill)


def test_one_kernel_for_several_layers_where_that_costs_less_than_it_saves() -> None:
    small = Shape(rows=1, k=64, n=64, group=32)
    found = {SHAPE: FOUND, small: {"decode": table(nbits=1.5, torch4=1.0), "prefill": table(nbits=1.0, torch4=1.0)}}
    names = ["onnxruntime MatMulNBits int8", "torch int4"]
    lost = 64 * 0.5 / 68  # a call, of 64 tokens and 4 pieces of a prompt
    assert choose_alike([SHAPE, small], found, names, saved=lost * 1.01) == Alike(kernel=names[0], prompts={})
    assert choose_alike([SHAPE, small], found, names, saved=lost * 0.99) is None
    assert choose_alike([SHAPE, small, small], found, names, saved=lost * 1.01) is None
    assert choose_alike([SHAPE], found, names, saved=0.0) == Alike(kernel=names[0], prompts={})
    assert choose_alike([SHAPE], found, names, saved=0.0, int8_activations=False) == Alike(kernel=names[1], prompts={})
    refused = {phase: each | {names[0]: Measurement(refused="wrong")} for phase, each in FOUND.items()}
    assert choose_alike([SHAPE], {SHAPE: refused}, names[:1], saved=1e9) is None


def test_a_kernel_for_whole_blocks_reads_prompts_itself() -> None:
    """Another kernel would read them faster, and memory would allow it."""
    found = FOUND | {"decode": table(nbits=1.0, torch4=9.0)}
    for names, whole, prompts in (([NBITS], {}, {SHAPE: "fbgemm int8"}), ([], {NBITS: 10.0}, {})):
        chosen = choose_alike([SHAPE], {SHAPE: found}, names, whole=whole, saved=10.0, memory=math.inf)
        assert chosen == Alike(kernel=NBITS, prompts=prompts)


def test_a_kernel_for_whole_blocks_saves_at_a_token_what_is_said_of_it() -> None:
    found = {"decode": table(nbits=1.0, torch4=1.5), "prefill": table(nbits=10.0, torch4=10.0)}
    for gained, kernel in ((0.49, NBITS), (0.51, "torch int4")):
        chosen = choose_alike([SHAPE], {SHAPE: found}, [NBITS], whole={"torch int4": gained}, saved=0.0)
        assert chosen == Alike(kernel=kernel, prompts={})


NBITS = "onnxruntime MatMulNBits int8"


def test_prompts_have_a_kernel_of_their_own_where_both_packings_fit() -> None:
    both = choose_alike([SHAPE], {SHAPE: FOUND}, [NBITS], saved=1.0, memory=3.0)
    assert both == Alike(kernel=NBITS, prompts={SHAPE: "fbgemm int8"})
    one = choose_alike([SHAPE], {SHAPE: FOUND}, [NBITS], saved=1.0, memory=1.2)
    assert one == Alike(kernel=NBITS, prompts={})
    assert choose_alike([SHAPE], {SHAPE: FOUND}, [NBITS], saved=1.0, memory=2.9) is None  # fbgemm for both


def test_prompts_stay_in_graphs_that_save_more_than_another_kernel_gains() -> None:
    close = FOUND | {"prefill": table(nbits=20.0, fbgemm=18.0)}
    for saved, prompts in ((1.9, {SHAPE: "fbgemm int8"}), (2.1, {})):
        assert choose_alike([SHAPE], {SHAPE: close}, [NBITS], saved=saved, memory=math.inf) == Alike(
            kernel=NBITS, prompts=prompts
        )


def test_prompts_keep_float_activations_where_int8_is_refused() -> None:
    exact = "onnxruntime MatMulNBits"
    found = choose_alike([SHAPE], {SHAPE: FOUND}, [exact], saved=1.0, memory=math.inf, int8_activations=False)
    assert found == Alike(kernel=exact, prompts={SHAPE: "torch int4"})


def test_nobody_asked_for_memory_so_a_second_packing_must_pay() -> None:
    twice = Alike(kernel=NBITS, prompts={SHAPE: "fbgemm int8"})
    bytes_ = 1024 * 1024 * (0.5 + 8.5 / 128) + 1024 * (1024 + 4)
    assert pays_twice([SHAPE], {SHAPE: FOUND}, twice, 4.01 * bytes_)
    assert not pays_twice([SHAPE], {SHAPE: FOUND}, twice, 3.99 * bytes_)
    assert not pays_twice([SHAPE, SHAPE], {SHAPE: FOUND}, twice, 4.01 * bytes_)
    assert not pays_twice([SHAPE], {SHAPE: FOUND}, Alike(kernel=NBITS, prompts={}), math.inf)
    for nbits, paid in ((24.0, False), (26.0, True)):
        prompts = FOUND | {"prefill": table(nbits=nbits, torch4=300.0, fbgemm=10.0)}
        assert pays_twice([SHAPE], {SHAPE: prompts}, twice, math.inf) == paid


@pytest.mark.parametrize(
    ("memory", "machine", "kernel"), [(1.2, 1e12, None), (3.0, 0, FBGEMM4), (None, 1e12, FBGEMM4), (None, 1e6, None)]
)
def test_the_machine_decides_where_nobody_does(
    memory: float | None, machine: float, kernel: Kernel | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Shape] = []

    def measured(shape: Shape, _: object) -> dict[Phase, dict[str, Measurement]]:
        asked.append(shape)
        return FOUND

    monkeypatch.setattr(packed_linear, "measured", measured)
    monkeypatch.setattr(packed_linear, "machine_memory", lambda: machine)
    found = packed_linear.measure_alike([SHAPE], [NBITS], saved=1.0, memory=memory)
    assert found == Alike(kernel=NBITS, prompts={SHAPE: kernel.name} if kernel else {})
    assert asked == [SHAPE]


def test_measurements_are_remembered_on_disk(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(rows=2, k=64, n=9, group=32)
    first = timings().of(shape)
    assert timings().of(Shape(rows=7, k=64, n=9, group=32)) == first
    told = json.loads((cache_folder / "cpu.json").read_text())
    assert list(told) == [machine()]
    assert list(told[machine()]) == ["1x64x9 w4 g32"]
    monkeypatch.setattr("nvila_kernels.cpu.timings_file.measure", lambda *_: pytest.fail("measured again"))
    assert Timings(cache_folder / "cpu.json").of(shape) == first
    timings().clear()
    assert not (cache_folder / "cpu.json").exists()
    assert not timings().known


def test_a_shape_is_measured_again_when_there_is_another_kernel(cache_folder: Path) -> None:
    shape = Shape(rows=1, k=64, n=9, group=32)
    names = timings().of(shape).keys()
    known = json.loads((cache_folder / "cpu.json").read_text())
    del known[machine()][str(shape)]["torch int4"]
    (cache_folder / "cpu.json").write_text(json.dumps(known))
    assert Timings(cache_folder / "cpu.json").of(shape).keys() == names


def test_a_full_disk_is_forgotten(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(codes: Codes) -> Run:
        raise OSError("no room")

    kernel = Kernel(name="full", bits=4, activations="float32", bytes=lambda *_: 0.0, pack=full)
    shape = Shape(rows=1, k=64, n=9, group=32)
    with monkeypatch.context() as patched:
        patched.setattr("nvila_kernels.cpu.timings_file.candidates", lambda bits: candidates(bits) | {"full": kernel})
        full_disk = Timings(cache_folder / "cpu.json")
        found = full_disk.of(shape)
        assert found["full"] == Measurement(refused="no room", lasting=False)
        patched.setattr("nvila_kernels.cpu.timings_file.measure", lambda *_: pytest.fail("measured again"))
        assert full_disk.of(shape) == found
    assert not (cache_folder / "cpu.json").exists()
    assert Timings(cache_folder / "cpu.json").of(shape).keys() == candidates(4).keys()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "waiting as openmp likes"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "passive"),
        ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}, "waiting 10000 turns"),
    ],
)
def test_how_threads_wait_belongs_to_the_machine(
    settings: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert f"threads ({told})" in machine()


def test_generations_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for told, name in (
        ("cpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n", "AMD EPYC 23/1"),
        ("model name\t: Some ARM\n", "Some ARM"),
    ):
        (tmp_path / "cpuinfo").write_text(told)
        assert processor(tmp_path / "cpuinfo") == name


def test_a_broken_or_unwritable_cache_is_said_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cpu.json").write_text('{"half')
    with caplog.at_level(logging.WARNING):
        assert not Timings(tmp_path / "cpu.json").known
        assert "cannot be read and is replaced" in caplog.text
        Timings(tmp_path / "cpu.json" / "below.json").of(Shape(rows=1, k=32, n=4, group=0))
        assert "cannot be written" in caplog.text


def test_a_wrong_kernel_is_refused_with_its_error() -> None:
    wrong = Kernel(name="wrong", bits=8, activations="int8", bytes=lambda *_: 1.0, pack=lambda codes: lambda x: x @ x.T)
    broken = Kernel(name="broken", bits=8, activations="int8", bytes=lambda *_: 1.0, pack=lambda codes: 1 / 0)

    def refuse(codes: object) -> object:
        raise RuntimeError("no such shape\nand more")

    refusing = Kernel(name="refusing", bits=8, activations="int8", bytes=lambda *_: 1.0, pack=refuse)
    shape = Shape(rows=4, k=32, n=4, group=0)
    found = measure_all({"wrong": wrong, "refusing": refusing}, shape)
    assert "exceeds 0.02" in found["wrong"].refused
    assert found["refusing"] == Measurement(refused="no such shape")
    with pytest.raises(ZeroDivisionError):
        measure_all({"broken": broken}, shape)


def test_a_wrong_kernel_is_no_measure_for_right_ones() -> None:
    calls: list[int] = []

    def right(codes: Codes) -> Run:
        def run(x: Tensor) -> Tensor:
            calls.append(1)
            sleep(0.01)
            return expected(codes, x)

        return run

    packs = {"wrong": lambda codes: lambda x: x @ x.T, "right": right}
    kernels = {
        name: Kernel(name=name, bits=8, activations="int8", bytes=lambda *_: 1.0, pack=pack)
        for name, pack in packs.items()
    }
    measure_all(kernels, Shape(rows=4, k=32, n=4, group=0))
    assert len(calls) == 1 + 2 * RUNS  # the first is checked; a hopeless one would run less


def test_a_kernel_that_was_disturbed_is_timed_again_beside_the_others() -> None:
    calls: list[int] = []

    def slow(codes: Codes) -> Run:
        def run(x: Tensor) -> Tensor:
            sleep(0.01)
            return expected(codes, x)

        return run

    def disturbed(codes: Codes) -> Run:
        def run(x: Tensor) -> Tensor:
            calls.append(1)
            sleep(0.02 if len(calls) <= 1 + RUNS else 0)
            return expected(codes, x)

        return run

    packs = {"disturbed": disturbed, "slow": slow}
    kernels = {
        name: Kernel(name=name, bits=8, activations="int8", bytes=lambda *_: 1.0, pack=pack)
        for name, pack in packs.items()
    }
    found = measure_all(kernels, Shape(rows=4, k=32, n=4, group=0))
    assert found["disturbed"].seconds is not None
    assert found["disturbed"].seconds < 0.01 <= (found["slow"].seconds or 0)


def test_measuring_does_not_draw_from_the_global_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    timings().of(Shape(rows=1, k=32, n=4, group=0))
    assert torch.equal(torch.rand(3), expected)
