"""The choice among measured kernels, on tables made by hand, and what is remembered of measurements."""

import json
import logging
from pathlib import Path
from time import sleep

import pytest
import torch
from nvila_kernels.cpu import Arena, Measurement, Shape, candidates, choose, machine, timings
from nvila_kernels.cpu import measure as measure_all
from nvila_kernels.cpu.folder import FOLDER
from nvila_kernels.cpu.kernels.kernel import Codes, Kernel, Run
from nvila_kernels.cpu.machine import processor
from nvila_kernels.cpu.measurement import RUNS, expected
from nvila_kernels.cpu.timings_file import Timings
from torch import Tensor

SHAPE = Shape(rows=1, k=1024, n=1024, group=128)


def table(**seconds: float) -> dict[str, Measurement]:
    names = {"numba": "numba int8", "torch4": "torch int4", "fbgemm": "fbgemm int8", "dense": "dequantized float32"}
    return {names[name]: Measurement(seconds=value, error=0.0) for name, value in seconds.items()}


FOUND = {
    "decode": table(numba=1.0, torch4=2.0, fbgemm=1.5, dense=3.0),
    "prefill": table(numba=20.0, torch4=300.0, fbgemm=10.0, dense=5.0),
}


def test_one_kernel_serves_tokens_and_prompts() -> None:
    """64 tokens and 4 pieces of a prompt: 144 of numba, 136 of fbgemm."""
    assert choose(SHAPE, FOUND).kernel == "fbgemm int8"
    assert choose(SHAPE, {"decode": FOUND["decode"]}).kernel == "numba int8"
    assert choose(SHAPE, {"prefill": FOUND["prefill"]}).kernel == "fbgemm int8"


def test_a_weight_takes_a_byte_at_most_where_one_does() -> None:
    fast = FOUND | {"decode": table(numba=1.0, dense=0.1)}
    assert choose(SHAPE, fast).kernel == "numba int8"
    assert choose(SHAPE, {"decode": table(dense=1.0)}).kernel == "dequantized float32"
    found = choose(SHAPE, FOUND)
    assert found.bytes == 1024 * (1024 + 4)


def test_the_smallest_is_taken_where_memory_is_short() -> None:
    found = choose(SHAPE, FOUND, smallest=True)
    assert found.kernel == "numba int8"
    assert found.bytes == 1024 * 1024 * 4.1875 / 8


def test_int8_activations_can_be_refused() -> None:
    assert choose(SHAPE, FOUND, int8_activations=False).kernel == "torch int4"


def test_what_was_refused_is_never_chosen() -> None:
    wrong = {"fbgemm int8": Measurement(seconds=0.1, error=0.5, refused="its error of 0.5")}
    assert choose(SHAPE, {phase: t | wrong for phase, t in FOUND.items()}).kernel == "numba int8"


def test_nothing_left_is_an_error_that_says_why() -> None:
    absent = {"decode": {"torch int4": Measurement(refused="groups of 48")}}
    with pytest.raises(ValueError, match="torch int4: groups of 48"):
        choose(SHAPE, absent)


def test_outputs_that_are_not_measured_count_too() -> None:
    """Of 16,384 outputs half are measured for a token and an eighth for a prompt, so prompts weigh four times more."""
    found = {"decode": table(numba=1.0, torch4=2.0), "prefill": table(numba=20.0, torch4=10.0)}
    wide = Shape(rows=1, k=1024, n=16384, group=128)
    assert choose(SHAPE, found).kernel == "numba int8"
    assert choose(wide, found).kernel == "torch int4"


@pytest.mark.parametrize(
    ("k", "n", "decode", "prefill"),
    [(1536, 17920, 17920, 2048), (1536, 151936, 32768, 2048), (18944, 9000, 8192, 2048), (64, 128, 128, 128)],
)
def test_an_output_head_is_measured_by_more_than_a_layer(k: int, n: int, decode: int, prefill: int) -> None:
    shape = Shape(rows=1, k=k, n=n, group=32)
    assert (shape.at("decode").measured.n, shape.at("prefill").measured.n) == (decode, prefill)


