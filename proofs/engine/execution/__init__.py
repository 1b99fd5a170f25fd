"""Symbolic execution of a kernel at the tile level, loops cut by invariants, and what it leaves to the range layer.

It promises that an output element is the form that the kernel computes over the extended reals, for every size and
whatever runs first, given that accesses are in bounds and in order, which ``layers`` and ``order`` show. Of a kernel that
computes on floats with additions alone it can say in which order it adds.

A proof may abbreviate values where they are stored. That an abbreviation stands for the value is an equation like others.

Of a block whose threads exchange words, ``readings`` says what shared memory holds and what is written: the schedule of
exchanges is computed for every thread, and the data stay symbols. It trusts that an exchange, a ballot, an atomic addition
of 1 and a barrier do what the interpreter says, and that what is added to a table is in its bounds.

It imports ``forms``, ``semantics`` and ``reference``; ``layers`` may import it.
"""
