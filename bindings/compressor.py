"""``lemmata.compress``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import compressor as reference
from ..reference.contract import Contract, TensorSpec
from ..reference.packed import CU_SEQLENS, packed
from . import flops
from .compressor_step import compress_step as compress_step
from .fp8 import admits_fp8
from .offset import for_each_document, for_each_sequence
from .packed import on_host, runs
from .registry import check, define, plain, short
from .tokens import contiguous
from .vmap import one_by_one

_KERNEL = "lemmata.kernels.compressor"
_TENSORS = "Tensor kv, Tensor gate, Tensor ape, Tensor norm_weight, Tensor rotation"
_GRADS = "(Tensor grad_kv, Tensor grad_gate, Tensor grad_ape, Tensor grad_norm_weight)"


def _packed(contract: Contract) -> Contract:
    """Return the contract on packed documents, whose entries follow one another."""
    flat = packed(replace(contract, outputs=()))
    results = tuple(TensorSpec(spec.name, "T D", spec.dtypes) for spec in contract.outputs)
    return replace(flat, sizes={**flat.sizes, "T": contract.sizes["S"]}, outputs=results)


_PACKED, _PACKED_OVERLAP = _packed(reference.COMPRESS), _packed(reference.OVERLAP)


def _contract(kv: Tensor, norm_weight: Tensor, plain: Contract, overlapping: Contract) -> Contract:
    """Return the contract of rows as wide as these."""
    return overlapping if kv.shape[-1] == 2 * norm_weight.shape[-1] else plain


def _admits(past: int, ratio: int, rows: int, overlap: bool) -> None:
    """Raise ValueError unless there are so many rows before the first block, and these are a block or none."""
    allowed = (0, ratio) if overlap else (0,)
    if past not in allowed:
        raise ValueError(f"compress: past: expected {' or '.join(map(str, allowed))}, got {past}")
    if past and rows < past:
        raise ValueError(f"compress: past: expected at most {rows}, the number of rows, got {past}")


def _checked(contracts: tuple[Contract, Contract], *args: Any, first: int = 0) -> None:
    """Check tensors and static parameters of a call that begins with so many other tensors."""
    *tensors, past, eps = args
    kv, _, ape, norm_weight = tensors[first : first + 4]
    contract = _contract(kv, norm_weight, *contracts)
    contract.check(*tensors, past=past, eps=eps)
    _admits(past, ape.shape[0], kv.shape[-2], contract is contracts[1])


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    args = args[:8]  # rounding to fp8 changes no shape
    _checked((reference.COMPRESS, reference.OVERLAP), *args)
    kv, _, ape, norm_weight, *_, past, _ = args
    T = (kv.shape[1] - past) // ape.shape[0]
    return _two(kv, (kv.shape[0], T, norm_weight.shape[0]))


def _two(like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return memory for entries, and for what they were pooled to."""
    return like.new_empty(shape, dtype=torch.bfloat16), like.new_empty(shape, dtype=torch.bfloat16)


def _fake_bwd(*args: Any) -> tuple[Tensor, ...]:
    _checked((reference.COMPRESS_BWD, reference.OVERLAP_BWD), *args, first=1)
    return tuple(t.new_empty(t.shape) for t in args[1:5])


def _fake_packed(*args: Any) -> tuple[Tensor, Tensor]:
    *tensors, entries, eps = args[:9]
    contract = _contract(tensors[0], tensors[3], _PACKED, _PACKED_OVERLAP)
    contract.check(*tensors, eps=eps)
    return _two(tensors[0], (entries, tensors[3].shape[0]))


def _fake_packed_bwd(*args: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in args[1:5])


def _documents(
    x: list[Tensor], cu_seqlens: Tensor, offset: Tensor, *of_entries: Tensor
) -> Iterator[list[list[Tensor]]]:
    """Yield, of each run of documents of one length, the operator's tensors as a batch, and what is of its entries."""
    kv, gate, ape, norm_weight, rotation = x
    first = 0
    for run in runs("compress", {"cu_seqlens": cu_seqlens}, kv.shape[0], 0):
        length = (run.tokens.stop - run.tokens.start) // run.sequences
        count = length // ape.shape[0]
        end = first + run.sequences * count
        rows = [t[run.tokens].unflatten(0, (run.sequences, length)) for t in (kv, gate)]  # type: ignore[no-untyped-call]
        theirs = [t[first:end].unflatten(0, (run.sequences, count)) for t in of_entries]  # type: ignore[no-untyped-call]
        yield [[*rows, ape, norm_weight, rotation, offset[run.documents]], theirs]
        first = end


def _run_packed(*args: Any) -> tuple[Tensor, ...]:
    """Call the operator on each run of documents; their entries follow one another."""
    *x, cu_seqlens, offset, entries, eps = args[:9]
    results, first = _two(x[0], (entries, x[3].shape[0])), 0
    for given, _ in _documents(x, cu_seqlens, offset):
        parts = [part.flatten(0, 1) for part in _fwd(*given, 0, eps, *args[9:])]
        end = first + parts[0].shape[0]
        for result, part in zip(results, parts, strict=True):
            if end <= entries:
                result[first:end] = part
        first = end
    if first != entries:
        raise ValueError(f"compress: entries: expected {first}, the whole blocks of all documents, got {entries}")
    return results


