"""Memory for packed weights, by what Linux says of it."""

import mmap
from pathlib import Path

import pytest
import torch
from nvila_kernels.cpu import Arena, arena, candidates
from nvila_kernels.cpu.arena import SETTINGS, allocate, large_page
from nvila_kernels.cpu.measurement import sample
from nvila_kernels.cpu.shape import Shape

asked = pytest.mark.skipif(
    not large_page() or "[always]" in ((SETTINGS / "enabled").read_text() if SETTINGS.is_dir() else ""),
    reason="this system has no large pages, or gives them to all who did not ask",
)


def moved() -> int:
    """KiB of this process in large pages."""
    (line,) = (each for each in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in each)
    return int(line.split()[1])


@asked
def test_packed_weights_lie_in_large_pages() -> None:
    kernel = candidates(4)["numba int8"]
    if reason := kernel.missing():
        pytest.skip(reason)
    codes, rows, _ = sample(Shape(rows=1, k=4096, n=8192, group=128))
    before = moved()
    run = kernel.pack(codes, Arena())
    assert moved() - before >= kernel.bytes(8192, 4096, 128) / 2**10 / 2
    assert run(rows).shape == (1, 8192)


def test_an_owner_who_wants_no_large_pages_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "glibc", object)
    assert large_page(tmp_path) == 0  # the system has none
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    for setting in ("[always] madvise never", "always [madvise] never"):
        (tmp_path / "enabled").write_text(f"{setting}\n")
        assert large_page(tmp_path) == (2**21 if mmap.PAGESIZE == 4096 else 0)
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert large_page(tmp_path) == 0


def test_pieces_of_memory_lie_after_each_other() -> None:
    memory = Arena(chunk=2**16)
    with torch.inference_mode():
        first = memory.take(100)
    second, large, third = memory.take(64), memory.take(2**16), memory.take(1)
    assert [len(each) for each in (first, second, large, third)] == [100, 64, 2**16, 1]
    assert second.data_ptr() - first.data_ptr() == 128
    assert third.data_ptr() - second.data_ptr() == 64
    for value, piece in enumerate((first, second, large, third)):
        assert piece.data_ptr() % 64 == 0
        piece.fill_(value)  # in another mode than the first was taken in
    assert [int(each.sum()) for each in (first, second, large, third)] == [0, 64, 2**17, 3]


def test_arenas_have_nothing_in_common() -> None:
    one, other = Arena().take(64).fill_(1), Arena().take(64).fill_(2)
    assert int(one.sum()) == 64
    assert int(other.sum()) == 128


def test_small_tensors_need_no_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "large_page", lambda: 0)
    piece = allocate(1000)
    assert len(piece) == 1000
    assert piece.data_ptr() % 64 == 0
