"""The numeric reading: a kernel run on the CPU, in its own dtypes, with faults and races reported; or over a prime field.

It proves nothing: it shows that a counterexample goes wrong, what a kernel does on chosen inputs, and there whether it agrees
with its reference in an algebra that is not that of the proofs. It imports ``semantics``; only `verify` and tests import it.
"""