def _run_packed_bwd(*args: Any) -> tuple[Tensor, ...]:
    """Call the operator of the gradients on each run of documents; what is of no document has the sum over the runs."""
    grad_out, *x, cu_seqlens, offset, pooled, _, eps = args
    results, first = tuple(t.new_zeros(t.shape) for t in x[:4]), 0
    for given, (of_out, of_pooled) in _documents(x, cu_seqlens, offset, grad_out, pooled):
        *of_rows, of_ape, of_weight = _bwd(of_out, *given, of_pooled, 0, eps)
        end = first + of_rows[0].shape[0] * of_rows[0].shape[1]
        for total, part in zip(results, of_rows, strict=False):
            total[first:end] = part.flatten(0, 1)
        results[2].add_(of_ape)
        results[3].add_(of_weight)
        first = end
    return results


_bwd = define(
    "compress_bwd",
    f"(Tensor grad_out, {_TENSORS}, Tensor offset, Tensor pooled, int past, float eps) -> {_GRADS}",
    reference=contiguous(reference.compress_bwd),
    kernel=("lemmata.kernels.compressor_backward", "backward"),
    fake=_fake_bwd,
    vmap=one_by_one,
    flops=flops.pooling_bwd,
)
_fwd = define(
    "compress_fwd",
    f"({_TENSORS}, Tensor offset, int past, float eps, bool simulate_fp8=False) -> (Tensor out, Tensor pooled)",
    reference=contiguous(reference.compress),
    kernel=(_KERNEL, "forward"),
    fake=_fake,
    vmap=one_by_one,
    gradient=_bwd,
    flops=flops.pooling,
)
_call = short(_fwd)
_packed_bwd = define(
    "compress_packed_bwd",
    f"(Tensor grad_out, {_TENSORS}, Tensor cu_seqlens, Tensor offset, Tensor pooled, SymInt entries, float eps)"
    f" -> {_GRADS}",
    reference=_run_packed_bwd,
    kernel=_run_packed_bwd,
    fake=_fake_packed_bwd,
    vmap=one_by_one,
    flops=flops.pooling_bwd,
    shards="none",
)
_packed_fwd = define(
    "compress_packed_fwd",
    f"({_TENSORS}, Tensor cu_seqlens, Tensor offset, SymInt entries, float eps, bool simulate_fp8=False)"
    " -> (Tensor out, Tensor pooled)",
    reference=_run_packed,
    kernel=_run_packed,
    fake=_fake_packed,
    vmap=one_by_one,
    gradient=_packed_bwd,
    flops=flops.pooling,
    shards="none",
)


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its config: those of attention and of the indexer.

    Those of steps are for states that have room for 8 tokens besides the candidates of an entry.
    """
    from ..kernels.compressor import Config, forward_kernels
    from ..kernels.compressor_backward import backward_kernels
    from ..kernels.compressor_step import shipped_steps as steps

    kinds = (model.csa_ratio, model.head_dim), (model.hca_ratio, model.head_dim), (model.csa_ratio, model.index_dim)
    for ratio, width in kinds:
        cfg = Config(ratio, width, ratio == model.csa_ratio, eps=model.norm_eps)
        yield from forward_kernels(cfg)
        yield from backward_kernels(cfg)
        yield from steps(cfg)


def _positions(rotation: Tensor, offset: int, entries: int, ratio: int) -> None:
    """Raise ValueError if the last entry's position has no row in a table that has any."""
    last = offset + (entries - 1) * ratio
    if entries > 0 and 0 < rotation.shape[0] <= last:
        raise ValueError(
            f"compress: rotation: expected a row for position {last} of the last entry, got {rotation.shape[0]} rows"
        )


