"""A second opinion below the compiler's last passes: what is emitted synchronises as the IR that is proved does.

A skeleton of synchronisation is all that orders the threads of a kernel: mbarriers with their counts of arrivals and the
parities of waits, copies and their groups, products and their batches, proxy fences, barriers with their counts,
exchanges within a warp, atomic additions, requests for registers and the early launch, each in its place in the loops
and branches around it.

It promises, where ``difference`` finds none, that the CUDA which is printed in the same run as the IR of the device level
holds the same instructions with the same operands in the same order, in loops with the same bounds and branches on the
same conditions: up to a one-to-one renaming of variables, without casts, up to the few laws of integers in ``folded``, and
but for which way a quotient is rounded.
It promises, where ``strays`` finds nothing, that along every path through the PTX the instructions, with the counts and
mbarriers that they name, follow one another as along some path through the skeleton of the IR, and that none is missing
from all paths. There, conditions, the lengths of loops that are not unrolled, and parities that are computed are left
aside. Neither compares addresses, what is copied, multiplied or exchanged, or what was assigned to the variables that
conditions and parities read. What a reader does not know is refused. It trusts its tables of names.

It proves nothing and is not built on what it checks: it knows neither ``access`` nor ``order``, nor the table of
instructions. It imports ``base`` and ``compiler``; only tests import it.
"""
