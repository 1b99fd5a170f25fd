"""What the lanes of a warp tell one another, over tensors along the threads of a block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..semantics.algebra import Binary

WARP = 32
EXCHANGES: dict[Binary, Callable[[Tensor, Tensor], Tensor]] = {
    "shfl": lambda lane, by: by,
    "shfl_up": lambda lane, by: lane - by,
    "shfl_down": lambda lane, by: lane + by,
    "shfl_xor": lambda lane, by: lane ^ by,
}


def whole(here: Tensor) -> bool:
    """Return whether for each warp all its threads are here, or none."""
    if len(here) % WARP:
        return not here[-(len(here) % WARP) :].any() and whole(here[: -(len(here) % WARP)])
    by_warp = here.view(-1, WARP)
    return bool((by_warp == by_warp[:, :1]).all())


def exchange(operator: Binary, value: Tensor, by: Tensor, threads: int) -> Tensor:
    """Return the value of another lane, or of this one if there is none. Five bits of ``by`` count, as in PTX."""
    thread = torch.arange(threads)
    lane = thread % WARP
    other = EXCHANGES[operator](lane, by.to(torch.int64) & (WARP - 1)).expand(threads)
    other = torch.where((other < 0) | (other >= WARP), lane, other)
    return value.expand(threads)[(thread - lane + other).clamp(max=threads - 1)]


def ballot(condition: Tensor, threads: int) -> Tensor:
    """Return for each thread a word whose bit l is the truth value of lane l of its warp."""
    thread = torch.arange(threads)
    words = torch.zeros(-(-threads // WARP), dtype=torch.int64)
    words.index_add_(0, thread // WARP, condition.expand(threads).to(torch.int64) << thread % WARP)
    return words[thread // WARP]
