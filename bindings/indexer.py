"""``lemmata.indexer_scores`` and ``lemmata.indexer_topk``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..models import Model
from ..operators import Kernel
from ..reference import indexer as reference
from ..reference.contract import Contract, name_of
from . import chunks
from .indexer_ops import fp8_fwd, packed_scores, packed_topk, scores_fwd, topk_fwd
from .offset import for_each_sequence
from .packed import PackedCall
from .registry import check, checks_results, plain, short
from .topk import accepted, require
from .topk import shipped as topk_shipped

_scores_call, _fp8_call, _topk_call = short(scores_fwd), short(fp8_fwd), short(topk_fwd)


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its configs: of the scores for decode, prefill and training."""
    from ..kernels import indexer_backward as backward
    from ..kernels.indexer import Config, fp8, indexer_scores, indexer_scores_fp8

    sizes = model.index_heads, model.index_dim, model.csa_ratio
    yield backward.indexer_scores_bwd_q, backward.Config(*sizes)
    yield backward.indexer_scores_bwd_k, backward.choose(4096, 8192, *sizes)
    for chunk in (256, 2048):
        yield indexer_scores, Config(*sizes, chunk=chunk)
        yield indexer_scores_fp8, fp8(*sizes, chunk=chunk)
    yield from topk_shipped(model)


def _prepared(
    op: str,
    contracts: tuple[Contract, Contract],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    offset: int | Tensor,
    **statics: int,
) -> Tensor:
    """Check a call; returns the offset as a tensor."""
    q, k_scale = inputs[0], inputs[3]
    if not torch.compiler.is_compiling():  # there, the fakes check
        _check_kind(op, q, k_scale)
    offset = for_each_sequence(op, offset, q)
    of_bf16, of_fp8 = contracts
    if q.dtype is reference.FP8:
        check(of_fp8, *inputs, offset, **statics)  # type: ignore[arg-type]
    else:
        check(of_bf16, *inputs[:3], offset, **statics)
    return offset


def _of_documents(
    by_dtype: dict[torch.dtype, PackedCall], inputs: tuple[Any, ...], offset: int | Tensor, **statics: int
) -> tuple[PackedCall, list[Tensor]]:
    """Check a call on packed documents, q, k, weights, k_scale and bounds; return what to call, and its tensors."""
    q, k, weights, k_scale, *bounds = inputs
    call = by_dtype[reference.BF16]
    if not torch.compiler.is_compiling():  # there, the fakes check
        _check_kind(call.packed.contract.op, q, k_scale)
    if q.dtype is not reference.FP8:
        return call, call.packed.prepared((q, k, weights, *bounds), offset, **statics)
    call = by_dtype[reference.FP8]
    return call, call.packed.prepared((q, k, weights, k_scale, *bounds), offset, **statics)


def _unscored(queries: int | torch.SymInt, offset: int | Tensor, ratio: int, topk: int) -> int:
    """Return how many of the first queries are known to see at most ``topk``: (offset + t + 1) // ratio <= topk."""
    if isinstance(offset, Tensor):
        return 0
    if isinstance(queries, int) and isinstance(offset, int):
        return max(0, min(queries, ratio * (topk + 1) - 1 - offset))
    known = torch.sym_min(queries, ratio * (topk + 1) - 1 - offset)  # type: ignore[no-untyped-call]
    return torch.sym_max(0, known)  # type: ignore[no-any-return, no-untyped-call]


def _check_kind(op: str, q: Tensor, k_scale: Tensor | None) -> None:
    """Check what decides between the contracts."""
    if not isinstance(q, Tensor):
        raise TypeError(f"{op}: q: expected a tensor, got {type(q).__name__}")
    if q.layout is not torch.strided or q.is_nested:
        raise TypeError(f"{op}: q: expected a strided tensor, got {'nested' if q.is_nested else name_of(q.layout)}")
    if q.dtype not in (reference.BF16, reference.FP8):
        raise TypeError(f"{op}: q: expected bfloat16 or float8_e4m3fn, got {name_of(q.dtype)}")
    if q.dtype is reference.BF16 and k_scale is not None:
        raise TypeError(f"{op}: k_scale: expected None beside bfloat16, got {type(k_scale).__name__}")


def _refuse_gradient(**tensors: Tensor) -> None:
    """Refuse a gradient of fp8 inputs: an answer without one would be taken as a derivative of zero."""
    for name, tensor in tensors.items():
        dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
        if dual or (torch.is_grad_enabled() and tensor.requires_grad):
            raise ValueError(f"indexer_scores: {name}: expected no gradient beside float8_e4m3fn, got one asked for")


