"""Memory that goes back to the system, and memory in large pages."""

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nvila_kernels.cpu import memory


def resident(file: Path) -> int:
    """KiB of a mapped file that are in memory."""
    return told("Rss:", lambda line: line.endswith(str(file)))


def told(field: str, of: Callable[[str], bool]) -> int:
    """The sum of a field over the mappings whose first line is looked for."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = of(line)
        elif here and line.startswith(field):
            found += int(line.split()[1])
    return found


def large_pages() -> bool:
    """Whether this machine makes them when it is asked."""
    with mmap.mmap(-1, 2**23, flags=mmap.MAP_PRIVATE) as mapped:
        mapped.madvise(mmap.MADV_HUGEPAGE)
        mapped.write(bytes(2**23))
        return told("AnonHugePages:", lambda _: True) > 0


@pytest.mark.skipif(memory.glibc() is None, reason="needs Linux with glibc")
def test_pages_of_a_mapped_file_leave_and_come_back(tmp_path: Path) -> None:
    file = tmp_path.resolve() / "weights.bin"
    content = bytes(range(256)) * 2**12
    file.write_bytes(content)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        assert resident(file) == 1024
        memory.unread(file)
        assert resident(file) == 0
        assert mapped[:] == content


@pytest.mark.skipif(memory.glibc() is None or not large_pages(), reason="needs Linux with glibc and large pages")
def test_what_is_filled_moves_to_large_pages() -> None:
    with memory.apart():
        weight = torch.arange(2**22)
    place = weight.data_ptr()

    def around(line: str) -> bool:
        start, end = (int(each, 16) for each in line.split()[0].split("-"))
        return start <= place < end

    assert told("AnonHugePages:", around) >= 28 * 1024  # of 32 MiB, less the ends
    assert torch.equal(weight, torch.arange(2**22))


@pytest.mark.skipif(memory.glibc() is None or not large_pages(), reason="needs Linux with glibc and large pages")
def test_what_was_there_before_stays_where_it_is() -> None:
    with mmap.mmap(-1, 2**24, flags=mmap.MAP_PRIVATE) as mapped:
        mapped.write(bytes(2**24))
        before = told("AnonHugePages:", lambda _: True)
        with memory.apart():
            pass
        assert told("AnonHugePages:", lambda _: True) <= before


def test_only_filled_mappings_without_a_file_are_looked_at(tmp_path: Path) -> None:
    maps = tmp_path / "smaps"
    maps.write_text("""\
1000-3000 rw-p 00000000 00:00 0
Size:                  8 kB
Rss:                   8 kB
3000-5000 rw-p 00000000 00:00 0                          [heap]
Rss:                   4 kB
5000-7000 r--p 00000000 00:00 0
Rss:                   8 kB
7000-9000 rw-p 00000000 fe:00 42                         /weights
Rss:                   8 kB
9000-b000 rw-s 00000000 00:00 0
Rss:                   8 kB
b000-c000 rw-p 00000000 00:00 0                          [heap]
Rss:                   4 kB
AnonHugePages:         0 kB
""")
    assert memory.mappings(maps=maps, filled=0.9) == [(0x1000, 0x3000), (0xB000, 0xC000)]
    assert memory.mappings(maps=maps) == [(0x1000, 0x3000), (0x3000, 0x5000), (0xB000, 0xC000)]


@pytest.mark.parametrize(
    ("places", "others", "left"),
    [
        ([(1, 9)], [], [(1, 9)]),
        ([(1, 9)], [(0, 1), (3, 4), (6, 7), (9, 12)], [(1, 3), (4, 6), (7, 9)]),
        ([(1, 5), (6, 9)], [(0, 2), (4, 7)], [(2, 4), (7, 9)]),
        ([(1, 5)], [(0, 6)], []),
    ],
)
def test_places_without_others(
    places: list[memory.Place], others: list[memory.Place], left: list[memory.Place]
) -> None:
    assert memory.without(places, others) == left


class Deaf:
    """A library that nobody is to call."""


@pytest.mark.parametrize("told", [{"enabled": "always madvise [never]", "hpage_pmd_size": "2097152"}, {}])
def test_pages_stay_small_where_large_ones_are_turned_off_or_unknown(
    told: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "TRANSPARENT", tmp_path)
    monkeypatch.setattr(memory, "glibc", Deaf)
    for name, content in told.items():
        (tmp_path / name).write_text(content)
    memory.enlarge([(0, 2**30)])


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
    monkeypatch.setattr(memory, "enlarge", lambda _: None)
    with memory.apart():
        assert told == [(-3, 2**20)]
    assert told[1:] == [(-3, 2**25), (-1, 2**26), 0]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


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
