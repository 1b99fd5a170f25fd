"""``lemmata.topk``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import topk as reference
from ..reference.topk_check import topk_check
from .registry import check, checks_results, define, plain, short
from .vmap import merged

_INT = torch.int32


def _fake(scores: Tensor, lengths: Tensor | None, k: int) -> Tensor:
    if lengths is None:
        reference.WHOLE.check(scores, k=k)
    else:
        reference.TOPK.check(scores, lengths, k=k)
    return scores.new_empty((scores.shape[0], k), dtype=_INT)


def _fake_check(scores: Tensor, lengths: Tensor, indices: Tensor) -> Tensor:
    reference.CHECK.check(scores, lengths, indices)
    return scores.new_empty(scores.shape[:1], dtype=_INT)


def _idle(scores: Tensor, *_: object) -> bool:
    return not scores.numel()


_select = define(
    "topk_fwd",
    "(Tensor scores, Tensor? lengths, int k) -> Tensor",
    reference=reference.topk,
    kernel=("lemmata.kernels.topk", "select"),
    fake=_fake,
    idle=_idle,
    vmap=merged,
)
_fwd = short(_select)
accepted = define(
    "topk_check",
    "(Tensor scores, Tensor lengths, Tensor indices) -> Tensor",
    reference=topk_check,
    kernel=("lemmata.kernels.topk_check", "check"),
    fake=_fake_check,
    idle=_idle,
    vmap=merged,
)


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its configs, by the length of the rows."""
    from ..kernels.topk import Config, topk, topk_merge

    for threads in (128, 256, 512, 1024):
        yield topk, Config(k=model.topk, threads=threads, ratio=model.csa_ratio)
    for threads in (128, 256):
        yield topk_merge, Config(k=model.topk, threads=threads, ratio=model.csa_ratio)


def require(op: str, accepted: Tensor) -> None:
    """Raise unless every row was accepted; waits for the device."""
    if not accepted.all():
        row = (accepted == 0).nonzero()[0].tolist()
        raise RuntimeError(f"{op}: result: expected the largest of every row, got others in row {row}")


def topk(scores: Tensor, *, lengths: Tensor | None = None, k: int) -> Tensor:
    """Return the indices of the k largest entries of each row, exact and in a total order.

    Higher scores come first, of equal ones the smaller index; ``-0.0`` equals ``0.0``. Row r has ``min(lengths[r], T)``
    entries. Of these, NaN and -inf are never selected; +inf is a score like any other. So the result is a function of
    the row's entries alone: padding changes nothing, and the largest of the shards' largest are the largest of all.

    Args:
        scores: ``[R, T]`` fp32 or bf16, T up to 2^20; any strides; R and T may be 0. May require a gradient; the indices
            carry none.
        lengths: ``[R]`` int32, how many entries each row has; None: all T. Less than 0 counts as 0, more than T as T.
        k: 1 to 2048; may exceed T.

    Returns:
        ``[R, k]`` int32, contiguous, the selected indices ascending, then -1 as often as fewer than k could be selected.
        Every index is in [-1, T), whatever the scores. Bitwise deterministic; a row does not depend on its neighbours.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or ``k`` is not an int.
        ValueError: a shape, a device or ``k`` does not fit.
        RuntimeError: the environment has LEMMATA_CHECK=1, and the result is not the right one, or cannot be read: while a
            CUDA graph is captured, under torch.vmap, on meta. The check waits for the device; torch.compile leaves it out.

    The rule of ties is lemmata's own: that of ``torch.topk``, which DeepSeek-V4's released code calls, is unspecified.
    """
    k = plain(k)
    if lengths is None:
        check(reference.WHOLE, scores, k=k)
    else:
        check(reference.TOPK, scores, lengths, k=k)
    checks = checks_results("topk", scores)
    indices: Tensor = _fwd(scores, lengths, k)
    if checks:
        given = scores.new_full(scores.shape[:1], scores.shape[-1], dtype=_INT) if lengths is None else lengths
        require("topk", accepted(scores, given, indices))
    return indices
