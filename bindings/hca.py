"""``lemmata.hca``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import hca as reference
from .gradients import Group, gradients, groups, head_blocks, sums
from .registry import lazily
from .sparse_attention import Attention, widened, widened_backward, with_combine
from .splits import asked, launcher


def _held(x: dict[str, Tensor], window: int) -> int:
    """Elements of the largest array of one query: the rows of its window, or its logits."""
    q, entries = x["q"], x["compressed_kv"].shape[1]
    return max(window * q.shape[3], (window + entries) * q.shape[2])


_parts = lazily("lemmata.kernels.hca", "hca_parts")
_add_visible = lazily("lemmata.kernels.gradient_sums", "add_visible")
_kernel = widened(launcher("hca"))


def backward(x: dict[str, Tensor], statics: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Return the gradients on a GPU; ``swa`` has them from here too."""
    ratio, window, scale = statics

    def parts(here: dict[str, Tensor], stats: tuple[Tensor, Tensor], grad_q: Tensor) -> tuple[Tensor, Tensor]:
        grads, keys = (here["grad_out"], here["grad_lse"]), (here["window_kv"], here["compressed_kv"])
        static = {"ratio": ratio, "window": window, "scale": scale}
        return _parts(grads, here["q"], keys, here["sink"], here["offset"], stats, grad_q, **static)  # type: ignore[no-any-return]

    def add(_: Group, here: dict[str, Tensor], of_entries: Tensor, total: Tensor) -> None:
        _add_visible(of_entries, here["offset"], total, ratio)

    return gradients(x, groups(x["q"], x["offset"], window + x["compressed_kv"].shape[1]), window, parts, add)


_HCA = Attention("hca", reference, reference.HCA, reference.HCA_BWD, reference.HCA_SHARD_BWD, _held)
_CALLS = _HCA.bind(
    "int ratio, int window, float scale",
    _kernel,
    widened_backward(backward),
)


reference_bwd = _HCA.chunked_bwd