def indexer_scores(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    *,
    k_scale: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_entries: Tensor | None = None,
    offset: int | Tensor = 0,
    ratio: int = 4,
) -> Tensor:
    """Return the Lightning Indexer's score of every compressed entry for every query.

    ``scores[b,t,j] = sum over h of weights[b,t,h] * relu(q[b,t,h] · k[b,j])`` for the entries that query t sees, ``j <
    (offset[b] + t + 1) // ratio``, and -inf for all others; times ``k_scale[b,j]`` in fp8.

    Sums over heads are in fp32. On a GPU the tensor cores add up fp8 products with fewer bits: a product q · k is off by
    about 1e-4 of the largest.

    Args:
        q: ``[B, S, H, D]`` bf16 or float8_e4m3fn; H one of 8, 16, 32, 64 and D one of 32, 64, 128. Any strides, as of all
            tensors here; B, S and T may be 0; B up to 65535, T up to 2^20.
        k: ``[B, T, D]``, of the dtype of ``q``. Entry j stands for the tokens from ``ratio * j`` on.
        weights: ``[B, S, H]`` fp32, of any sign; constant factors, and the scale of each fp8 query, belong into them.
        k_scale: ``[B, T]`` fp32, at least 0, the scale of each fp8 key; None with bf16.
        cu_seqlens: int32 ``[documents + 1]``, bounds of packed documents in flat tensors, as for ``csa``; None: a batch.
        cu_entries: int32 ``[documents + 1]``, bounds of their entries, which count from a document's first.
        offset: the absolute position of the first query, 0 to 2^30 - 1: an int, or an int32 tensor ``[B]``, one for each
            sequence, whose elements are not checked. So prefill (0), chunked prefill and decode (S = 1) are one function.
        ratio: tokens in an entry, 1 to 65536. DeepSeek-V4 uses 4.

    Returns:
        ``[B, S, T]`` fp32, contiguous. In bf16 differentiable once with respect to q, k and weights; the derivative of
        relu at 0 is 0. Bitwise deterministic; a query's scores do not depend on the other queries and sequences. Of packed
        documents ``[N, T]``: in the first columns a document's own entries, in all others -inf.

    An entry that a query does not see has score -inf whatever it holds, NaN included. The score of a NaN or an infinity
    in q, k, weights or k_scale is not specified, but no other score depends on it.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not an int.
        ValueError: a shape, a device, a parameter or a bound does not fit, or fp8 inputs are asked for a gradient.

    Formula: arXiv 2606.19348, section 2.3.1, with the visibility of DeepSeek-V4's released inference code; scales as in
    DeepGEMM's fp8_mqa_logits.
    """
    contracts, ratio = (reference.SCORES, reference.SCORES_FP8), plain(ratio)
    if cu_seqlens is not None or cu_entries is not None:
        inputs = q, k, weights, k_scale, cu_seqlens, cu_entries
        call, ready = _of_documents(packed_scores, inputs, offset, ratio=ratio)
        if k_scale is not None:
            _refuse_gradient(q=q, k=k, weights=weights, k_scale=k_scale)
        return call.op(*ready, ratio)  # type: ignore[no-any-return]
    offset = _prepared("indexer_scores", contracts, (q, k, weights, k_scale), offset, ratio=ratio)
    if k_scale is not None:
        _refuse_gradient(q=q, k=k, weights=weights, k_scale=k_scale)
        return _fp8_call(q, k, weights, k_scale, offset, ratio)  # type: ignore[no-any-return]
    return _scores_call(q, k, weights, offset, ratio)  # type: ignore[no-any-return]


