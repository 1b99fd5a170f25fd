"""The numeric reading: a kernel run on the CPU, in its own dtypes, with faults and races reported.

It proves nothing: it shows that a counterexample goes wrong, and what a kernel does on chosen inputs. It imports
``semantics``; only ``verify`` and tests import it.
"""
