"""PyTorch references, run unmodified on symbolic tensors; those that iterate, as states of a recurrence.

It promises that an element of a result is the form that torch's documentation says it is, over the reals, or that the
reference is refused. It trusts its formulas for torch's functions. It imports ``forms``; ``execution`` and ``layers`` may
import it.
"""

from . import torch_functions  # noqa: F401  so that references can call them
