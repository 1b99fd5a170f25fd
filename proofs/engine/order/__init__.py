"""The room of order: one model of what is ordered among the threads of a block.

It promises that in a kernel of which all its conditions are proved no two threads touch the same bytes of shared or
global memory unordered, one of them writing, unless both store one value by one statement; that copies, products and
stores by TMA which run on beside the threads have ended before anything that they would disturb; and that no thread waits
for ever at a barrier or an mbarrier, in any timing and for any trip count. What it cannot tell it refuses, or names as not
modelled; a wait that it cannot decide is a condition that fails.

It trusts the walk over the kernel (room `access`) and the solvers; the rules of what must lie between two accesses in
progress.py, as PTX has them; that mbarriers are initialised by one thread before they are used; that shared memory begins
at a multiple of 1024 bytes; that a warp elects the same lane each time; that loads and stores, and whatever a thread does
before a copy of its own, keep their order within the thread; that loops end; and that nvcc keeps the order of accesses,
fences and barriers. Of instructions that may block and are not modelled (``setmaxnreg``, barriers within C text) it says
nothing.

The way of a question: roles.py cuts the tree of a kernel into a program for each role; runs.py follows an
operation through one program, with its progress (progress.py); phases.py orders programs among one another by
mbarriers, as a graph (graph.py) that holds if what waits.py asks for does; distances.py reads off it in which iterations two
accesses are not ordered; ordered.py asks whether they are, and what must hold if not; questions.py asks it of
all. It imports `access`, `compiler`, `contract` and `smt`; `layers` may import it.
"""
