"""``lemmata.csa``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import csa as reference
from .gradients import Group, gradients, head_blocks, listed, sums
from .registry import lazily
from .sparse_attention import Attention, widened, widened_backward, with_combine
from .splits import asked, launcher


def _held(x: dict[str, Tensor], window: int) -> int:
    """Elements of the largest array of one query: the rows of its keys, or its logits."""
    return (window + x["indices"].shape[2]) * max(x["q"].shape[2:])


_parts = lazily("lemmata.kernels.csa", "csa_parts")
_add_listed = lazily("lemmata.kernels.gradient_sums", "add_listed")


def _backward(x: dict[str, Tensor], statics: tuple[Any, ...]) -> tuple[Tensor, ...]:
    window, scale = statics

    def parts(here: dict[str, Tensor], stats: tuple[Tensor, Tensor], grad_q: Tensor) -> tuple[Tensor, Tensor]:
        grads, keys = (here["grad_out"], here["grad_lse"]), (here["window_kv"], here["compressed_kv"])
        others = here["indices"], here["sink"], here["offset"]
        return _parts(grads, here["q"], keys, *others, stats, grad_q, window=window, scale=scale)  # type: ignore[no-any-return]

    def add(g: Group, _: dict[str, Tensor], of_entries: Tensor, total: Tensor) -> None:
        assert g.listing is not None
        _add_listed(of_entries, *g.listing, total)

    every = listed(x["q"], x["offset"], x["indices"], x["compressed_kv"].shape[1], window)
    return gradients(x, every, window, parts, add)


_CSA = Attention("csa", reference, reference.CSA, reference.CSA_BWD, reference.CSA_SHARD_BWD, _held)
_CALLS = _CSA.bind(
    "int window, float scale",
    widened(launcher("csa")),
    widened_backward(_backward),
)


reference_bwd = _CSA.chunked_bwd


def sums_of_parts(heads: int, columns: int, window: int) -> Iterator[Kernel]:
    """Yield the kernels that sum over columns and add up the parts of a backward, each with its config."""
    from ..kernels.gradient_sums import Config, sum_listed

    yield from sums(heads, columns, window)
    yield sum_listed, Config(columns, head_blocks(heads))


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its configs: for decode, prefill and backward."""
    from ..kernels.csa import csa_bwd, csa_fwd
    from ..kernels.given_splits import csa_config
    from ..kernels.sparse_attention_config import BackwardConfig

    heads, columns, window = model.heads, model.head_dim, model.window
    for queries in (1, 4096):
        cfg = csa_config(asked(), queries, heads, columns, model.topk, window, model.scale)
        yield from with_combine(csa_fwd, cfg)
    yield csa_bwd, BackwardConfig(heads, columns, window, model.scale)
    yield from sums_of_parts(heads, columns, window)


def csa(
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    cu_entries: Tensor | None = None,
    offset: int | Tensor = 0,
    window: int = 128,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from each query to a window of tokens and to the entries chosen for it: compressed sparse attention.

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
        cu_seqlens: int32 ``[documents + 1]``, from 0 to N, read by the host: document d has the tokens ``cu_seqlens[d]`` to
            ``cu_seqlens[d + 1] - 1`` of flat tensors, where N stands for B and S, P is 0 and offsets are ``[documents]``.
            Each document has the results and gradients that it has alone; the sink's is their sum. None: a batch.
        cu_entries: the same of the T entries; indices count from a document's first.
        offset: the absolute position of the first query, 0 to 2^30 - 1: an int, or an int32 tensor ``[B]``, one for each
            sequence, whose elements are not checked; below 0 where a prompt is padded on the left. So prefill (0),
            chunked prefill and decode (S = 1) are one function.
        window: 1 to 512. DeepSeek-V4 uses 128.
        scale: 1e-6 to 1e3; None: ``D ** -0.5``.

    Returns:
        ``out`` ``[B, S, H, D]`` bf16 and ``lse`` ``[B, S, H]`` fp32, natural and without the sink, both contiguous. A query
        without a key has out 0 and lse +inf. Differentiable once, through both, with respect to q, window_kv,
        compressed_kv and sink. Bitwise deterministic; a query's results do not depend on what other queries and
        sequences hold, nor on the batch. On a GPU the order of summation depends on the numbers of queries, heads and indices;
        ``LEMMATA_SPLITS`` in the environment fixes the number of splits; with 1 the order is that of prefill.

    What a query does not attend to changes nothing, NaN included. The results of a query that attends to a NaN or an
    infinity, or has one itself, are not specified, but no other's depend on it. On a GPU a key with ``q · k`` below -2^30,
    which only vectors of a length above 2^15 can have, may count as none.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is of the wrong kind.
        ValueError: a shape, a device, a parameter or a bound does not fit; on a GPU, LEMMATA_SPLITS is no number from 1 to 9.

    Formula: arXiv 2606.19348, section 2.3.1; window and sink as in DeepSeek-V4's released inference code.
    """
    others, bounds = (window_kv, compressed_kv, indices, sink), (cu_seqlens, cu_entries)
    return _CALLS(q, others, bounds, offset, scale, window=window)


def csa_shard_bwd(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    cu_entries: Tensor | None = None,
    offset: int | Tensor = 0,
    lse: Tensor,
    delta: Tensor,
    window: int = 128,
    scale: float | None = None,
    kv_dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of csa for a shard of the keys, from the lse and Δ of all: the others are elsewhere.

    Where the keys of queries are shared out, as in context parallelism, ``csa`` of each shard with a sink of -inf gives out_s
    and lse_s. Those of all keys are ``lse = logsumexp of lse_s`` and ``out = sigmoid(lse - sink) * sum of exp(lse_s - lse) *
    out_s``, where an lse_s of +inf weighs nothing. This is the backward of one shard. One without the window has queries
    below position 0: a tensor of offsets of -S.

    Args:
        grad_out: ``[B, S, H, D]`` bf16, the gradient of ``out``.
        grad_lse: ``[B, S, H]`` fp32, the gradient of ``lse``; None: 0.
        q: as for ``csa``.
        window_kv: as for ``csa``, of this shard.
        compressed_kv: as for ``csa``, of this shard.
        indices: as for ``csa``, into this shard.
        sink: as for ``csa``, that of all keys.
        cu_seqlens: as for ``csa``; with it, all tensors are flat.
        cu_entries: as for ``csa``.
        offset: as for ``csa``.
        lse: ``[B, S, H]`` fp32, of all keys and without the sink.
        delta: ``[B, S, H]`` fp32, the sum over D of ``out * grad_out``, where ``out`` is of all keys.
        window: as for ``csa``.
        scale: as for ``csa``.
        kv_dtype: of the gradients of keys; ``torch.float32`` leaves them as they are summed, for further sums.

    Returns:
        The gradients of q, window_kv, compressed_kv and the sink. That of q is what this shard adds to it, in bf16. That of
        the sink is what these queries add to it, the same for each shard of their keys. If this shard has all keys, these
        are the gradients of ``csa``. Not differentiable. Bitwise deterministic; independent of the batch.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is of the wrong kind.
        ValueError: a shape, a device, a parameter or a bound does not fit.

    Formula: that of the gradients of ``csa``, of which each term needs one key and the lse and Δ of all.
    """
    before, bounds = (grad_out, grad_lse, q, window_kv, compressed_kv, indices, sink), (cu_seqlens, cu_entries)
    return _CALLS.shard_bwd(before, bounds, offset, (lse, delta), kv_dtype, scale, window=window)  # type: ignore[return-value]
