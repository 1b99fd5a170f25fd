"""Building kernels before they are needed: those that DeepSeek-V4 uses, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from .operators import OPERATORS, Kernel, find

Job = tuple[Any, ...]
"""A function of a module, and its arguments."""


def kernels(ops: Iterable[str] = ()) -> Iterator[Kernel]:
    """Yield every kernel to build, once each: of these operators or public functions, or of all.

    Raises:
        ValueError: there is no such operator.
        ModuleNotFoundError: TileLang is not installed.
    """
    operators = [find(op) for op in ops] or list(OPERATORS.values())
    yield from dict.fromkeys(kernel for operator in operators for kernel in operator.shipped())


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
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