def indexer_topk(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    *,
    k_scale: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    cu_entries: Tensor | None = None,
    offset: int | Tensor = 0,
    ratio: int = 4,
    topk: int,
    workspace: int = 256 * 2**20,
) -> Tensor:
    """Return the entries that each query attends to: those of the ``topk`` highest scores among the entries it sees.

    A query that sees at most ``topk`` entries, ``min(T, (offset[b] + t + 1) // ratio) <= topk``, takes them all, whatever
    their scores are, NaN included; where the offset is an int they are not computed. Any other takes ``lemmata.topk`` of
    its row of ``lemmata.indexer_scores``: of equal scores the smaller index, NaN and -inf never. No S x T matrix is held.

    Args:
        q: ``[B, S, H, D]`` bf16 or float8_e4m3fn; H one of 8, 16, 32, 64 and D one of 32, 64, 128. Any strides, as of all
            tensors here; B, S and T may be 0; B up to 65535, T up to 2^20. None needs to be without a gradient: indices
            carry none.
        k: ``[B, T, D]``, of the dtype of ``q``. Entry j stands for the tokens from ``ratio * j`` on.
        weights: ``[B, S, H]`` fp32, of any sign; constant factors, and the scale of each fp8 query, belong into them.
        k_scale: ``[B, T]`` fp32, at least 0, the scale of each fp8 key; None with bf16.
        cu_seqlens: int32 ``[documents + 1]``, bounds of packed documents in flat tensors, as for ``csa``; None: a batch.
        cu_entries: int32 ``[documents + 1]``, bounds of their entries, which count from a document's first.
        offset: the absolute position of the first query, as for ``indexer_scores``.
        ratio: tokens in an entry, 1 to 65536. DeepSeek-V4 uses 4.
        topk: 1 to 2048; may exceed T. DeepSeek-V4 uses 512 and 1024.
        workspace: bytes for the scores held at a time; one query's scores are held even if they take more. It changes
            time and memory, never the result.

    Returns:
        ``[B, S, topk]`` int32, contiguous, indices ascending, then -1 where a query sees, or can select, fewer. Every index
        is in [-1, T), whatever the inputs hold. Bitwise deterministic; independent of other queries and sequences.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is not an int.
        ValueError: a shape, a device, a parameter or a bound does not fit.
        RuntimeError: the environment has LEMMATA_CHECK=1, and the result is not the right one, or cannot be read: while a
            CUDA graph is captured, under torch.vmap, on meta. The check computes the scores again and waits for the
            device; torch.compile leaves it out.

    Formula: as for ``indexer_scores``; the rule of ties is lemmata's own.
    """
    contracts, inputs = (reference.SELECT, reference.SELECT_FP8), (q, k, weights, k_scale)
    topk, ratio, offset, workspace = plain(topk), plain(ratio), plain(offset), plain(workspace)
    if cu_seqlens is not None or cu_entries is not None:
        return _topk_of_documents((*inputs, cu_seqlens, cu_entries), offset, ratio, topk, workspace)
    at = _prepared("indexer_topk", contracts, inputs, offset, ratio=ratio, topk=topk, workspace=workspace)
    checks = checks_results("indexer_topk", q, k)
    indices: Tensor = _topk_call(
        q, k, weights, k_scale, at, ratio, topk, workspace, _unscored(q.shape[1], offset, ratio, topk)
    )
    if checks:
        with torch.no_grad():
            _require_largest(inputs, at, ratio, workspace, indices)
    return indices


def _topk_of_documents(inputs: tuple[Any, ...], offset: int | Tensor, ratio: int, topk: int, workspace: int) -> Tensor:
    """Return the entries that each query of packed documents takes."""
    call, ready = _of_documents(packed_topk, inputs, offset, ratio=ratio, topk=topk, workspace=workspace)
    q = ready[0]
    checks = checks_results("indexer_topk", q)
    indices: Tensor = call.op(*ready, ratio, topk, workspace, _unscored(q.shape[0], offset, ratio, topk))
    if checks:
        spec = call.packed.contract.outputs[0]
        for run, (*given, at) in call.packed.each(ready):
            with torch.no_grad():
                _require_largest((*given, None)[:4], at, ratio, workspace, run.of(spec, indices), run.documents.start)
    return indices


def _require_largest(
    inputs: Sequence[Any], offset: Tensor, ratio: int, workspace: int, indices: Tensor, first: int = 0
) -> None:
    """Compare with the scores, computed again a piece at a time; an error counts the sequences from ``first`` on."""
    q, k, weights, k_scale = inputs
    for b, s in chunks.groups(q, 0, chunks.held(k, indices.shape[-1], workspace)):
        at = offset[b] + s.start
        if k_scale is None:
            scores = scores_fwd(q[b, s], k[b], weights[b, s], at, ratio)
        else:
            scores = fp8_fwd(q[b, s], k[b], weights[b, s], k_scale[b], at, ratio)
        lengths = reference.visible(at, scores.shape[1], ratio).clamp(0, k.shape[1]).int()
        taken_whole = (lengths <= indices.shape[-1]).unsqueeze(-1)
        scores = torch.where(taken_whole, 0.0, scores)  # equal scores: then all are the largest
        require(
            f"indexer_topk of sequence {first + b.start} from query {s.start} on",
            accepted(scores.flatten(0, 1), lengths.flatten(), indices[b, s].flatten(0, 1)),
        )
