"""Say before a kernel is compiled that it will be, and how to have that done beforehand.

Only TileLang knows whether it has a kernel on disk. Its logger says when it begins to compile one, unless the environment
has TILELANG_PRINT_ON_COMPILATION=0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_log = logging.getLogger("lemmata")
_asked: ContextVar[str | None] = ContextVar("asked", default=None)


class _Listener(logging.Handler):
    """Turn what TileLang says as it begins to compile a kernel that lemmata asked for into a warning of lemmata's."""

    def emit(self, record: logging.LogRecord) -> None:
        kernel = _asked.get()
        if kernel is not None and record.getMessage().startswith("TileLang begins to compile"):
            _log.warning(
                "compiling %s, which takes some seconds; `lemmata warmup` does so beforehand, and LEMMATA_KERNELS names a"
                " folder of kernels that are compiled",
                kernel,
            )


logging.getLogger("tilelang.jit.kernel").addHandler(_Listener())


@contextmanager
def announced(kernel: str) -> Iterator[None]:
    """Say within this block that the kernel of that name is compiled, just before TileLang begins to."""
    before = _asked.set(kernel)
    try:
        yield
    finally:
        _asked.reset(before)
