"""Parts of proofs in processes: several at a time, and each no longer than a limit."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection

from .engine.base.report import Failure, Layer, Report
from .tasks import Share, Task


@contextmanager
def reports(tasks: Sequence[Task], jobs: int, seconds: float | None) -> Iterator[Iterator[Report]]:
    """Give the reports of tasks in order, otherwise as `ended` does."""
    with ended(tasks, jobs, seconds) as each:
        yield (report for _, report in in_order(each))


def in_order(each: Iterable[tuple[int, Report]]) -> Iterator[tuple[int, Report]]:
    """Yield numbered reports in the order of their numbers, each as soon as those before it are there."""
    early: dict[int, Report] = {}
    expected = 0
    for number, report in each:
        early[number] = report
        while expected in early:
            yield expected, early.pop(expected)
            expected += 1


@contextmanager
def ended(tasks: Sequence[Task], jobs: int, seconds: float | None) -> Iterator[Iterator[tuple[int, Report]]]:
    """Give the reports of tasks as they end, each with the number of its task, while so many tasks run at a time.

    A task may take so many seconds. The layers of one that takes longer are unknown, and its mutants untried. All else is
    kept: it has a process to itself, which is ended.
    """
    pool: Executor
    if seconds is None:
        pool, run = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")), _run
    else:
        pool, run = ThreadPoolExecutor(jobs), functools.partial(_limited, seconds=seconds)
    with pool:
        try:
            numbers = {pool.submit(run, task): number for number, task in enumerate(tasks)}
            yield ((numbers[each], each.result()) for each in as_completed(numbers))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run(task: Task) -> Report:
    return task.run()


def _limited(task: Task, seconds: float) -> Report:
    """Return the report of a task, or one of layers that are unknown or mutants that are untried."""
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
    if isinstance(task, Share):
        return task.untried(why)
    failure = Failure("limit", why, verdict="unknown")
    layers = tuple(Layer(name, 1, 0, 0, seconds, (failure,)) for name in task.layers)
    return Report("", "", {}, {}, layers)
