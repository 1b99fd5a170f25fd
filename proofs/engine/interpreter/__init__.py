"""The numeric reading: a kernel run on the CPU in its own dtypes, over a prime field, or with counts of roundings.

In its own dtypes it reports faults and races. It proves nothing of equality: it shows that a counterexample goes wrong, what a
kernel does on chosen inputs, and there whether it agrees with its reference in an algebra that is not that of the proofs. What
is said of the error of floats rests on it. Of what only numbers can do, such as exchanges within a warp, it has a meaning of
its own. It imports ``semantics``; `verify`, `second_opinion`, `float_error` and tests import it.
"""
