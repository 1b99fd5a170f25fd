"""One walk over a kernel: every access and where it stands, every integer operation, the integers of a thread.

It promises that every access of the lowered kernel is filed, under guards that hold where it is made, or that the kernel
is refused, or that the instruction is named as not modelled. It trusts the compiler's word for how far a pointer given to
an instruction reaches. It imports ``compiler``, ``contract`` and ``smt``; ``order`` and ``layers`` may import it.
"""
