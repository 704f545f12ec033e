"""What the linear layers of a module get to see: a fair sample of rows, and the largest values of all rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nvila_kernels.policy import linear_layers

CAPACITY = 512
"""Rows kept of each layer: enough for a search over scales, 7 MiB in bfloat16 for the widest layers met here
after the 18,944 features of an MLP, which take 19."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Calibration activations of one layer.

    Attributes:
        rows: a uniform sample of its input rows, ``[r, k]``, in the type they came in.
        largest: ``max|x|`` of each feature over every row that came by, float32 ``[k]``.
        seen: how many rows came by.
    """

    rows: Tensor
    largest: Tensor
    seen: int

    @property
    def features(self) -> int:
        return self.rows.shape[1]

    def divided(self, scale: Tensor) -> "Observed":
        """The same activations after their source was divided by ``scale``, ``[k]``."""
        rows = (self.rows.float() / scale).to(self.rows.dtype)
        return Observed(rows=rows, largest=self.largest / scale, seen=self.seen)


class Reservoir:
    """A uniform sample, without replacement, of a stream of rows of unknown length.

    Each row draws a random key, and the rows with the smallest keys stay: every row of the stream has the same
    chance, and memory is bounded by ``capacity`` rows.

    Args:
        capacity: rows that stay at most.
        seed: of the keys; the same rows in the same order give the same sample.
    """

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"a reservoir of {capacity} rows keeps nothing: use 1 or more")
        self.capacity = capacity
        self.seen = 0
        self._random = torch.Generator().manual_seed(seed)
        self._keys = torch.empty(0)
        self._rows: Tensor | None = None
        self._largest: Tensor | None = None

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Show it rows ``[..., k]``."""
        rows = x.detach().reshape(-1, x.shape[-1])
        if not len(rows):
            return
        self.seen += len(rows)
        largest = rows.abs().amax(0).float()
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        keys, order = torch.cat([self._keys, torch.rand(len(rows), generator=self._random)]).sort()
        self._keys, order = keys[: self.capacity], order[: self.capacity].to(rows.device)
        self._rows = (rows if self._rows is None else torch.cat([self._rows, rows]))[order]

    def observed(self) -> Observed:
        """What it has seen. Raises: ValueError if that is nothing, or not finite."""
        if self._rows is None or self._largest is None:
            raise ValueError("no row came by: run the module on calibration data")
        if not bool(torch.isfinite(self._largest).all()):
            raise ValueError("activations are not finite: calibrate in a wider type, or on other data")
        return Observed(rows=self._rows, largest=self._largest, seen=self.seen)


def observe(
    module: nn.Module, run: Callable[[], object], *, capacity: int = CAPACITY, seed: int = 0
) -> dict[str, Observed]:
    """Run something, and return what each linear layer of ``module`` saw meanwhile, by dotted name.

    Args:
        module: whose layers are watched. Memory: ``capacity`` rows a layer, so take one block at a time where
            the model is large (``walk``).
        run: computes with the module, without padding: padded positions would be sampled like all others.

    Layers that were not reached have no entry. Raises: ValueError naming a layer whose activations are not
    finite.
    """
    reservoirs = {name: Reservoir(capacity, seed=seed) for name in linear_layers(module)}

    def watch(reservoir: Reservoir) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: reservoir.add(inputs[0])

    layers = linear_layers(module)
    handles = [layers[name].register_forward_pre_hook(watch(reservoir)) for name, reservoir in reservoirs.items()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    result: dict[str, Observed] = {}
    for name, reservoir in reservoirs.items():
        try:
            if reservoir.seen:
                result[name] = reservoir.observed()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return result
