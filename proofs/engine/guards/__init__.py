"""Against hollow proofs: hypotheses that contradict one another, and mutants that no layer refutes.

It is not trusted: an error here can hide a hollow proof or miss a mutant, but cannot make a false theorem. It imports
``compiler`` and ``contract``; only ``verify`` imports it.
"""