def compress(
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    norm_weight: Tensor,
    rotation: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    offset: int | Tensor = 0,
    entries: int | None = None,
    past: int = 0,
    overlap: bool | None = None,
    eps: float = 1e-6,
    simulate_fp8: bool = False,
) -> Tensor:
    """Pool each block of ``ratio`` tokens into one entry, normalise and rotate it: the KV compressor of DeepSeek-V4.

    ``gate`` plus ``ape``, by the token's place in its block, are logits of a softmax over the candidates of an entry, channel
    by channel. Without overlap the candidates are the tokens of its block. With overlap, they are the second halves of these
    rows and the first halves of the rows of the block before, and the first block has none before it. The pooled values are
    rounded to bf16, normalised (``norm_weight * x * rsqrt(mean(x ** 2) + eps)``), rounded, rotated and rounded. Tokens after
    the last whole block make no entry, and have no gradient.

    Args:
        kv: ``[B, S, D]`` fp32, or ``[B, S, 2 * D]`` with overlap; D one of 64, 128, 256, 512. Any strides; B, S may be 0.
        gate: as kv.
        ape: ``[ratio, D]`` or ``[ratio, 2 * D]`` fp32; ratio from 1 to 256.
        norm_weight: ``[D]`` fp32.
        rotation: ``[positions, pairs, 2]`` fp32, cosine and sine of the angles of each position from 0 on:
            ``torch.view_as_real(freqs_cis)`` of the released code. The last ``2 * pairs`` channels rotate in pairs of
            neighbours, pairs one of 4, 8, 16, 32. Entry i has the angles of position ``offset + i * ratio``, that of its
            block's first token. An entry whose position has no row does not rotate; of a batch whose offset is an int, that
            raises, unless there are no rows at all.
        cu_seqlens: int32 ``[documents + 1]``, from 0 to N, read by the host: document d has the tokens ``cu_seqlens[d]`` to
            ``cu_seqlens[d + 1] - 1`` of flat tensors ``[N, ...]``, blocks of its own, and ``length // ratio`` entries, which
            follow those of the document before in ``[T, D]``. Offsets are ``[documents]``, and there is no past. Each
            document has the results and gradients that it has alone; those of ape and norm_weight are sums. None: a batch.
        offset: the absolute position of the first block's first token, 0 to 2^30 - 1: an int, or int32 ``[B]``, unchecked.
        entries: with cu_seqlens, the number T of all entries, where torch.compile must know it; None: counted.
        past: how many of the rows are before that: 0, or with overlap ratio, the block before; at an offset below ratio it
            counts for nothing. So a shard of a sequence, given its neighbour's last block, has the entries of the whole.
        overlap: None: whether ratio is 4, as in DeepSeek-V4.
        eps: added to the mean of the squares, 1e-12 to 1.
        simulate_fp8: whether the channels that do not rotate, a multiple of 64, are rounded at last as a cache in fp8 keeps
            them: each 64 to e4m3 times the least power of two by which 448 reaches the largest, or 1e-4. The gradient passes.

    Returns:
        ``[B, (S - past) // ratio, D]`` bf16, contiguous. Differentiable once, with respect to the first four. Bitwise
        deterministic, with its gradients; an entry depends on its candidates only, and not on the batch.
        A logit of -inf weighs nothing, unless all of a channel are. Any other NaN or infinity among an entry's candidates
        spoils that entry, and no entry of which it is no candidate.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not a number.
        ValueError: a shape, a device, a parameter or a bound does not fit.

    Formula: arXiv 2606.19348, section 2.3.1, with the rounding of DeepSeek-V4's released inference code.
    """
    given = kv, gate, ape, norm_weight, rotation
    return _compress(given, (cu_seqlens, entries), offset, plain(past), overlap, (plain(eps), simulate_fp8))


def _compress(
    given: tuple[Tensor, ...],
    documents: tuple[Tensor | None, int | None],
    offset: int | Tensor,
    past: int,
    overlap: bool | None,
    of_norm: tuple[float, bool],
) -> Tensor:
    """Call the op on a batch, or on packed documents, once its contract admits the tensors."""
    (kv, gate, ape, norm_weight, rotation), (cu_seqlens, entries), (eps, simulate_fp8) = given, documents, of_norm
    admits_fp8("compress", simulate_fp8, norm_weight, rotation)
    for name, tensor in (("kv", kv), ("ape", ape)):  # what an offset and a contract are chosen by
        if not isinstance(tensor, Tensor):
            raise TypeError(f"compress: {name}: expected a tensor, got {type(tensor).__name__}")
    ratio = ape.shape[0] if ape.ndim else 0
    overlap = ratio == 4 if overlap is None else overlap
    if cu_seqlens is None:
        starts = for_each_sequence("compress", offset, kv)
        tensors = kv, gate, ape, norm_weight, rotation, starts
        check(reference.OVERLAP if overlap else reference.COMPRESS, *tensors, past=past, eps=eps)
        _admits(past, ratio, kv.shape[1], overlap)
        if not isinstance(offset, Tensor):
            _positions(rotation, plain(offset), (kv.shape[1] - past) // ratio, ratio)
        return _call(*tensors, past, eps, simulate_fp8)[0]  # type: ignore[no-any-return]
    if past:
        raise ValueError(f"compress: past: expected 0 with cu_seqlens, got {past}")
    starts = for_each_document("compress", offset, kv, cu_seqlens)
    x = kv, gate, ape, norm_weight, rotation
    check(_PACKED_OVERLAP if overlap else _PACKED, *x, cu_seqlens, starts, eps=eps)
    bounds = on_host("compress", CU_SEQLENS, cu_seqlens)
    if entries is None:
        entries = int((bounds.diff() // ratio).sum())
    return _packed_fwd(*x, bounds, starts, entries, eps, simulate_fp8)[0]  # type: ignore[no-any-return]
