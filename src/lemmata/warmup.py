"""The kernels that DeepSeek-V4 uses, each with the configs that its launcher may ask for: an operator adds a function."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

Kernel = tuple[Callable[[Any], Any], Hashable]
"""A factory, and one of its configs."""


def _sinkhorn() -> Iterator[Kernel]:
    from .kernels.sinkhorn import Config, sinkhorn_bwd, sinkhorn_fwd

    yield sinkhorn_fwd, Config()
    yield sinkhorn_bwd, Config()


def _indexer() -> Iterator[Kernel]:
    from .kernels.indexer import Config, fp8, indexer_scores, indexer_scores_fp8

    for chunk in (256, 2048):  # decode, prefill
        yield indexer_scores, Config(chunk=chunk)
        yield indexer_scores_fp8, fp8(chunk=chunk)


def _topk() -> Iterator[Kernel]:
    from .kernels.topk import Config, topk, topk_merge

    for k in (512, 1024):  # Flash, Pro
        for threads in (128, 256, 512, 1024):  # by the length of the rows
            yield topk, Config(k=k, threads=threads, whole=True)
        for threads in (128, 256):
            yield topk_merge, Config(k=k, threads=threads, whole=True)


OPERATORS = (_sinkhorn, _indexer, _topk)


def kernels() -> Iterator[Kernel]:
    """Every kernel to build.

    Raises:
        ModuleNotFoundError: TileLang is not installed.
    """
    for operator in OPERATORS:
        yield from operator()
