"""Proof without a GPU: compile every kernel that is shipped, for every architecture, and read the machine code.

``ahead`` compiles, ``cubin`` reads, ``shipped`` lists the kernels, ``findings`` judges. Needs triton; of NVIDIA's tools
only those that come with it. ``benchmarks/bench_sass.py`` runs all of it.
"""
