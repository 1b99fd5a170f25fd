"""``lemmata.compress_step``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..reference import compressor_step as reference
from ..reference.contract import Contract
from . import flops
from .fp8 import admits_fp8
from .offset import for_each_sequence
from .registry import check, define, plain

_SCHEMA = (
    "(Tensor kv, Tensor gate, Tensor ape, Tensor norm_weight, Tensor rotation, Tensor(a!) state, Tensor(b!) cache,"
    " Tensor table, Tensor slots, Tensor offset, float eps, bool simulate_fp8=False) -> ()"
)


def _contract(overlap: bool) -> Contract:
    return reference.STEP_OVERLAP if overlap else reference.STEP


def _in_place(state: Tensor, cache: Tensor) -> None:
    """Raise ValueError unless what is written into can be: kernels take it as one piece of memory."""
    for name, tensor in (("state", state), ("cache", cache)):
        if not tensor.is_contiguous():
            raise ValueError(
                f"compress_step: {name}: expected a contiguous tensor, got strides {list(tensor.stride())}"
            )


def _fake(*args: Any) -> None:
    *tensors, eps = args[:11]  # rounding to fp8 changes no shape
    _contract(tensors[0].shape[-1] > tensors[3].shape[-1]).check(*tensors, eps=eps)
    _in_place(*tensors[5:7])


def _on_cpu(*args: Any) -> None:
    """Run the reference on contiguous tensors, so that strides change no bit; what is written into is contiguous."""
    run: Callable[..., None] = reference.compress_step
    run(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))


_step = define(
    "compress_step_fwd",
    _SCHEMA,
    reference=_on_cpu,
    kernel=("lemmata.kernels.compressor_step", "step"),
    fake=_fake,
    flops=flops.pooling,
    shards="none",
)


def compress_step(
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    norm_weight: Tensor,
    rotation: Tensor,
    state: Tensor,
    cache: Tensor,
    table: Tensor,
    *,
    slots: Tensor | None = None,
    offset: int | Tensor,
    overlap: bool | None = None,
    eps: float = 1e-6,
    simulate_fp8: bool = False,
) -> None:
    """Take further tokens of sequences, write the entries that they finish into a cache, and keep their rows in states.

    A decode step, drafts of several tokens, a chunk of a prompt and a whole prompt are all this call. The entries are those of
    ``lemmata.compress`` on all tokens of a sequence, bit for bit, in whatever parts they come.

    Args:
        kv: ``[B, S, D]`` fp32, or ``[B, S, 2 * D]`` with overlap: rows of values of the next S tokens of each sequence.
        gate: as kv: their logits.
        ape: ``[ratio, D]`` or ``[ratio, 2 * D]`` fp32, as of ``compress``; so are norm_weight and rotation.
        norm_weight: ``[D]`` fp32.
        rotation: ``[positions, pairs, 2]`` fp32. Entry i has the angles of position ``i * ratio``; where that has no row, it
            does not rotate.
        state: ``[states, capacity, 2, D]`` or ``[states, capacity, 2, 2 * D]`` fp32, contiguous, written into: of each sequence
            the last rows, values and then logits without ape; that of token t is in place ``t % capacity``. capacity is
            from ``ratio``, or with overlap ``2 * ratio``, to 4096. What it holds at first counts for nothing.
        cache: ``[pages, page, D]`` bf16, contiguous, written into: entry i of sequence b goes into row ``i % page`` of page
            ``table[b, i // page]``. Nothing else is written. A cache ``[B, T, D]`` is B pages of T rows.
        table: int32 ``[B, columns]``. No entry is written whose column there is not, or whose page is below 0 or from
            ``pages`` on.
        slots: int32 ``[B]``: each sequence's state; one below 0 or from ``states`` on does nothing. None: sequence b has b.
        offset: the position of the first of these tokens, from 0 on: an int, or an int32 tensor ``[B]``, one for each
            sequence. A sequence whose offset is below 0 does nothing. Elements are not checked; they are less than 2^30.
        overlap: None: whether ratio is 4, as in DeepSeek-V4.
        eps: added to the mean of the squares, 1e-12 to 1.
        simulate_fp8: whether the channels that do not rotate are rounded as a cache in fp8 keeps them, as of ``compress``.

    Of those tokens that a state has seen, the last ``capacity - ratio + 1`` may be taken back, with overlap the last
    ``capacity - 2 * ratio + 1``, counted from the furthest one: a call with a smaller offset goes on from there, and writes
    again what entries its tokens finish. At position 0 a sequence begins anew; no row of an earlier one is read.

    No two sequences of a call may have one slot, nor two elements of the table one page; those that are none may repeat. Where
    two do, entries and rows of theirs are undefined, and no others. No element is read by the host: a CUDA graph
    replays at all positions. A call of at most ``capacity - ratio + 1`` tokens, or ``capacity - 2 * ratio + 1``, launches one
    kernel for up to 16 candidates of an entry and two for more; a longer call one more. ``compress`` has a gradient, this none.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not a number.
        ValueError: a shape, a device, a parameter or a bound does not fit, or state or cache is not contiguous.
        RuntimeError: a gradient is asked for.

    Formula: arXiv 2606.19348, section 2.3.1, with the rounding of DeepSeek-V4's released inference code.
    """
    given = kv, gate, ape, norm_weight, rotation, state, cache, table
    _stepped(given, slots, offset, overlap, (plain(eps), simulate_fp8))


def _stepped(
    given: tuple[Tensor, ...],
    slots: Tensor | None,
    offset: int | Tensor,
    overlap: bool | None,
    of_norm: tuple[float, bool],
) -> None:
    """Call the op once its contract admits the tensors."""
    (kv, _, ape, norm_weight, rotation, state, cache, _), (eps, simulate_fp8) = given, of_norm
    for name, tensor in (("kv", kv), ("ape", ape)):  # what an offset and a contract are chosen by
        if not isinstance(tensor, Tensor):
            raise TypeError(f"compress_step: {name}: expected a tensor, got {type(tensor).__name__}")
    overlap = (ape.ndim > 0 and ape.shape[0] == 4) if overlap is None else overlap
    starts = for_each_sequence("compress_step", offset, kv)
    if slots is None:
        slots = torch.arange(kv.shape[0] if kv.ndim else 0, dtype=torch.int32, device=kv.device)
    admits_fp8("compress_step", simulate_fp8, norm_weight, rotation)
    check(_contract(overlap), *given, slots, starts, eps=eps)
    if not torch.compiler.is_compiling():
        _in_place(state, cache)
    _step(*given, slots, starts, eps, simulate_fp8)
