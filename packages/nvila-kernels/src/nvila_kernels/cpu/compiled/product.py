"""Rows of floats times one packed weight."""

# pyright: basic
from functools import cache

import numpy as np
import torch
from torch import Tensor

from nvila_kernels.cpu.compiled.fields import MANY, weight_records
from nvila_kernels.cpu.compiled.instructions import Instructions, here
from nvila_kernels.cpu.compiled.layout import OUTPUTS, Weight
from nvila_kernels.cpu.compiled.program import Program, load_program
from nvila_kernels.cpu.compiled.threads import thread_team

FEW = 2**23
"""Products of numbers that one thread computes before others would have woken."""


@cache
def product_program(instructions: Instructions) -> Program:
    """The program of one product. Raises: RuntimeError where it cannot be compiled."""

    def compiled():
        from nvila_kernels.cpu.compiled.multiply import product_function  # and with it numba

        return product_function(instructions)

    return load_program("product", compiled, instructions=instructions.name)


class Product:
    """Multiplies rows by a packed weight: ``x @ weight.T``, activations rounded to int8 with a scale for each group.

    Args:
        weight: packed.
        instructions: to use; by default the best of this processor.

    Shapes: contiguous float32 ``[rows, inputs]`` -> float32 ``[rows, outputs]``.
    Raises: RuntimeError on a processor that has none of them, or where numba cannot compile it.
    """

    def __init__(self, weight: Weight, *, instructions: Instructions | None = None) -> None:
        instructions = instructions or here()
        if instructions is None:
            raise RuntimeError("the processor has not AVX2, which these products need: use another kernel")
        self.weight, self.record = weight, weight_records([weight])
        self.program = product_program(instructions)

    def __call__(self, x: Tensor) -> Tensor:
        """Raises: ValueError for rows of another width or number format."""
        weight = self.weight
        if x.dim() != 2 or x.shape[1] != weight.inputs or x.dtype != torch.float32 or not x.is_contiguous():
            raise ValueError(
                f"x is {x.dtype} {list(x.shape)}, the product reads contiguous torch.float32 [rows, {weight.inputs}]: "
                "pass such rows"
            )
        # arrays of numpy: weights push torch out of the processor's cache, and then its tensors take far longer to make
        rows, given = x.shape[0], x.detach().numpy()
        many = rows * weight.outputs * weight.inputs >= FEW
        team = thread_team() if many else thread_team(1)
        out = np.empty((rows, weight.outputs), np.float32)
        codes = np.empty((rows, weight.groups * weight.group), np.int8)
        scales = np.empty((rows, weight.groups, 2), np.float32)
        spare = np.empty((team.threads, min(rows, MANY), OUTPUTS), np.float32)
        arguments = (
            given.ctypes.data, rows, weight.inputs, self.record.ctypes.data, codes.ctypes.data, scales.ctypes.data,
            out.ctypes.data, weight.outputs, spare.ctypes.data,
        )  # fmt: skip
        team.run(self.program, np.array(arguments, np.int64))
        return torch.from_numpy(out)
