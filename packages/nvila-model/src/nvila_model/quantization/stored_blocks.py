"""The blocks of a model that stays on disk, one in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from nvila_kernels import Int4Linear, Int8Linear
from nvila_kernels.formats import WritableFormat
from torch import Tensor, nn

from nvila_model.checkpoint.loading import check, set_parameter
from nvila_model.checkpoint.names import from_published, published_names, to_published
from nvila_model.checkpoint.quantized import layer_tensors
from nvila_model.checkpoint.tensor_folder import Tensors
from nvila_model.network.vlm import VLM


def fill_copy(module: nn.Module, prefix: str, tensors: Tensors, *, leave: tuple[str, ...] = ()) -> None:
    """Give every parameter of a module on the meta device a float32 copy of its tensor.

    Args:
        prefix: the dotted name of the module in the model.
        leave: names of parameters, or beginnings of them, that stay without.
    """
    for inside, parameter in list(module.named_parameters()):
        name = f"{prefix}.{inside}"
        if name.startswith(leave):
            continue
        sources = published_names(name)
        for source in sources:
            check(name, source, parameter, tensors, pieces=len(sources))
        found = from_published(name, [tensors[source] for source in sources])
        set_parameter(module, inside, found.to(torch.float32, copy=True))


class StoredBlocks(Mapping[str, nn.Module]):
    """Blocks by dotted name, read from disk in float32 when they are looked up and placed in the model.

    Args:
        model: on the meta device.
        place: dotted name of the blocks' list.
        tensors: of the checkpoint.
        keep: whether a block stays in the model when the next one is looked up.
    """

    def __init__(self, model: VLM, place: str, tensors: Tensors, *, keep: bool) -> None:
        self.model, self.tensors, self.keep = model, tensors, keep
        self.empty = {f"{place}.{name}": block for name, block in model.get_submodule(place).named_children()}
        self.present: set[str] = set()

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self.present:
            if not self.keep:
                self.let_go()
            block = copy.deepcopy(self.empty[name])
            fill_copy(block, name, self.tensors)
            self.model.set_submodule(name, block)
            self.present.add(name)
        return self.model.get_submodule(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.empty)

    def __len__(self) -> int:
        return len(self.empty)

    def let_go(self) -> None:
        """Empty the blocks that are in memory."""
        for name in self.present:
            self.model.set_submodule(name, self.empty[name])
        self.present.clear()


def block_names(model: VLM, place: str) -> dict[str, list[str]]:
    """The published tensors of each block, by its dotted name."""
    chain = model.get_submodule(place).named_children()
    return {
        f"{place}.{name}": [
            source for inside, _ in block.named_parameters() for source in published_names(f"{place}.{name}.{inside}")
        ]
        for name, block in chain
    }


def block_tensors(
    block: nn.Module, prefix: str, forms: Mapping[str, WritableFormat], stored: torch.dtype
) -> dict[str, Tensor]:
    """What stands for a quantized block in a file, by published name; floats in the type of the source."""
    found: dict[str, Tensor] = {}
    for inside, parameter in block.named_parameters():
        found |= {
            name: part.to(stored) for name, part in to_published(f"{prefix}.{inside}", parameter.detach()).items()
        }
    for inside, layer in block.named_modules():
        if isinstance(layer, (Int4Linear, Int8Linear)):
            name = f"{prefix}.{inside}"
            found |= {key: part.to(stored) if key.endswith(".bias") else part for key, part in
                      layer_tensors(name, layer, forms[name]).items()}  # fmt: skip
    return {name: tensor.contiguous() for name, tensor in found.items()}