def test_measurements_are_remembered_on_disk(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(rows=2, k=64, n=9, group=32)
    first = timings().of(shape)
    assert timings().of(Shape(rows=7, k=64, n=9, group=32)) == first
    held = json.loads((cache_folder / "cpu.json").read_text())
    assert list(held) == [machine()]
    assert list(held[machine()]) == ["1x64x9 w4 g32"]
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
    def full(codes: Codes, arena: Arena) -> Run:
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
    ("settings", "held"),
    [
        ({}, "waiting as openmp likes"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "passive"),
        ({"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "10000"}, "waiting 10000 turns"),
    ],
)
def test_how_threads_wait_belongs_to_the_machine(
    settings: dict[str, str], held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert f"threads ({held})" in machine()


def test_generations_of_one_name_are_held_apart(tmp_path: Path) -> None:
    for held, name in (
        ("cpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n", "AMD EPYC 23/1"),
        ("model name\t: Some ARM\n", "Some ARM"),
    ):
        (tmp_path / "cpuinfo").write_text(held)
        assert processor(tmp_path / "cpuinfo") == name


def test_a_broken_or_unwritable_cache_is_said_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cpu.json").write_text('{"half')
    with caplog.at_level(logging.WARNING):
        assert not Timings(tmp_path / "cpu.json").known
        assert "cannot be read and is replaced" in caplog.text
        Timings(tmp_path / "cpu.json" / "below.json").of(Shape(rows=1, k=32, n=4, group=0))
        assert "cannot be written" in caplog.text


SMALL = Shape(rows=1, k=32, n=4, group=0)


@pytest.mark.parametrize(
    "content",
    [
        b"[1, 2]",
        b'"text"',
        b"null",
        b'{"machine": 3}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"%(machine)s": {"1x32x4 w8": 7}}',
        b'{"%(machine)s": {"1x32x4 w8": {"fbgemm int8": {"seconds": 1}}}}',
        b'{"%(machine)s": {"1x32x4 w8": {"fbgemm int8": [1, 2]}}}',
        b'{"%(machine)s": {"1x32x4 w8": {"a": {"seconds": "x", "error": 0, "refused": null, "lasting": true}}}}',
        b'{"%(machine)s": {"1x32x4 w8": {"a": {"seconds": 1, "error": 0, "refused": "", "lasting": true, "b": 1}}}}',
    ],
)
def test_a_file_of_another_form_costs_a_measurement(tmp_path: Path, content: bytes) -> None:
    """Of another version, of another program, or half of one: the layer is measured, and the file is whole again."""
    file = tmp_path / "cpu.json"
    file.write_bytes(content.replace(b"%(machine)s", machine().encode()))
    assert Timings(file).of(SMALL).keys() == candidates(8).keys()
    assert Timings(file).known[machine()]["1x32x4 w8"].keys() == candidates(8).keys()


def test_a_user_without_a_home_has_measurements_for_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (FOLDER, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setattr(Path, "home", homeless)
    with caplog.at_level(logging.WARNING):
        found = timings().of(SMALL)
        assert timings().of(SMALL) == found
    assert caplog.text.count("there is no home folder") == 1
    assert f"name one by {FOLDER}" in caplog.text


def test_the_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timings().file == tmp_path / "nvila-kernels" / "cpu.json"


def test_a_wrong_kernel_is_refused_with_its_error() -> None:
    wrong = Kernel(
        name="wrong", bits=8, activations="int8", bytes=lambda *_: 1.0, pack=lambda codes, arena: lambda x: x @ x.T
    )
    broken = Kernel(name="broken", bits=8, activations="int8", bytes=lambda *_: 1.0, pack=lambda codes, arena: 1 / 0)

    def refuse(codes: object, arena: object) -> object:
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

    def right(codes: Codes, arena: Arena) -> Run:
        def run(x: Tensor) -> Tensor:
            calls.append(1)
            sleep(0.01)
            return expected(codes, x)

        return run

    packs = {"wrong": lambda codes, arena: lambda x: x @ x.T, "right": right}
    kernels = {
        name: Kernel(name=name, bits=8, activations="int8", bytes=lambda *_: 1.0, pack=pack)
        for name, pack in packs.items()
    }
    measure_all(kernels, Shape(rows=4, k=32, n=4, group=0))
    assert len(calls) == 1 + 2 * RUNS  # the first is checked; a hopeless one would run less


def test_a_kernel_that_was_disturbed_is_timed_again_beside_the_others() -> None:
    calls: list[int] = []

    def slow(codes: Codes, arena: Arena) -> Run:
        def run(x: Tensor) -> Tensor:
            sleep(0.01)
            return expected(codes, x)

        return run

    def disturbed(codes: Codes, arena: Arena) -> Run:
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
