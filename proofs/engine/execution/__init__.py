"""Symbolic execution of a kernel at the tile level, loops cut by invariants, and what it leaves to the range layer.

It promises that an output element is the form that the kernel computes over the extended reals, for every size and
whatever runs first, given that accesses are in bounds and in order, which ``layers`` and ``order`` show. Of a kernel that
computes on floats with additions alone it can say in which order it adds. It imports ``forms``, ``semantics`` and
``reference``; ``layers`` may import it.
"""
