"""Memory that goes back to the system."""

import pytest
from nvila_kernels.cpu import memory


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "system", lambda: "Darwin")
    memory.give_back()
    with memory.large_blocks_returned():
        pass


def test_the_heap_is_as_generous_after_packing_as_glibc_would_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class Library:
        mallopt = staticmethod(lambda *parameter: calls.append(parameter))
        malloc_trim = staticmethod(lambda kept: calls.append(kept))

    monkeypatch.setattr(memory, "glibc", Library)
    with memory.large_blocks_returned():
        assert calls == [(-3, 2**20)]
    assert calls[1:] == [(-3, 2**25), (-1, 2**26), 0]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
