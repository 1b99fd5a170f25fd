"""Parts of proofs in processes: several at a time, and each no longer than a limit."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

from .engine.base.report import Failure, Layer, Report
from .tasks import Task


@contextmanager
def reports(tasks: Sequence[Task], jobs: int, seconds: float | None) -> Iterator[Iterator[Report]]:
    """Give the reports of tasks in order, while so many run at a time; a task may take so many seconds.

    The layers of a task that takes longer are unknown. All else is kept: it has a process to itself, which is ended.
    """
    pool: Executor
    if seconds is None:
        pool, run = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")), _run
    else:
        pool, run = ThreadPoolExecutor(jobs), functools.partial(_limited, seconds=seconds)
    with pool:
        try:
            yield pool.map(run, tasks)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run(task: Task) -> Report:
    return task.run()


def _limited(task: Task, seconds: float) -> Report:
    """Return the report of a task, or one of layers that are unknown."""
    context = get_context("spawn")
    answer, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, task), daemon=True)
    process.start()
    sender.close()
    try:
        if not answer.poll(seconds):
            return _unknown(task, f"more than {seconds:g} s", seconds)
        found: Report | Exception = answer.recv()
    except EOFError:
        process.join()
        return _unknown(task, f"the process ended with status {process.exitcode}, perhaps for want of memory", 0)
    finally:
        process.kill()
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def _send(sender: Connection, task: Task) -> None:
    try:
        sender.send(task.run())
    except Exception as error:
        sender.send(error)


def _unknown(task: Task, why: str, seconds: float) -> Report:
    failure = Failure("limit", why, verdict="unknown")
    layers = tuple(Layer(name, 1, 0, 0, seconds, (failure,)) for name in task.layers)
    return Report("", "", {}, {}, layers)
