"""``lemmata.csa``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..reference import csa as reference
from .attention import attention, one_by_one, operators, pieces, prepared, widened, zero_gradients
from .registry import define, lazily, say_once


def _held(q: Tensor, indices: Tensor, window: int) -> int:
    """Elements of the largest array of one query: the rows of its keys, or its logits."""
    return (window + indices.shape[2]) * max(q.shape[2:])


def _chunked(
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    indices: Tensor,
    offset: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The reference, in chunks of bounded memory."""
    out, lse = q.new_empty(q.shape), sink.new_empty(q.shape[:3])
    for b, s, rows in pieces(q, window_kv, window, _held(q, indices, window)):
        at = indices[b, s], offset[b] + s.start
        out[b, s], lse[b, s] = reference.csa(q[b, s], window_kv[b, rows], compressed_kv[b], sink, *at, window, scale)
    return out, lse


def _chunked_bwd(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    indices: Tensor,
    offset: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reference, in chunks of bounded memory; gradients that are sums over queries are rounded once."""
    grad_q, of_window, of_entries, grad_sink = zero_gradients(q, window_kv, compressed_kv, sink, like=sink)
    wide_window, wide_entries = window_kv.type_as(sink), compressed_kv.type_as(sink)
    for b, s, rows in pieces(q, window_kv, window, _held(q, indices, window)):
        keys = wide_window[b, rows], wide_entries[b], sink, indices[b, s], offset[b] + s.start
        piece = grad_out[b, s], grad_lse[b, s], q[b, s], *keys, out[b, s], lse[b, s], window, scale
        grad_q[b, s], *more = reference.csa_bwd(*piece)
        for total, part in zip((of_window[b, rows], of_entries[b], grad_sink), more, strict=True):
            total += part
    return grad_q, of_window.type_as(window_kv), of_entries.type_as(compressed_kv), grad_sink


_kernel = widened(lazily("lemmata.kernels.csa", "csa"))


def _on_cuda(
    q: Tensor, window_kv: Tensor, compressed_kv: Tensor, sink: Tensor, indices: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    out, lse = _kernel(q, window_kv, compressed_kv, indices, sink, *others)
    return out, lse


def _on_cuda_bwd(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    say_once("csa: the backward has no kernel yet: the PyTorch reference runs, in chunks of bounded memory")
    return _chunked_bwd(*args)


def _fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *tensors, window, scale = others
    reference.CSA.check(q, *tensors, window=window, scale=scale)
    return q.new_empty(q.shape), tensors[2].new_empty(q.shape[:3])


def _fake_bwd(*inputs: Any) -> tuple[Tensor, ...]:
    *tensors, window, scale = inputs
    reference.CSA_BWD.check(*tensors, window=window, scale=scale)
    return tuple(t.new_empty(t.shape) for t in tensors[2:6])


def _idle(q: Tensor, *_: object) -> bool:
    return not q.numel()


def _idle_bwd(grad_out: Tensor, *_: object) -> bool:
    return not grad_out.numel()


_TENSORS = "Tensor q, Tensor window_kv, Tensor compressed_kv, Tensor sink, Tensor indices, Tensor offset"

_fwd = define(
    "csa_fwd",
    f"({_TENSORS}, int window, float scale) -> (Tensor, Tensor)",
    reference=_chunked,
    kernel=_on_cuda,
    fake=_fake,
    idle=_idle,
)
_bwd = define(
    "csa_bwd",
    f"(Tensor grad_out, Tensor grad_lse, {_TENSORS}, Tensor out, Tensor lse, int window, float scale)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_chunked_bwd,
    kernel=_on_cuda_bwd,
    fake=_fake_bwd,
    idle=_idle_bwd,
)
one_by_one(_fwd)
one_by_one(_bwd)
_CSA = operators("csa", _fwd, _bwd)


def csa(
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    *,
    window: int = 128,
    offset: int | Tensor = 0,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Compressed sparse attention: of each query over a window of tokens and the compressed entries chosen for it.

    All heads share the keys, and a key is its own value. Query t of sequence b stands at position ``offset[b] + t`` and
    attends to the last ``window`` tokens up to and including its own, and to ``compressed_kv[b, i]`` for i in
    ``indices[b, t]``. With ``z = scale * (q · k)`` over these keys, ``lse = log(sum of exp(z))`` and ``out = sum of
    exp(z) * k / (exp(lse) + exp(sink))``. The sums are in fp32.

    Args:
        q: ``[B, S, H, D]`` bf16; H one of 8, 16, 32, 64, 128 and D a multiple of 64 up to 512. Any strides, as of all
            tensors here; B, S, P, T and K may be 0; B up to 65535, T up to 2^20.
        window_kv: ``[B, P + S, D]`` bf16: P past tokens, then the queries' own. Row r is the token at position
            ``offset[b] - P + r``. Tokens without a row, or at a position below 0, are in no window.
        compressed_kv: ``[B, T, D]`` bf16.
        indices: ``[B, S, K]`` int32, K up to 8192, in any order. An index below 0 or from T on is none, and nothing is
            read for it; one that comes twice counts twice. That an entry is in the query's past is the caller's
            business: ``lemmata.indexer_topk`` selects no other.
        sink: ``[H]`` fp32, in the units of z, and so not scaled. It adds mass to the denominator only; -inf: none; +inf:
            out is 0.
        window: 1 to 512. DeepSeek-V4 uses 128.
        offset: the absolute position of the first query, 0 to 2^30 - 1: an int, or an int32 tensor ``[B]``, one for each
            sequence, whose elements are not checked; below 0 where a prompt is padded on the left. So prefill (0),
            chunked prefill and decode (S = 1) are one function.
        scale: 1e-6 to 1e3; None: ``D ** -0.5``.

    Returns:
        ``out`` ``[B, S, H, D]`` bf16 and ``lse`` ``[B, S, H]`` fp32, natural and without the sink, both contiguous. A query
        without a key has out 0 and lse +inf. Differentiable once, through both, with respect to q, window_kv,
        compressed_kv and sink. Bitwise deterministic; a query's results do not depend on what other queries and
        sequences hold, nor on the batch. On a GPU the order of summation depends on the numbers
        of queries, heads and indices.

    What a query does not attend to changes nothing, NaN included. The results of a query that attends to a NaN or an
    infinity, or has one itself, are not specified, but no other's depend on it. On a GPU a key with ``q · k`` below -2^30,
    which only vectors of a length above 2^15 can have, may count as none.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is of the wrong kind.
        ValueError: a shape, a device or a parameter does not fit.

    Formula: arXiv 2606.19348, section 2.3.1; window and sink as in DeepSeek-V4's released inference code.
    """
    at, scale = prepared(reference.CSA, q, (window_kv, compressed_kv, sink, indices), offset, scale, window=window)
    return attention(_CSA, q, window_kv, compressed_kv, sink, indices, at, None, window, scale)
