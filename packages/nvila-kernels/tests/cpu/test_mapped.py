"""Tensors in files whose pages leave memory."""

import gc
import platform
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch
from nvila_kernels.cpu import mapped
from nvila_kernels.cpu.mapped import MappedTensors

needs_linux = pytest.mark.skipif(platform.system() != "Linux", reason="reads Linux's tables of memory")


def drawn(*sizes: int) -> torch.Tensor:
    return torch.randint(0, 256, sizes, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(sizes)))


def test_tensors_come_back_as_they_were(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in a file, the next file where one is full, and their own where they are larger than one."""
    monkeypatch.setattr(mapped, "FILE", 2**14)
    kept = MappedTensors()
    given = [drawn(3, 5), drawn(100, 100), torch.randn(7, 9), drawn(80, 100), drawn(300, 300).T, drawn(1)]
    found = [kept.keep(tensor) for tensor in given]
    kept.close()
    assert len(kept.maps) == 4
    for tensor, other in zip(given, found, strict=True):
        assert torch.equal(tensor, other)
        assert other.data_ptr() % mapped.ALIGNED == 0
    assert platform.system() == "Windows" or not list(cache_folder.iterdir())


@needs_linux
def test_pages_leave_while_tensors_are_read(cache_folder: Path, resident: Callable[[Path], int]) -> None:
    kept = MappedTensors()
    given = drawn(2**10, 2**10)
    found = kept.keep(given)
    kept.close()
    assert resident(cache_folder) == 0
    with kept.unread_meanwhile():
        assert torch.equal(given, found)
        end = monotonic() + 10
        while resident(cache_folder) and monotonic() < end:
            sleep(0.01)
        assert resident(cache_folder) == 0
        assert torch.equal(given, found)
    assert resident(cache_folder) == 0
    assert torch.equal(given, found)
    assert resident(cache_folder) == 1024


@needs_linux
def test_a_file_lasts_as_long_as_its_readers(cache_folder: Path) -> None:
    def mapped_here() -> bool:
        return str(cache_folder.resolve()) in Path("/proc/self/maps").read_text()

    kept = MappedTensors()
    found = kept.keep(drawn(8))
    kept.close()
    del kept
    assert torch.equal(found, drawn(8))
    assert mapped_here()
    del found
    gc.collect()
    assert not mapped_here()
