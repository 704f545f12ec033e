"""Give the quantized layers of a model to the fastest kernels of this machine, for good.

The kernels want the weight in packings of their own, and a machine that runs a language model on its processor has no
memory for two copies. So optimizing is a step after loading: each layer is packed, then lets go of what it held. An
optimized model only answers, on the processor that it is on; whatever else is done with it is refused.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Never, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_kernels.cpu.arena import Arena
from nvila_kernels.cpu.compiled.layout import SMALLEST
from nvila_kernels.cpu.kernels.candidates import candidates
from nvila_kernels.cpu.kernels.kernel import Codes, Run, bits_of
from nvila_kernels.cpu.kernels.numba_int4 import NUMBA_INT8
from nvila_kernels.cpu.memory import give_back, large_blocks_returned
from nvila_kernels.cpu.selection import Found, KernelChoice, choose, packed_bytes
from nvila_kernels.cpu.shape import PHASES, Phase, Shape, in_blocks
from nvila_kernels.cpu.timings_file import timings
from nvila_kernels.modules import Int4Linear, Int8Linear
from nvila_kernels.pack import BLOCK, kernel_group
from nvila_kernels.policy import every_module

REMEDY = "load the model again, with optimize=False"


class PackedWeight:
    """A weight in the packing of a kernel. It never changes, so that copies of a layer have it in common.

    Args:
        run: multiplies by it.
        choice: the kernel.
        in_features, out_features: of the product.
    """

    def __init__(self, run: Run, choice: KernelChoice, *, in_features: int, out_features: int) -> None:
        self.run = run
        self.choice = choice
        self.in_features, self.out_features = in_features, out_features

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: ``[..., in_features]`` of any float type -> ``[..., out_features]`` of the same.

        Raises: ValueError for activations of another width.
        """
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has {x.shape[-1]} features, the layer reads {self.in_features}: pass those it was made for"
            )
        rows = x.float().reshape(-1, self.in_features).contiguous()
        if not len(rows):
            return x.new_empty(*x.shape[:-1], self.out_features)
        run = self.run
        if torch.compiler.is_compiling():  # the product stays outside of the program: there is nothing in it to trace
            run = cast(Run, torch.compiler.disable(run))  # pyright: ignore[reportUnknownMemberType]
        return run(rows).view(*x.shape[:-1], -1).to(x.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> Never:
        raise ValueError(f"a weight that is packed for this machine cannot be pickled: {REMEDY}")


def pack(codes: Codes, choice: KernelChoice, arena: Arena | None = None) -> PackedWeight:
    """Pack one weight for the kernel that was chosen; weights of one arena lie next to each other."""
    run = candidates(bits_of(codes))[choice.kernel].pack(codes, arena or Arena())
    outputs, inputs = codes.codes.shape
    return PackedWeight(run, choice, in_features=inputs, out_features=outputs)


def pack_layer(layer: Int4Linear | Int8Linear, choice: KernelChoice, arena: Arena | None = None) -> PackedWeight:
    """The weight of a layer, which stays as it is."""
    return pack(in_blocks(layer.codes()), choice, arena)


class PackedLinear(nn.Module):
    """A quantized linear layer in the packing of this machine's fastest kernel. Inference on the CPU only.

    Args:
        weight: packed.
        bias: ``[n]`` or None.
        gelu: apply GELU (tanh) to the result.

    Shapes: ``[..., in_features] -> [..., out_features]`` of the same float type.
    Raises: ValueError when it is trained, saved, pickled or moved to another device.
    """

    bias: Tensor | None

    def __init__(self, weight: PackedWeight, *, bias: Tensor | None, gelu: bool = False) -> None:
        super().__init__()
        self.weight, self.gelu = weight, gelu
        self.register_buffer("bias", bias, persistent=False)
        self.eval()

    @classmethod
    def of(cls, layer: Int4Linear | Int8Linear, weight: PackedWeight) -> Self:
        """What stands for a layer whose weight was packed; ``layer`` stays as it is."""
        return cls(weight, bias=layer.bias, gelu=isinstance(layer, Int8Linear) and layer.gelu)

    @property
    def in_features(self) -> int:
        return self.weight.in_features

    @property
    def out_features(self) -> int:
        return self.weight.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Raises: ValueError for activations of another width."""
        out = self.weight(x)
        if self.bias is not None:
            out = out + self.bias.to(out.dtype)
        return F.gelu(out, approximate="tanh") if self.gelu else out

    def train(self, mode: bool = True) -> Self:
        refuse_training(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        refuse_devices(fn)
        return super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        raise ValueError(f"{prefix.rstrip('.')} is packed for this machine and cannot be saved: {REMEDY}")

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, "
            f"kernel={self.weight.choice.kernel!r}"
        )


def refuse_training(mode: bool) -> None:
    """Raises: ValueError for ``train()``; ``eval()`` passes."""
    if mode:
        raise ValueError(f"an optimized model only answers and cannot be trained: {REMEDY}")


def refuse_devices(fn: Callable[[Tensor], Tensor]) -> None:
    """Raises: ValueError if what ``nn.Module.to`` and its like do with tensors moves them off the CPU."""
    device = fn(torch.empty(0)).device
    if device.type != "cpu":
        raise ValueError(f"an optimized model runs on the CPU and cannot be moved to {device}: {REMEDY}")


@dataclass(frozen=True, kw_only=True)
class OptimizedLayer:
    """What became of one layer: its name, and the kernel that it has."""

    name: str
    choice: KernelChoice


def shape_of(layer: Int4Linear | Int8Linear) -> Shape:
    """What one token asks of a layer."""
    if isinstance(layer, Int8Linear):
        return Shape(rows=1, k=layer.in_features, n=layer.out_features, group=0)
    group = kernel_group(layer.in_features, layer.group_size) or layer.in_features
    return Shape(rows=1, k=layer.in_features, n=layer.out_features, group=min(group, BLOCK))


def fastest(
    shape: Shape, *, phases: Iterable[Phase] = PHASES, int8_activations: bool = True, smallest: bool = False
) -> KernelChoice:
    """The kernel for weights of a shape, measured if it never was. Raises: ValueError if none is left."""
    found: Found = {phase: timings().of(shape.at(phase)) for phase in phases}
    return choose(shape, found, int8_activations=int8_activations, smallest=smallest)


def compiled_choice(shape: Shape) -> KernelChoice:
    """The kernel that this package compiles, which a whole token can have too (``DecoderBlocks``).

    Raises: RuntimeError where it cannot be had, or does not take such groups.
    """
    if reason := NUMBA_INT8.missing():
        raise RuntimeError(reason)
    if shape.group == 0 or shape.group % SMALLEST:
        raise RuntimeError(f"{shape} has not groups of 4-bit codes in multiples of {SMALLEST}")
    return KernelChoice(kernel=NUMBA_INT8.name, bytes=packed_bytes(NUMBA_INT8, shape))


@torch.no_grad()
def optimize_(
    module: nn.Module,
    *,
    phases: Iterable[Phase] = PHASES,
    max_memory: float | None = None,
    int8_activations: bool = True,
) -> tuple[OptimizedLayer, ...]:
    """Replace every ``Int4Linear`` and ``Int8Linear`` inside a module by the fastest kernel that fits, in place.

    Args:
        module: on the CPU, holding quantized layers.
        phases: what it will be used for: ``"decode"`` (at most 16 rows at a time), ``"prefill"`` (more), or both.
        max_memory: bytes that all packed weights may take. A weight takes at most a byte where one kernel is so small;
            if that is too much, each layer has the smallest kernel.
        int8_activations: whether 4-bit layers may round activations to 8 bits, which is what the fastest do.

    Returns: the kernel of each layer.
    Raises: ValueError for a layer that is on another device or that no kernel takes, and if the smallest kernels take
        more than ``max_memory``.
    """
    layers = {name: layer for name, layer in every_module(module) if isinstance(layer, (Int4Linear, Int8Linear))}
    shapes = {name: on_cpu(layer) for name, layer in layers.items()}
    choices = choices_within(shapes, tuple(phases), max_memory=max_memory, int8_activations=int8_activations)
    arena = Arena()
    with large_blocks_returned():
        for name, choice in choices.items():
            layer = layers.pop(name)
            module.set_submodule(name, PackedLinear.of(layer, pack_layer(layer, choice, arena)))
            del layer
            give_back()
    return tuple(OptimizedLayer(name=name, choice=choice) for name, choice in choices.items())


def on_cpu(layer: Int4Linear | Int8Linear) -> Shape:
    """The shape of a layer. Raises: ValueError if it is on another device."""
    weight = layer.packed if isinstance(layer, Int4Linear) else layer.weight
    if weight.device.type != "cpu":
        raise ValueError(f"the layer is on {weight.device}, these kernels run on the CPU: move it there first")
    return shape_of(layer)


def choices_within(
    shapes: Mapping[str, Shape], phases: Iterable[Phase], *, max_memory: float | None, int8_activations: bool
) -> dict[str, KernelChoice]:
    """A kernel for each layer, the smallest ones if others take too much. Raises: ValueError if those do too."""
    needed = 0.0
    for smallest in (False, True):
        choices = {
            name: fastest(shape, phases=phases, int8_activations=int8_activations, smallest=smallest)
            for name, shape in shapes.items()
        }
        needed = sum(choice.bytes for choice in choices.values())
        if max_memory is None or needed <= max_memory:
            return choices
    raise ValueError(
        f"packed weights take {needed:.0f} bytes at least, more than max_memory of {max_memory:.0f}: allow more"
    )
