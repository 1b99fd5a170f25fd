"""Kernels that are compiled on one machine and used on another: written by ``lemmata warmup --export``, read by name.

A folder of kernels has the layout of TileLang's cache, and a file that says which TileLang and which kernels they are of.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from .digest import digest
from .operators import OPERATORS

ARCHITECTURE = "sm_90a"
"""What exported kernels are compiled for: Hopper, as the kernels use its matrix products and copies."""

VARIABLE = "LEMMATA_KERNELS"
_LABEL = "lemmata.json"


def export(factory: Callable[[Any], Any], config: Hashable, folder: str) -> None:
    """Compile a kernel into a folder. It needs nvcc, and no GPU.

    The process compiles into no other folder afterwards.
    """
    os.environ["TILELANG_CACHE_DIR"] = folder
    import tilelang

    from .kernels.build import PASS_CONFIGS

    target = {"kind": "cuda", "arch": ARCHITECTURE}
    tilelang.compile(factory(config), target=target, execution_backend="tvm_ffi", pass_configs=PASS_CONFIGS)


def label(folder: Path) -> None:
    """Write into a folder of kernels what they are of."""
    (folder / _LABEL).write_text(json.dumps(_origin(), indent=1) + "\n")


@functools.cache
def bring() -> None:
    """Copy the kernels of the folder that LEMMATA_KERNELS names into TileLang's cache, except those that it has; once.

    Raises:
        ValueError: the folder holds no kernels, or those of another TileLang or of another lemmata, which would be
            compiled again at their first call.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return
    folder = Path(named)
    try:
        found = json.loads((folder / _LABEL).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{VARIABLE}: expected a folder that `lemmata warmup --export` wrote, got {error}") from error
    for name, expected in _origin().items():
        if found.get(name) != expected:
            again = "write them again: lemmata warmup --export"
            raise ValueError(f"{VARIABLE}: expected kernels of {name} {expected}, got {found.get(name)}; {again}")
    from tilelang import env

    for kernel in _kernels(folder):
        _copy(kernel, Path(env.TILELANG_CACHE_DIR, kernel.relative_to(folder)))


def _origin() -> dict[str, str]:
    """Return the version of TileLang and the digest of the kernels."""
    import tilelang

    modules = (module for operator in OPERATORS.values() for module in operator.kernel_modules)
    return {"TileLang": tilelang.__version__, "lemmata": digest(modules)}


def _kernels(folder: Path) -> Iterator[Path]:
    """Yield the folders of the kernels, each of which has a manifest."""
    return (manifest.parent for manifest in folder.rglob("manifest.json"))


def _copy(kernel: Path, target: Path) -> None:
    """Copy a folder, unless it is there; whoever looks finds all of it or nothing."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=".lemmata-"))
    try:
        shutil.copytree(kernel, staged / "kernel")
        (staged / "kernel").rename(target)
    except OSError:
        if not target.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(staged)
