"""Building kernels before they are needed: those that a model uses, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .models import DEEPSEEK_V4, Model
from .operators import OPERATORS, Kernel, find
from .shipping import export

Job = tuple[Any, ...]
"""A function of a module, and its arguments."""


def kernels(ops: Iterable[str] = (), models: Iterable[Model] = DEEPSEEK_V4) -> Iterator[Kernel]:
    """Yield every kernel that these models launch, once each: of these operators or public functions, or of all.

    Raises:
        ValueError: there is no such operator.
        ModuleNotFoundError: TileLang is not installed.
    """
    operators = [find(op) for op in ops] or list(OPERATORS.values())
    yield from dict.fromkeys(kernel for operator in operators for kernel in operator.shipped(models))


def jobs(wanted: Iterable[Kernel], folder: Path | None) -> list[Job]:
    """Return the jobs that compile kernels: into a folder, or else for this machine's GPU.

    Raises:
        ValueError: there is no folder, and no GPU either.
    """
    if folder:
        return [(export, *kernel, str(folder.absolute())) for kernel in wanted]
    if not torch.cuda.is_available():
        raise ValueError("expected a CUDA device or --export FOLDER, got neither")
    return [(to_disk, *kernel) for kernel in wanted]


def to_disk(factory: Callable[[Any], Any], config: Hashable) -> None:
    """Compile a kernel, unless TileLang has it on disk."""
    from .kernels.build import compiled

    compiled(factory, config)


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
