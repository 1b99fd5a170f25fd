"""The argument ``offset``: the absolute position of a sequence's first query."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.indexer import OFFSETS
from .registry import plain


def for_each_sequence(op: str, offset: int | Tensor, q: Tensor) -> Tensor:
    """Return the offset as a tensor, int32 ``[B]``; a tensor is left to the contract, which reads no elements."""
    return offset if isinstance(offset, Tensor) else _whole(op, offset, q, q.shape[:1])


def for_each_document(op: str, offset: int | Tensor, q: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return the same for packed documents, int32 ``[documents]``, which have one bound more."""
    return offset if isinstance(offset, Tensor) else _whole(op, offset, q, (max(cu_seqlens.numel() - 1, 0),))


def _whole(op: str, offset: int, q: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an int as a tensor of this shape."""
    offset = plain(offset)
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(f"{op}: offset: expected an int or an int32 tensor, got {type(offset).__name__}")
    if not 0 <= offset < OFFSETS:
        raise ValueError(f"{op}: offset: expected a value in [0, {OFFSETS - 1}], got {offset}")
    return q.new_full(shape, offset, dtype=torch.int32)
