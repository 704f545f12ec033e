"""Memory that goes back to the system."""

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
from nvila_kernels.cpu import memory


@pytest.mark.skipif(memory.glibc() is None, reason="needs Linux with glibc")
def test_pages_of_a_mapped_file_leave_and_come_back(tmp_path: Path, resident: Callable[[Path], int]) -> None:
    file = tmp_path.resolve() / "weights.bin"
    content = bytes(range(256)) * 2**12
    file.write_bytes(content)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        assert resident(file) == 1024
        memory.unread(file)
        assert resident(file) == 0
        assert mapped[:] == content


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory.platform, "system", lambda: "Darwin")
    memory.unread(tmp_path / "weights.bin")
    memory.give_back()
    with memory.apart():
        pass


def test_the_heap_is_as_generous_after_packing_as_glibc_would_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    class Library:
        mallopt = staticmethod(lambda *parameter: told.append(parameter))
        malloc_trim = staticmethod(lambda kept: told.append(kept))

    monkeypatch.setattr(memory, "glibc", Library)
    with memory.apart():
        assert told == [(-3, 2**20)]
    assert told[1:] == [(-3, 2**25), (-1, 2**26), 0]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def test_what_lies_apart_within_what_lies_apart_does_so_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Library:
        malloc_trim = staticmethod(lambda _: None)

        @staticmethod
        def mallopt(parameter: int, value: int) -> None:
            if parameter == memory.MMAP_THRESHOLD:
                told.append(value)

    monkeypatch.setattr(memory, "glibc", Library)
    with memory.apart():
        with memory.apart():
            assert told == [2**20, 2**20]
        assert told[2:] == [2**20]
    assert told[3:] == [2**25]


def test_a_container_has_less_memory_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    whole = memory.machine_memory(limit)
    assert whole > 2**28
    limit.write_text("max\n")
    assert memory.machine_memory(limit) == whole
    limit.write_text(f"{2**28}\n")
    assert memory.machine_memory(limit) == 2**28
    monkeypatch.delattr(memory.os, "sysconf")
    assert memory.machine_memory(limit) == 0
