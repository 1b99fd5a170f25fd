"""A second opinion below the compiler's last passes: what is emitted synchronises as the IR that is proved does.

A skeleton of synchronisation is all that orders the threads of a kernel: mbarriers with their counts of arrivals and the
parities of waits, copies and their groups, products and their batches, proxy fences, barriers with their counts,
exchanges within a warp, atomic additions, requests for registers and the early launch, each in its place in the loops
and branches around it.

It promises that two skeletons without a difference, of the IR at the device level and of the CUDA printed in the same
run, hold the same instructions with the same operands in the same order, in loops with the same bounds and branches on
the same conditions. The same means: up to a one-to-one renaming of variables, without casts, and up to the few laws of
integers in ``folded``. Addresses, what is copied, multiplied or exchanged, and what was assigned to the variables that
conditions and parities read are not compared. What neither reader knows is refused. It trusts its tables of names, and
that the functions of TileLang's headers do what they are called after.

It proves nothing and is not built on what it checks: it knows neither ``access`` nor ``order``, nor the table of
instructions. It imports ``base`` and ``compiler``; only tests import it.
"""
