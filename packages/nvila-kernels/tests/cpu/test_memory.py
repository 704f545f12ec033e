"""Memory that goes back to the system."""

import mmap
from pathlib import Path

import pytest
from nvila_kernels.cpu import memory


def resident(file: Path) -> int:
    """KiB of a mapped file that are in memory."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = line.endswith(str(file))
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


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


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory.platform, "system", lambda: "Darwin")
    memory.unread(tmp_path / "weights.bin")
    memory.give_back()
    with memory.apart():
        pass
