"""An interrupt ends a command at once, wherever it comes.

Python raises it as an exception in whatever runs. There it can be lost: a solver takes it as a reason to stop
thinking, a callback from C++ turns it into a RuntimeError, a finaliser cannot raise at all.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, resource_tracker
from multiprocessing.util import _run_finalizers  # type: ignore[attr-defined]  # it has no public name

from rich.console import Console


@contextmanager
def ending(line: str) -> Iterator[None]:
    """End the process with status 130 and a line on stderr if an interrupt comes inside.

    A thread waits for the interrupt, which this thread and all threads and children that start inside hold back; the
    children are ended too. Enter this before others start threads, which could take the interrupt. Where interrupts are
    ignored or handled by another, on a thread of its own and on systems without signal masks, this does nothing.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "sigwait"):
        yield
        return
    done = threading.Event()

    def wait() -> None:
        signal.sigwait({signal.SIGINT})
        if not done.is_set():
            _end(line)

    resource_tracker.ensure_running()  # which lets interrupts through when it starts, as the first process would
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield
    finally:
        done.set()
        signal.pthread_kill(waiting.ident or 0, signal.SIGINT)
        waiting.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(line: str) -> None:
    for child in active_children():
        child.terminate()
    _run_finalizers()  # which give semaphores back
    with suppress(OSError):  # who reads may be gone
        Console().show_cursor()  # a progress bar hides it
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
    os._exit(130)
