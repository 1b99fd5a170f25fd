"""A contract as hypotheses: sizes in their ranges, shapes over them, what the elements of inputs may be.

It promises that the hypotheses say no more than the contract, which is also the argument check of the operator. It
trusts the contract. It imports ``base`` and ``smt``; ``access``, ``order``, ``layers`` and ``guards`` may import it.
"""
