"""The kernels that DeepSeek-V4 uses, each with the configs that its launcher may ask for: an operator adds a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

Kernel = tuple[Callable[[Any], Any], Hashable]
"""A factory, and one of its configs."""

Job = tuple[Any, ...]
"""A function of a module, and its arguments."""


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


def _attention() -> Iterator[Kernel]:
    from .kernels import csa, hca
    from .kernels.combine import combine
    from .kernels.sparse_attention_config import Config

    D, window, scale = 512, 128, 512**-0.5
    for H, K in ((64, 512), (128, 1024)):  # Flash, Pro
        for S in (1, 4096):  # decode, prefill
            yield csa.csa_fwd, csa.choose(S, H, D, K, window, scale)
            for ratio in (1, 128):  # layers without entries, and with
                yield hca.hca_fwd, hca.choose(S, H, D, ratio, window, scale)
        for splits in {csa.choose(1, H, D, K, window, scale).splits, hca.choose(1, H, D, 1, window, scale).splits}:
            yield combine, Config(H, D, splits=splits)


OPERATORS = (_sinkhorn, _indexer, _topk, _attention)


def kernels() -> Iterator[Kernel]:
    """Every kernel to build.

    Raises:
        ModuleNotFoundError: TileLang is not installed.
    """
    for operator in OPERATORS:
        yield from operator()


def to_disk(factory: Callable[[Any], Any], config: Hashable) -> None:
    """Compile a kernel, unless TileLang has it on disk."""
    from .kernels.build import build

    build(factory, config)


def side_by_side(jobs: Iterable[Job], processes: int) -> Iterator[Job]:
    """Do the jobs in so many processes, as TileLang compiles one kernel at a time; yields each when it is done.

    The processes are new ones: one that has a GPU in use cannot be forked.
    """
    jobs = list(jobs)
    with ProcessPoolExecutor(max(1, min(processes, len(jobs))), get_context("spawn")) as pool:
        pending = {pool.submit(job[0], *job[1:]): job for job in jobs}
        for done in as_completed(pending):
            done.result()
            yield pending[done]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
