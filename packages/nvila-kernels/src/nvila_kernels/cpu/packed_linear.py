"""Give the quantized layers of a model to the fastest kernels of this machine, for good.

The kernels of other libraries want the weight in packings of their own, and a machine that runs a language model on
its processor has no memory for two copies. So settling is a step after loading: each layer is packed, then lets go of
what it held. A settled model only answers; to train, save or move it, load it again.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_kernels.cpu.kernel import Codes
from nvila_kernels.cpu.measurement import Measurement
from nvila_kernels.cpu.memory import apart, give_back, machine_memory
from nvila_kernels.cpu.packed_weight import PackedWeight, packed_run, prepare
from nvila_kernels.cpu.selection import MEMORY, Alike, KernelChoice, choose, choose_alike, pays_twice
from nvila_kernels.cpu.shape import PHASES, Phase, Shape, in_blocks, shape_of
from nvila_kernels.cpu.timings_file import timings
from nvila_kernels.modules import Int4Linear, Int8Linear
from nvila_kernels.policy import every_module


class PackedModule(nn.Module):
    """Something packed for this machine's kernels. Inference on the CPU only.

    Args:
        prepared: the packed weights.
    """

    number: Tensor

    def __init__(self, prepared: PackedWeight) -> None:
        super().__init__()
        self.prepared = prepared
        self.register_buffer("number", torch.tensor(prepared.number), persistent=False)

    def run(self, inputs: Sequence[Tensor], sizes: Sequence[int], changed: Sequence[Tensor] = ()) -> Tensor:
        """A tensor of these sizes and the type of the first input; ``changed`` is read and written."""
        if torch.compiler.is_compiling() or type(inputs[0]) is not Tensor:  # a fake one, for instance
            return packed_run(inputs, changed, self.number, sizes)
        return self.prepared.run(*inputs, *changed)  # an operator written in Python costs more than a small product

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise ValueError(f"{prefix.rstrip('.')} is packed for this machine and cannot be saved: load the model again")

    def extra_repr(self) -> str:
        return ", ".join(f"{phase}={name!r}" for phase, name in self.prepared.choice.kernels.items())


class PackedLinear(PackedModule):
    """A quantized linear layer in the packing of this machine's kernels.

    Args:
        prepared: the packed weight.
        bias: ``[n]`` or None.
        gelu: apply GELU (tanh) to the result.

    Shapes: ``[..., in_features] -> [..., out_features]`` of the same float type.
    """

    bias: Tensor | None

    def __init__(
        self, prepared: PackedWeight, *, in_features: int, out_features: int, bias: Tensor | None, gelu: bool = False
    ) -> None:
        super().__init__(prepared)
        self.in_features, self.out_features, self.gelu = in_features, out_features, gelu
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Raises: ValueError for activations of another width."""
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has {x.shape[-1]} features, the layer reads {self.in_features}: pass those it was made for"
            )
        out = self.run((x,), (*x.shape[:-1], self.out_features))
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return F.gelu(out, approximate="tanh") if self.gelu else out

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {super().extra_repr()}"


@dataclass(frozen=True, kw_only=True)
class OptimizedLayer:
    """What became of one layer, or of several in one graph: its name, and the kernels that won."""

    name: str
    choice: KernelChoice


def chosen(
    shape: Shape, *, phases: Iterable[Phase] = PHASES, memory: float = MEMORY, int8_activations: bool = True
) -> KernelChoice:
    """The kernels for weights of a shape, measured if it never was. Raises: ValueError if none is left."""
    return choose(shape, measured(shape, phases), memory=memory, int8_activations=int8_activations)


def measure_alike(
    shapes: Sequence[Shape],
    names: Sequence[str],
    *,
    saved: float,
    whole: Mapping[str, float] | None = None,
    memory: float | None = None,
    int8_activations: bool = True,
) -> Alike | None:
    """One of the named kernels for weights of all these shapes; see ``choose_alike``.

    Without ``memory``, prompts have kernels of their own where ``pays_twice`` finds that worth it.
    """
    found = {shape: measured(shape, PHASES) for shape in set(shapes)}

    def within(limit: float) -> Alike | None:
        return choose_alike(
            shapes, found, names, saved=saved, whole=whole, memory=limit, int8_activations=int8_activations
        )

    if memory is not None:
        return within(memory)
    any_size = within(math.inf)
    worth = any_size is not None and pays_twice(
        shapes, found, any_size, machine_memory(), int8_activations=int8_activations
    )
    return any_size if worth else within(MEMORY)


def measured(shape: Shape, phases: Iterable[Phase]) -> dict[Phase, Mapping[str, Measurement]]:
    return {phase: timings().of(shape.at(phase)) for phase in phases}


@torch.no_grad()
def optimize_(
    module: nn.Module,
    *,
    phases: Iterable[Phase] = PHASES,
    memory: float = MEMORY,
    int8_activations: bool = True,
) -> tuple[OptimizedLayer, ...]:
    """Replace every ``Int4Linear`` and ``Int8Linear`` inside a module by the fastest kernels that fit, in place.

    Args:
        module: on the CPU, holding quantized layers.
        phases: what it will be used for: ``"decode"`` (at most 16 rows at a time), ``"prefill"`` (more), or both.
        memory: packed weights may take so many times the layer's own bytes; ``math.inf`` for any number. Where nothing
            is that small, the smallest is taken.
        int8_activations: whether 4-bit layers may round activations to 8 bits, which is what the fastest do.

    Returns: the kernels of each layer.
    Raises: ValueError for a layer that is on another device or that no kernel takes.
    """
    phases = tuple(phases)
    layers = {name: layer for name, layer in every_module(module) if isinstance(layer, (Int4Linear, Int8Linear))}
    done: list[OptimizedLayer] = []
    with apart():
        for name in list(layers):
            layer = layers.pop(name)
            settled = pack_linear(layer, phases=phases, memory=memory, int8_activations=int8_activations)
            module.set_submodule(name, settled)
            done.append(OptimizedLayer(name=name, choice=settled.prepared.choice))
            del layer
            give_back()
    return tuple(done)


def pack_linear(
    layer: Int4Linear | Int8Linear,
    *,
    phases: Iterable[Phase] = PHASES,
    memory: float = MEMORY,
    int8_activations: bool = True,
) -> PackedLinear:
    """One layer in the packing of the fastest kernels; ``layer`` stays as it is."""
    weight = layer.packed if isinstance(layer, Int4Linear) else layer.weight
    if weight.device.type != "cpu":
        raise ValueError(f"the layer is on {weight.device}, these kernels run on the CPU: move it there first")
    codes = in_blocks(layer.codes())
    choice = chosen(shape_of(codes), phases=phases, memory=memory, int8_activations=int8_activations)
    return packed(layer, codes, choice)


def packed(layer: Int4Linear | Int8Linear, codes: Codes, choice: KernelChoice) -> PackedLinear:
    """One layer, with these codes of its weight in the packing of these kernels; ``layer`` stays as it is."""
    return settled(layer, prepare(codes, choice))


def settled(layer: Int4Linear | Int8Linear, prepared: PackedWeight) -> PackedLinear:
    """One layer, its weight packed; ``layer`` stays as it is."""
    return PackedLinear(
        prepared,
        in_features=layer.in_features,
        out_features=layer.out_features,
        bias=layer.bias,
        gelu=isinstance(layer, Int8Linear) and layer.gelu,
    )
