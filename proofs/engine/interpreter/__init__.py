"""The numeric reading: a kernel run on the CPU in its own dtypes, with faults and races reported, over a prime field, or with
counts of roundings.

It proves nothing of equality: it shows that a counterexample goes wrong, what a kernel does on chosen inputs, and there whether
it agrees with its reference in an algebra that is not that of the proofs. What is said of the error of floats rests on it. It
imports ``semantics``; only `verify` and tests import it.
"""
