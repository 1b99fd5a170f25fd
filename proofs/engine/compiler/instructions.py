"""The table of instructions: what each intrinsic of the compiler's IR does to the order of accesses.

An access happens at its statement, unless an instruction makes it last: a copy (cp.async) runs until its group is awaited
or until an mbarrier that counts it, a product (wgmma) until its batch is finished, a store by TMA until its group is
awaited. What is not in the table either computes a value, or is named in a verdict as not modelled, or is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

Does = Literal[
    "copy", "commit", "await", "describe", "advance", "product", "batch", "finish", "registers", "fence",
    "init", "publish", "arrive", "copied", "wait", "barrier", "grids", "hint", "atomic", "bulk", "close", "drain",
]  # fmt: skip
_DOING: Mapping[Does, tuple[str, ...]] = {
    "copy": ("tl.ptx_cp_async",),  # begins a copy from global to shared memory
    "commit": ("tirx.ptx_commit_group",),  # closes a group of copies
    "await": ("tirx.ptx_wait_group",),  # waits until all but the last few groups of copies have arrived
    "describe": ("tl.initialize_wgmma_descriptor",),  # makes the descriptor of an operand
    "advance": ("tl.increase_descriptor_offset",),  # moves a descriptor on
    "product": ("tl.ptx_wgmma_ss", "tl.ptx_wgmma_rs"),  # begins a product of the tensor cores
    "batch": ("tl.warpgroup_commit_batch",),  # closes a batch of products
    "finish": ("tl.warpgroup_wait", "tl.wait_wgmma"),  # waits until all but the last few batches are over
    "registers": ("tl.warpgroup_arrive",),  # stands between uses of registers by threads and by products
    "bulk": ("tl.tma_store",),  # begins a store by TMA from shared to global memory
    "close": ("tl.tma_store_arrive",),  # closes a group of such stores
    "drain": ("tl.tma_store_wait",),  # waits until all but the last few groups of them have read shared memory
    "fence": ("tl.fence_proxy_async",),  # stands between accesses to shared memory by threads and by products or TMA
    "init": ("tirx.ptx_init_barrier_thread_count",),  # says how many arrivals end a phase of an mbarrier
    "publish": ("tl.ptx_fence_barrier_init",),  # shows mbarriers that are initialised
    "arrive": ("tirx.ptx_arrive_barrier",),  # arrives at an mbarrier
    "copied": ("tl.ptx_cp_async_barrier_noinc",),  # arrives at one when the thread's copies so far have arrived
    "wait": ("tl.mbarrier_wait_parity",),  # waits for a phase of an mbarrier
    "barrier": ("tirx.tvm_storage_sync",),  # waits for all threads of the block, or for some of them
    "grids": ("tl.pdl_sync",),  # waits for the kernels launched before
    # what changes neither values nor order
    "hint": (
        *("tl.pdl_trigger", "tl.set_max_nreg", "tl.warpgroup_fence_operand"),
        *("tl.prefetch_tma_descriptor", "tl.create_tma_descriptor"),
    ),
}
INSTRUCTIONS: Mapping[str, Does] = {name: does for does, names in _DOING.items() for name in names}
"""What each instruction does. Atomic operations, which read and change memory in one step, are found by their names."""

PRODUCT_OF_REGISTERS = "tl.ptx_wgmma_rs"  # its first operand is in registers, not in shared memory
ATOMIC = re.compile(r"tl\.atomic_\w+?(?:x(\d))?(?:_ret)?_elem_op")
"""Atomic operations on an element, or on a few that follow one another."""
MATHEMATICS = re.compile(r"tl\.(fast_rcp|__(exp|exp10|log|log2|log10|tan|cos|sin))|tirx\.isinf")
"""Functions of floats that TVM does not declare pure."""
COUNTS = frozenset({"tirx.clz", "tirx.popcount"})
"""Functions of an integer that give at most the number of its bits."""
COLLECTIVE = re.compile(r"(tl|tirx)\.ptx_(ldmatrix|stmatrix)")
"""Loads and stores of matrices of 8 rows by a warp: synchronous; thread r of the warp gives the address of row r."""
HARMLESS = re.compile(
    r"tirx\.(call_extern|call_pure_extern|ptx_\w+|tvm_warp_\w+|atomic_add|prefetch|print|(cuda\.)?__\w+)"
    r"|tl\.(ptx_\w+|tma_\w+|mbarrier_\w+|wgmma\w*|warpgroup_\w+|wait_wgmma|fence_\w+|pdl_\w+|atomic_\w+"
    r"|warp_reduce_\w+|shfl\w*|sync_warp|named_barrier_\w+|cluster_\w+|tcgen05_\w+|prefetch_\w+|set_max_nreg"
    r"|no_set_max_nreg|annotate_\w+|initialize_\w+|increase_descriptor_offset|device_assert\w*|ballot\w*|any_sync"
    r"|all_sync|match_\w+|activemask|rng_\w+|[ls]t[gs]\d+)"
)
"""Instructions that end no thread and leave no loop, so that a proof may go on after them. Whose effect no condition accounts
for is named; any other instruction with an effect is refused."""

_MBARRIERS = re.compile(
    r"tl\.(tma_\w+|mbarrier_\w+|cluster_\w+|tcgen05_\w+)|tirx\.ptx_\w*(barrier|bulk)\w*|tl\.ptx_\w*barrier\w*"
)


def does(name: str) -> Does | None:
    """Return what an instruction does to the order of accesses; None if nothing that is accounted for."""
    return "atomic" if ATOMIC.fullmatch(name) else INSTRUCTIONS.get(name)


def names(*what: Does) -> frozenset[str]:
    """Return the instructions that do some of these things."""
    return frozenset(name for name, effect in INSTRUCTIONS.items() if effect in what)


def at_mbarriers(name: str) -> bool:
    """Return whether an instruction that is not in the table may arrive at an mbarrier."""
    return name not in INSTRUCTIONS and bool(_MBARRIERS.fullmatch(name))
