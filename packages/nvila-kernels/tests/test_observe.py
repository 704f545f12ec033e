"""The sample of calibration rows, and the walk from block to block."""

from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels.calibrate import Reservoir, observe, walk
from torch import Tensor, nn


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), capacity=st.integers(1, 20))
def test_a_reservoir_keeps_rows_of_the_stream(sizes: list[int], capacity: int) -> None:
    reservoir = Reservoir(capacity)
    values = iter(range(1, 1000))
    for size in sizes:
        reservoir.add(torch.tensor([[float(next(values))] * 3 for _ in range(size)]).reshape(1, size, 3))
    if not sum(sizes):
        with pytest.raises(ValueError, match="no row came by"):
            reservoir.observed()
        return
    seen = reservoir.observed()
    kept = seen.rows[:, 0].tolist()
    assert seen.seen == sum(sizes)
    assert seen.rows.shape == (min(capacity, sum(sizes)), 3)
    assert len(set(kept)) == len(kept)
    assert set(kept) <= set(range(1, sum(sizes) + 1))
    assert seen.largest.tolist() == [sum(sizes)] * 3


def test_every_row_has_the_same_chance() -> None:
    counts = torch.zeros(20)
    for seed in range(2000):
        reservoir = Reservoir(5, seed=seed)
        for part in torch.arange(20.0)[:, None].split([1, 12, 7]):
            reservoir.add(part)
        counts[reservoir.observed().rows[:, 0].long()] += 1
    assert counts.sum() == 10_000
    assert bool(((counts - 500).abs() < 100).all())  # five standard deviations


def test_memory_is_bounded_by_the_capacity() -> None:
    reservoir = Reservoir(4)
    reservoir.add(torch.randn(1000, 8))
    rows = reservoir.observed().rows
    assert rows.untyped_storage().nbytes() == 4 * 8 * 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)

    def forward(self, x: Tensor, shift: Tensor, *, double: bool = False) -> Tensor | tuple[Tensor, str]:
        out = x + self.inner(x) + shift
        return (out * 2, "extra") if double else out


class Stack(nn.Module):
    def __init__(self, *, double: bool) -> None:
        super().__init__()
        self.double = double
        self.embed = nn.Linear(3, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.finished = 0

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            output = block(hidden, x.sum(), double=self.double)
            hidden = output[0] if self.double else output
        self.finished += 1
        return hidden


def test_hooks_see_the_inputs_and_leave() -> None:
    model = Stack(double=False)
    x = torch.randn(2, 5, 3)
    seen = observe(model, lambda: model(x))
    assert set(seen) == {"embed", *(f"blocks.{index}.inner" for index in range(3))}
    assert sorted(seen["embed"].rows.tolist()) == sorted(x.reshape(-1, 3).tolist())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_division_is_that_of_the_rows() -> None:
    model = nn.Sequential(nn.Linear(4, 1))
    seen = observe(model, lambda: model(torch.ones(1, 4)))["0"].divided(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert seen.rows.tolist() == [[1.0, 0.5, 0.25, 0.125]]
    assert seen.largest.tolist() == [1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("double", [False, True])
def test_a_walk_sees_what_the_whole_model_shows(double: bool) -> None:
    model = Stack(double=double)
    batches = [torch.randn(1, 4, 3), torch.randn(2, 7, 3)]
    whole = observe(model, lambda: [model(batch) for batch in batches])
    finished = model.finished
    names = {f"blocks.{index}": block for index, block in enumerate(model.blocks)}
    for name, block, seen in walk(names, model, batches):
        torch.testing.assert_close(seen["inner"].rows, whole[f"{name}.inner"].rows)
        assert block is names[name]
        nn.init.zeros_(block.get_parameter("inner.weight"))  # the next block must not notice
    assert model.finished == finished


class Loaded(Mapping[str, nn.Module]):
    """The blocks of a model without weights; looking one up gives it weights, and takes those of the last."""

    def __init__(self, model: Stack, states: list[dict[str, Tensor]]) -> None:
        self.model, self.states = model, states
        self.order: list[int] = []

    def __getitem__(self, name: str) -> nn.Module:
        for block in self.model.blocks:
            block.to("meta")
        block, index = self.model.blocks[int(name)], int(name)
        block.load_state_dict(self.states[index], assign=True)
        self.order.append(index)
        return block

    def __iter__(self) -> Iterator[str]:
        return map(str, range(len(self.states)))

    def __len__(self) -> int:
        return len(self.states)


def test_one_block_in_memory_is_enough() -> None:
    model, batch = Stack(double=False), torch.randn(2, 4, 3)
    whole = observe(model, lambda: model(batch))
    states = [{name: tensor.clone() for name, tensor in block.state_dict().items()} for block in model.blocks]
    blocks = Loaded(model, states)
    for name, _, seen in walk(blocks, model, [batch]):
        torch.testing.assert_close(seen["inner"].rows, whole[f"blocks.{name}.inner"].rows)
        assert [block.inner.weight.is_meta for block in model.blocks] == [str(index) != name for index in range(3)]
    assert blocks.order == [0, 0, 1, 2]


def test_refusals() -> None:
    model = Stack(double=False)
    names = {"blocks.0": model.blocks[0]}
    with pytest.raises(ValueError, match="a reservoir of 0 rows keeps nothing: use 1 or more"):
        Reservoir(0)
    with pytest.raises(ValueError, match="there is no calibration batch: give at least one"):
        list(walk(names, model, []))
    with pytest.raises(ValueError, match="calibration batch 1 does not reach the first block: leave it out"):
        list(walk(names, lambda x: x is None or model(x), [torch.randn(1, 3), None]))
    with pytest.raises(ValueError, match="called by keywords only: pass the hidden state as its first argument"):
        list(walk(names, lambda x: model.blocks[0](x=x, shift=x), [torch.randn(1, 6)]))
    nn.init.constant_(model.blocks[0].get_parameter("inner.bias"), float("nan"))
    with pytest.raises(ValueError, match=r"1\.inner: activations are not finite"):
        observe(model.get_submodule("blocks"), lambda: model(torch.randn(1, 3)))
