"""Products with 4-bit weights, compiled for the processor at hand when they are first needed.

A token reads every weight once, so its product should do nothing but read, at the speed of memory. Libraries do not
reach that: their layouts keep scales and zero points away from the codes, and each product of a token costs a call,
threads that wake and threads that wait. Here

- a weight is one stream, read from its first byte to its last: codes of 64 outputs, then their scales and zero points
  (``layout``);
- a product is a tile of a few rows and 64 outputs that stays in registers, written down once as LLVM's instructions
  for vectors of any width (``tile``, ``instructions``);
- a program of many products is one function that all threads run from end to end, with a barrier where one needs what
  others made (``threads``, ``product``);
- what numba and the compiler under it, llvmlite, make of a program is kept on disk as machine code, which the next
  process loads without numba (``program``).

All modules but ``layout`` import llvmlite, and numba if there is something to compile.
"""
