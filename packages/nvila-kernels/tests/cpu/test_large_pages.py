"""Memory that moves into large pages, by what Linux says of it."""

import mmap
import platform
from pathlib import Path

import pytest
import torch
from nvila_kernels.cpu import candidates, large_pages
from nvila_kernels.cpu.large_pages import SETTINGS, filled, in_large_pages, large_page, runs
from nvila_kernels.cpu.measurement import sample
from nvila_kernels.cpu.shape import Shape
from torch import Tensor

SIZE = 2**25
RELEASE = tuple(int(number) for number in platform.release().split(".")[:2] if number.isdigit())
moving = pytest.mark.skipif(not large_page() or RELEASE < (6, 1), reason="needs Linux 6.1 with large pages")

asked = pytest.mark.skipif(
    "[always]" in ((SETTINGS / "enabled").read_text() if SETTINGS.is_dir() else ""),
    reason="this system gives large pages to all who did not ask",
)


def kilobytes(tensor: Tensor, field: str) -> int:
    """What Linux counts where a tensor lies."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *_ = line.split()
        if "-" in first:
            start, end = (int(place, 16) for place in first.split("-"))
            here = start < tensor.data_ptr() + tensor.nbytes and end > tensor.data_ptr()
        elif here and first == f"{field}:":
            found += int(line.split()[1])
    return found


def moved() -> int:
    """KiB of this process in large pages."""
    (line,) = (each for each in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in each)
    return int(line.split()[1])


def memory(mark: str = "MADV_DONTFORK") -> Tensor:
    """As it comes from the system: nothing of it is filled. Linux counts it apart from what has not this mark."""
    area = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(getattr(mmap, mark))
    return torch.frombuffer(area, dtype=torch.uint8)


@moving
def test_what_is_filled_moves_into_large_pages_and_stays_the_same() -> None:
    tensor = memory()
    with in_large_pages():
        tensor.copy_(torch.arange(256, dtype=torch.uint8).repeat(SIZE // 256))
    assert kilobytes(tensor, "AnonHugePages") * 1024 >= SIZE - 2 * large_page()  # its edges may lie within one
    assert torch.equal(tensor.view(-1, 256), torch.arange(256, dtype=torch.uint8).expand(SIZE // 256, -1))


@moving
@asked
def test_what_was_there_before_and_what_is_not_full_stays() -> None:
    old, sparse = memory().fill_(1), memory("MADV_DONTDUMP")
    with in_large_pages():
        sparse[:: 2 * mmap.PAGESIZE] = 1
    assert kilobytes(old, "AnonHugePages") == kilobytes(sparse, "AnonHugePages") == 0
    assert kilobytes(sparse, "Rss") * 1024 == SIZE / 2


@moving
@asked
@pytest.mark.parametrize("name", ["numba int8", "onnxruntime MatMulNBits int8"])
def test_weights_that_a_runtime_packs_lie_in_large_pages(name: str) -> None:
    kernel = candidates(4)[name]
    if reason := kernel.missing():
        pytest.skip(reason)
    codes, rows, _ = sample(Shape(rows=1, k=4096, n=8192, group=128))
    before = moved()
    run = kernel.pack(codes)
    assert moved() - before >= kernel.bytes(8192, 4096, 128) / 2**10 / 2
    assert run(rows).shape == (1, 8192)


@moving
def test_places_are_filled_once_all_of_their_pages_are() -> None:
    size, tensor = large_page(), memory()
    first = -(-tensor.data_ptr() // size)
    inside = tensor[first * size - tensor.data_ptr() :]
    inside[: 3 * size] = 1
    places = set(filled(size))
    assert {first, first + 1, first + 2} <= places
    assert first + 3 not in places


def test_an_owner_who_wants_no_large_pages_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_pages, "glibc", object)
    assert large_page(tmp_path) == 0  # the system has none
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    for setting in ("[always] madvise never", "always [madvise] never"):
        (tmp_path / "enabled").write_text(f"{setting}\n")
        assert large_page(tmp_path) == (2**21 if mmap.PAGESIZE == 4096 else 0)
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert large_page(tmp_path) == 0


def test_where_there_are_none_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_pages, "glibc", lambda: None)
    with in_large_pages():
        pass


def test_runs_have_no_gaps() -> None:
    assert list(runs([3, 4, 5, 9, 11, 12])) == [(3, 3), (9, 1), (11, 2)]
    assert list(runs([])) == []
