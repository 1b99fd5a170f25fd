"""``lemmata.swa``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import swa as reference
from . import hca
from .gradients import sums
from .registry import lazily
from .sparse_attention import Attention, widened, widened_backward

_RATIO = 1  # the kernels are those of hca, which want one also where there are no entries


def _held(x: dict[str, Tensor], window: int) -> int:
    """Elements of the largest array of one query: the rows of its window, or its logits."""
    return window * max(x["q"].shape[2:])


_kernel = widened(lazily("lemmata.kernels.hca", "swa"))


def _launch(
    q: Tensor, window_kv: Tensor, sink: Tensor, offset: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    no_entries = q.new_empty((q.shape[0], 0, q.shape[-1]))
    return _kernel(q, window_kv, no_entries, sink, offset, window, scale)  # type: ignore[no-any-return]


def _backward(x: dict[str, Tensor], statics: tuple[Any, ...]) -> tuple[Tensor, ...]:
    window, scale = statics
    no_entries = x["q"].new_empty((x["q"].shape[0], 0, x["q"].shape[-1]))
    grad_q, grad_window_kv, _, grad_sink = hca.backward(x | {"compressed_kv": no_entries}, (_RATIO, window, scale))
    return grad_q, grad_window_kv, grad_sink


_SWA = Attention("swa", reference, reference.SWA, reference.SWA_BWD, reference.SWA_SHARD_BWD, _held)
_CALLS = _SWA.bind(
    "int window, float scale",
    _launch,
    widened_backward(_backward),
)


reference_bwd = _SWA.chunked_bwd


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its config: decode and prefill have the same."""
    from ..kernels.hca import choose_swa, hca_bwd, hca_fwd
    from ..kernels.sparse_attention_config import BackwardConfig

    heads, columns, window = model.heads, model.head_dim, model.window
    yield hca_fwd, choose_swa(heads, columns, window, model.scale)
    yield hca_bwd, BackwardConfig(heads, columns, window, model.scale, _RATIO)
    yield from sums(heads, columns, window)


def swa(
    q: Tensor,
    window_kv: Tensor,
    sink: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    offset: int | Tensor = 0,
    window: int = 128,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attend to a window of tokens: ``hca`` without compressed entries, as the first layers of DeepSeek-V4 have it.

    Args:
        q: ``[B, S, H, D]`` bf16, as for ``hca``.
        window_kv: ``[B, P + S, D]`` bf16, as for ``hca``.
        sink: ``[H]`` fp32, as for ``hca``.
        cu_seqlens: int32 ``[documents + 1]``, bounds of packed documents in flat tensors, as for ``csa``; None: a batch.
        offset: the absolute position of the first query, as for ``hca``.
        window: 1 to 512. DeepSeek-V4 uses 128.
        scale: 1e-6 to 1e3; None: ``D ** -0.5``.

    Returns:
        ``out`` and ``lse``, as of ``hca``; on a GPU too, a query has the same bits in prefill and in decode.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is of the wrong kind.
        ValueError: a shape, a device, a parameter or a bound does not fit.
    """
    others, bounds = (window_kv, sink), (cu_seqlens,)
    return _CALLS(q, others, bounds, offset, scale, window=window)


def swa_shard_bwd(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    window_kv: Tensor,
    sink: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    offset: int | Tensor = 0,
    lse: Tensor,
    delta: Tensor,
    window: int = 128,
    scale: float | None = None,
    kv_dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of swa for a shard of the keys, from the lse and Δ of all, as ``csa_shard_bwd`` does for csa.

    Args:
        grad_out: ``[B, S, H, D]`` bf16, the gradient of ``out``.
        grad_lse: ``[B, S, H]`` fp32, the gradient of ``lse``; None: 0.
        q: as for ``swa``.
        window_kv: as for ``swa``, of this shard.
        sink: as for ``swa``, that of all keys.
        cu_seqlens: as for ``swa``; with it, all tensors are flat.
        offset: as for ``swa``.
        lse: ``[B, S, H]`` fp32, of all keys and without the sink.
        delta: ``[B, S, H]`` fp32, the sum over D of ``out * grad_out``, where ``out`` is of all keys.
        window: as for ``swa``.
        scale: as for ``swa``.
        kv_dtype: of the gradients of keys; ``torch.float32`` leaves them as they are summed, for further sums.

    Returns:
        The gradients of q, window_kv and the sink, as of ``csa_shard_bwd``.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is of the wrong kind.
        ValueError: a shape, a device, a parameter or a bound does not fit.
    """
    before, bounds = (grad_out, grad_lse, q, window_kv, sink), (cu_seqlens,)
    return _CALLS.shard_bwd(before, bounds, offset, (lse, delta), kv_dtype, scale, window=window)  # type: ignore[return-value]
