"""``double`` of 2^24 numbers."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.warmup import Job, to_disk

N = 2**24


def compilations() -> Iterator[Job]:
    """What to compile beforehand."""
    from lemmata.kernels.double import Config, double_fwd

    yield to_disk, double_fwd, Config()


def _ours() -> Call:
    return functools.partial(torch.ops.lemmata.double_fwd.default, torch.randn(N, device="cuda"))


def cases() -> Iterator[Case]:
    """One case, bound by memory."""
    least, why = bound(bytes=8 * N)
    yield Case("double", f"{N} numbers", 8 * N, least, why, None, {"lemmata": _ours})
