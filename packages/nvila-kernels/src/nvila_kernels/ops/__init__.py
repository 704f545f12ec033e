"""The operations as ``torch.library`` ops, so that autograd, ``torch.compile``, ``export`` and fake tensors
know them.

One file a family: ``w4a16``, ``w8a8``, ``fp8``. Each op has a CPU, a CUDA and a fake implementation under
``nvila_kernels::``; the real ones hand over to the backend in force (``nvila_kernels.backends``). Shapes are
checked one layer up, in ``functional``.
"""

from nvila_kernels.ops import fp8, w4a16, w8a8

__all__ = ["fp8", "w4a16", "w8a8"]
