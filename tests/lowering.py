"""The compiler's IR of large kernels, kept on disk while the tests run: lowering one of attention takes half a minute."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from tilelang import tvm
from tilelang.backend.target import determine_target
from tilelang.engine.lower import create_backend_context

from lemmata.proofs.engine.compiler.extract import Lowered

LEVELS = "tile", "thread", "device", "host", "final"
SLOW = 1.0  # seconds of lowering, from which on it is worth a file
Lower = Callable[[Any, tuple[tuple[str, object], ...], str], Lowered]


def kept(lower: Lower, folder: Path) -> Lower:
    """Return the same function of a kernel, its pass configs and an architecture, which reads what it did before.

    TileLang is the same throughout a run of the tests, so that a kernel is told by its IR.
    """

    def read_or_lower(kernel: Any, configs: tuple[tuple[str, object], ...], arch: str) -> Lowered:
        asked = "\0".join((tvm.ir.save_json(kernel), repr(configs), arch))
        file = folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
        if file.exists():
            return _read(file.read_text(), configs, arch)
        start = time.perf_counter()
        lowered = lower(kernel, configs, arch)
        if time.perf_counter() - start > SLOW:
            _write(file, tvm.ir.save_json([getattr(lowered, level) for level in LEVELS]))
        return lowered

    return lru_cache(maxsize=8)(read_or_lower)  # as the engine does: the layers ask for the same kernel in turn


def _write(file: Path, text: str) -> None:
    """Write a file at once, since another worker may be reading it."""
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(file)


def _read(text: str, configs: tuple[tuple[str, object], ...], arch: str) -> Lowered:
    target = determine_target({"kind": "cuda", "arch": arch}, return_object=True)
    build = target, create_backend_context(target, None, "auto"), {"opt_level": 3, "config": dict(configs)}
    return Lowered(*tvm.ir.load_json(text), build)
