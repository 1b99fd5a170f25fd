"""Which thread of a warpgroup has which element, in attention's loops over rows of keys, heads and columns.

For a loop without a layout the compiler searches one, beside those of all others, which takes most of its time.
"""

import tilelang.language as T
from tilelang import tvm

from .sparse_attention_config import HEADS, KEYS, PANEL

WARPGROUP = 128  # threads
_PIECE = 8  # bf16 values in 16 bytes, which a thread copies at a time


def copy_layout(columns: int) -> T.Fragment:
    """Return the layout in which the threads copy rows of bf16, each 16 bytes at a time, as many rows as they fill."""
    threads = columns // _PIECE  # of a row
    return T.Fragment(
        (HEADS, columns),
        forward_thread_fn=lambda r, d: r % (WARPGROUP // threads) * threads + d // _PIECE,
        forward_index_fn=lambda r, d: tvm.runtime.convert([r // (WARPGROUP // threads), d % _PIECE]),
    )


def row_layout() -> T.Fragment:
    """Return the layout that gives row j of half a tile to the threads that copy it, 16 bytes of a panel each."""
    threads = PANEL // _PIECE
    rows_at_once = WARPGROUP // threads
    return T.Fragment(
        (KEYS,),
        forward_thread_fn=lambda j, copy: j % rows_at_once * threads + copy,
        forward_index_fn=lambda j: j // rows_at_once,
        replicate=threads,
    )


def head_layout() -> T.Fragment:
    """Return the layout of one value for each head: each of the four threads that have a row of a product has it."""
    return T.Fragment(
        (HEADS,),
        forward_thread_fn=lambda h, copy: h // 16 * 32 + h % 8 * 4 + copy,
        forward_index_fn=lambda h: h % 16 // 8,
        replicate=4,
    )


def row_by_row(columns: int) -> T.Fragment:
    """Return the layout that has a thread go over its part of acc row by row: a condition on rows is a branch for each."""
    return T.Fragment(
        (HEADS, columns),
        forward_thread_fn=lambda h, d: h // 16 * 32 + h % 8 * 4 + d % 8 // 2,
        forward_index_fn=lambda h, d: tvm.runtime.convert([h % 16 // 8, d // 8 * 2 + d % 2]),
    )
