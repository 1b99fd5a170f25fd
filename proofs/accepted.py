"""What lemmata's own proofs accept as not modelled, by name, in which layers, and why that is enough there."""

from __future__ import annotations

from .engine.base.report import Accepted

ASKED = "it is no instruction: it asks nvcc to keep uses of registers behind a wait, which is trusted"
"""Why a mutant without a ``warpgroup_fence_operand`` is equivalent."""

ACCEPTED = (
    Accepted(
        r"ptx_cp_async|ptx_(commit|wait)_group",
        ("L0",),
        "Asynchronous copies. L0 checks their addresses; when they take effect is L1's question.",
    ),
    Accepted(
        r"\w*wgmma\w*|warpgroup_(arrive|commit_batch|wait)|increase_descriptor_offset",
        ("L0", "L2"),
        "Products of the tensor cores. What they read and when they take effect is L1's question. "
        "L2 takes them as done where they are issued.",
    ),
    Accepted(
        r"\w*barrier\w*|fence_proxy_async",
        ("L0", "L2"),
        "Barriers in shared memory, and fences. What they order is L1's question. "
        "L2 takes from them at most whose turn it is.",
    ),
    Accepted(
        r"AllReduce<.*>::run",
        ("L0", "L1"),
        "Reductions across threads, which are trusted. L2 reads them as the sum or maximum that they are at the tile level.",
    ),
    Accepted(
        r"ptx_stmatrix",
        ("L0", "L1"),
        "Stores of matrices by a warp. Where they store is checked. L2 reads them as the copies of tiles that they are.",
    ),
    Accepted(
        r"exp2_ftz|max_nan|pragma_import_c",
        ("L0", "L1"),
        "C text that a kernel brings along. L2 knows it by its text and says so.",
    ),
    Accepted(
        r"set_max_nreg|min_blocks_per_sm|warpgroup_fence_operand",
        ("L0", "L1", "L2"),
        "Requests to the compiler or the GPU for registers, or for an order of instructions.",
    ),
    Accepted(r"pdl_(trigger|sync)", ("L0", "L1", "L2"), "The early launch of `combine`."),
    Accepted(
        r"atomic_add_elem_op|ballot|shfl\w*",
        ("L0",),
        "Exchanges among threads in top-k's selection. What they return may be anything.",
    ),
    Accepted(
        r"underflow of a denominator",
        ("range",),
        "That exp in it may round to 0 in floats. In csa and hca that takes a score below -2^30, where the maximum starts.",
    ),
    Accepted(r"proxy fence after the barrier", ("L1",), "Such a fence is taken to suffice."),
)
