"""Verdicts kept on disk, by a digest of everything that they depend on."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tilelang
from platformdirs import user_cache_path

from .report import Report

_ENGINE = Path(__file__).parent
_PACKAGES = ("tilelang", "z3-solver", "cvc5", "torch")


@cache
def versions() -> dict[str, str]:
    """The versions that a verdict holds for."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


@cache
def _sources() -> str:
    """A digest of the engine, of the operators' proofs, and of the references."""
    files = [*_ENGINE.glob("*.py"), *_ENGINE.parent.glob("*.py"), *_ENGINE.parents[1].glob("reference/*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def key(prim_func: Any, *asked: object) -> str:
    """The digest of a kernel's IR, of what was asked of it, of the engine and of the versions."""
    parts = (tilelang.tvm.ir.save_json(prim_func), repr(asked), _sources(), repr(versions()))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def folder() -> Path:
    """Where verdicts are kept."""
    return user_cache_path("lemmata", appauthor=False) / "proofs"


def load(digest: str) -> Report | None:
    """The verdict kept under a digest; a file that cannot be read counts as none."""
    try:
        return replace(Report.from_json((folder() / f"{digest}.json").read_text(encoding="utf-8")), cached=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(digest: str, report: Report) -> None:
    """Keep a verdict; readers see the whole file or none."""
    folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=folder())
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(report.to_json())
    os.replace(name, folder() / f"{digest}.json")
