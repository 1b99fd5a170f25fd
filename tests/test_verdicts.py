"""Every kernel under tests/verdicts has the verdict that its file states, and a file that states another one fails."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lemmata.proofs import verify
from verdicts import STRICT, Verdict

FOLDER = Path(__file__).parent / "verdicts"
FILES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.py"))


def opened(name: str) -> ModuleType:
    return importlib.import_module("verdicts." + name.replace("/", "."))


def difference(file: ModuleType, verdict: Verdict) -> str:
    """Say how the engine's verdict on a file's kernel differs from this one; nothing where it does not."""
    options: dict[str, Any] = {"pass_configs": STRICT, **getattr(file, "OPTIONS", {})}
    reference = getattr(file, "reference", None) if {"L2", "range"} & set(verdict.layers) else None
    report = verify(file.kernel, file.CONTRACT, reference=reference, layers=verdict.layers, **options)
    return verdict.differs(report)


@pytest.mark.parametrize("name", FILES)
def test_verdict(name: str) -> None:
    file = opened(name)
    if found := difference(file, file.VERDICT):
        pytest.fail(f"{file.__doc__}\n{found}", pytrace=False)
