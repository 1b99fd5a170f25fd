"""Terms and solvers: bit-vectors for integers that fit into words, and the verdict of Z3 or cvc5 on one condition.

It promises that "proved" is said only where a solver found no counterexample to a condition as it stands, in other names, or
in an exact translation, and that the same question gets the same answer on every run, unless what was asked before helps to
prove it in few steps. It trusts the solvers. It imports only ``base``; the rooms ``contract``, ``forms``, ``access`` and
those above them may import it.
"""
