"""Verdicts kept on disk, by a digest of everything that they depend on."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tilelang
from platformdirs import user_cache_path

from .base.report import Report

_LEMMATA = Path(__file__).parents[2]
_SOURCES = ("proofs", "kernels", "reference")
_PACKAGES = ("tilelang", "z3-solver", "cvc5", "torch")


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that a verdict depends on."""
    return {package: version(package) for package in _PACKAGES}


def digest(package: Path, folders: Iterable[str]) -> str:
    """Return the SHA-256 of every Python file in some folders of a package, at any depth, with its path."""
    sha = hashlib.sha256()
    for folder in folders:
        for file in sorted((package / folder).rglob("*.py")):
            sha.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return sha.hexdigest()


# the digest of all that a proof is made of: engine, operators' proofs, kernels and references
_sources = cache(partial(digest, _LEMMATA, _SOURCES))


def key(prim_func: Any, *asked: object) -> str:
    """Return the digest of a kernel's IR, of what was asked of it, of all sources and of the versions."""
    parts = (tilelang.tvm.ir.save_json(prim_func), repr(asked), _sources(), repr(versions()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def folder() -> Path:
    """Return the folder in which verdicts are kept."""
    return user_cache_path("lemmata", appauthor=False) / "proofs"


def load(digest: str) -> Report | None:
    """Return the verdict kept under a digest, or None; a file that cannot be read counts as none."""
    try:
        return replace(Report.from_json((folder() / f"{digest}.json").read_text(encoding="utf-8")), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(digest: str, report: Report) -> None:
    """Write a verdict under a digest. It is moved into place, so that a reader sees the whole file or none.

    Raises:
        OSError: the folder cannot be written to.
    """
    try:
        folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=folder())
    except OSError as error:
        raise OSError(f"cache: expected to keep verdicts in {folder()}, got {error}; --fresh keeps none") from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(report.to_json())
    os.replace(name, folder() / f"{digest}.json")