def sums_of_parts(heads: int, columns: int, window: int, ratio: int) -> Iterator[Kernel]:
    """Yield the kernels that sum over columns and add up the parts of a backward, each with its config."""
    from ..kernels.gradient_sums import Config, sum_visible

    yield from sums(heads, columns, window)
    yield sum_visible, Config(columns, head_blocks(heads), ratio=ratio)


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its configs: for decode, prefill and backward."""
    from ..kernels.given_splits import hca_config
    from ..kernels.hca import hca_bwd, hca_fwd
    from ..kernels.sparse_attention_config import BackwardConfig

    heads, columns, window, ratio = model.heads, model.head_dim, model.window, model.hca_ratio
    for queries in (1, 4096):
        yield from with_combine(hca_fwd, hca_config(asked(), queries, heads, columns, ratio, window, model.scale))
    yield hca_bwd, BackwardConfig(heads, columns, window, model.scale, ratio)
    yield from sums_of_parts(heads, columns, window, ratio)


def hca(
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    cu_entries: Tensor | None = None,
    offset: int | Tensor = 0,
    ratio: int = 128,
    window: int = 128,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend from each query to a window of tokens and to all entries of its past: heavily compressed attention.

    All heads share the keys, and a key is its own value. Query t of sequence b stands at position ``offset[b] + t`` and
    attends to the last ``window`` tokens up to and including its own, and to ``compressed_kv[b, j]`` for ``j < min(T,
    (offset[b] + t + 1) // ratio)``. With ``z = scale * (q · k)`` over these keys, ``lse = log(sum of exp(z))`` and ``out =
    sum of exp(z) * k / (exp(lse) + exp(sink))``. The sums are in fp32.

    Args:
        q: ``[B, S, H, D]`` bf16; H one of 8, 16, 32, 64, 128 and D a multiple of 64 up to 512. Any strides, as of all
            tensors here; B, S, P and T may be 0; B up to 65535, T up to 2^20.
        window_kv: ``[B, P + S, D]`` bf16: P past tokens, then the queries' own. Row r is the token at position
            ``offset[b] - P + r``. Tokens without a row, or at a position below 0, are in no window.
        compressed_kv: ``[B, T, D]`` bf16. Entry j stands for the tokens from ``ratio * j`` on and is seen from the last of
            them on.
        sink: ``[H]`` fp32, in the units of z, and so not scaled. It adds mass to the denominator only; -inf: none; +inf:
            out is 0.
        cu_seqlens: int32 ``[documents + 1]``, bounds of packed documents in flat tensors, as for ``csa``; None: a batch.
        cu_entries: int32 ``[documents + 1]``, bounds of their entries, which count from a document's first.
        offset: the absolute position of the first query, 0 to 2^30 - 1: an int, or an int32 tensor ``[B]``, one for each
            sequence, whose elements are not checked; below 0 where a prompt is padded on the left. So prefill (0),
            chunked prefill and decode (S = 1) are one function.
        ratio: tokens in an entry, 1 to 65536. DeepSeek-V4 uses 128.
        window: 1 to 512. DeepSeek-V4 uses 128.
        scale: 1e-6 to 1e3; None: ``D ** -0.5``.

    Returns:
        ``out`` ``[B, S, H, D]`` bf16 and ``lse`` ``[B, S, H]`` fp32, natural and without the sink, both contiguous. A query
        without a key has out 0 and lse +inf. Differentiable once, through both, with respect to q, window_kv,
        compressed_kv and sink. Bitwise deterministic; a query's results do not depend on what other queries and
        sequences hold, nor on the batch. On a GPU the order of summation depends on the numbers of queries and heads;
        ``LEMMATA_SPLITS`` in the environment fixes the number of splits; with 1 the order is that of prefill.

    What a query does not attend to changes nothing, NaN included. The results of a query that attends to a NaN or an
    infinity, or has one itself, are not specified, but no other's depend on it. On a GPU a key with ``q · k`` below -2^30,
    which only vectors of a length above 2^15 can have, may count as none.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is of the wrong kind.
        ValueError: a shape, a device, a parameter or a bound does not fit; on a GPU, LEMMATA_SPLITS is no number from 1 to 9.

    Formula: arXiv 2606.19348, section 2.3.2; window, sink and visibility as in DeepSeek-V4's released inference code.
    """
    others, bounds = (window_kv, compressed_kv, sink), (cu_seqlens, cu_entries)
    return _CALLS(q, others, bounds, offset, scale, ratio=ratio, window=window)


def hca_shard_bwd(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    cu_entries: Tensor | None = None,
    offset: int | Tensor = 0,
    lse: Tensor,
    delta: Tensor,
    ratio: int = 128,
    window: int = 128,
    scale: float | None = None,
    kv_dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of hca for a shard of the keys, from the lse and Δ of all, as ``csa_shard_bwd`` does for csa.

    Args:
        grad_out: ``[B, S, H, D]`` bf16, the gradient of ``out``.
        grad_lse: ``[B, S, H]`` fp32, the gradient of ``lse``; None: 0.
        q: as for ``hca``.
        window_kv: as for ``hca``, of this shard.
        compressed_kv: as for ``hca``, of this shard.
        sink: as for ``hca``, that of all keys.
        cu_seqlens: as for ``hca``; with it, all tensors are flat.
        cu_entries: as for ``hca``.
        offset: as for ``hca``.
        lse: ``[B, S, H]`` fp32, of all keys and without the sink.
        delta: ``[B, S, H]`` fp32, the sum over D of ``out * grad_out``, where ``out`` is of all keys.
        ratio: as for ``hca``.
        window: as for ``hca``.
        scale: as for ``hca``.
        kv_dtype: of the gradients of keys; ``torch.float32`` leaves them as they are summed, for further sums.

    Returns:
        The gradients of q, window_kv, compressed_kv and the sink, as of ``csa_shard_bwd``.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is of the wrong kind.
        ValueError: a shape, a device, a parameter or a bound does not fit.
    """
    before, bounds = (grad_out, grad_lse, q, window_kv, compressed_kv, sink), (cu_seqlens, cu_entries)
    totals, statics = (lse, delta), {"ratio": ratio, "window": window}
    return _CALLS.shard_bwd(before, bounds, offset, totals, kv_dtype, scale, **statics)  # type: ignore[return-value]
