"""GPU records: what was tested and measured on a GPU, and of which kernels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .digest import digest
from .operators import OPERATORS, find, of_function

_PACKAGE = Path(__file__).parent
_ABSENT = "not installed"
_PEERS = "tile-kernels", "sgl-deep-gemm", "sgl-flash-mla", "nvidia-cudnn-frontend", "flashinfer-python"
_FIELDS = ("device", "versions", "kernels", "tests", "figures")


@dataclass(frozen=True)
class Record:
    """One ``bench/results/<gpu>.json``: device, versions, digests of the kernels, verdicts of the tests, figures."""

    path: Path
    device: dict[str, Any]
    versions: dict[str, str]
    kernels: dict[str, str]
    tests: dict[str, str]
    figures: list[Any]

    def stale(self, op: str) -> bool:
        """Return whether the operator's kernel is not the one recorded."""
        return self.kernels.get(op) != kernel_digest(op)

    def earlier(self, figure: Mapping[str, Any]) -> bool:
        """Return whether a figure is of other kernels than the present ones of its operator."""
        return self.measured(figure) != _kernels(figure["op"])

    def behind(self, op: str) -> bool:
        """Return whether a figure of one of the operator's functions is of earlier kernels."""
        return any(self.earlier(figure) for figure in self.figures if figure["op"] in find(op).functions)

    def measured(self, figure: Mapping[str, Any]) -> dict[str, str | None]:
        """Return the digests of the kernels that a figure is of, by operator."""
        found: dict[str, str | None] = figure.get("kernels") or {
            op: self.kernels.get(op) for op in _timed(figure["op"])
        }
        return found


def kernel_digest(op: str) -> str:
    """Return the SHA-256 of the sources of an operator's kernels, with every module of lemmata that they import.

    Of an operator without kernels it is that of its binding, which runs the PyTorch reference.

    Raises:
        ValueError: there is no such operator.
    """
    operator = find(op)
    return digest(operator.kernel_modules or (f"lemmata.bindings.{operator.name}",))


def records() -> list[Record]:
    """Return every record in ``bench/results``, by file name; none where the package was installed without them.

    Raises:
        ValueError: a file there is no record.
    """
    return [read(path) for path in sorted((_PACKAGE / "bench" / "results").glob("*.json"))]


def update(
    *,
    tests: Mapping[str, str] | None = None,
    figures: Sequence[Mapping[str, Any]] = (),
    partly: bool = False,
) -> Path:
    """Add verdicts and figures to the record of this machine's GPU; returns its file.

    Under the same versions of what is installed, verdicts stay of tests that name operators, all with their present kernels,
    and figures with the digests of the kernels that they are of. A verdict replaces that of the same test, and figures those of
    the same ``op``: with ``partly`` only those of the same shape too.

    Raises:
        RuntimeError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("record: expected a CUDA device, got none")
    gpu = torch.cuda.get_device_properties()
    capability = f"{gpu.major}.{gpu.minor}"
    content: dict[str, Any] = {
        "device": {"name": gpu.name, "capability": capability, "memory_bytes": gpu.total_memory},
        "versions": {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
        | {package: installed(package) for package in ("tilelang", *_PEERS)},
        "kernels": {op: kernel_digest(op) for op in OPERATORS},
        "tests": {},
        "figures": [],
    }
    path = _PACKAGE / "bench" / "results" / f"{re.sub('[^a-z0-9]+', '-', gpu.name.lower())}.json"
    if path.exists():
        old = read(path)
        known = {package: v for package, v in old.versions.items() if v != _ABSENT}
        if all(v in (_ABSENT, known.get(package, v)) for package, v in content["versions"].items()):
            content["versions"] |= known  # a package that one of both lacks changed nothing
            content["figures"] = [f | {"kernels": old.measured(f)} for f in old.figures]
            stale = set(filter(old.stale, OPERATORS))  # once: a digest reads every source that a kernel imports
            content["tests"] = {name: v for name, v in old.tests.items() if stale.isdisjoint(_named(name))}
    content["tests"] |= dict(tests or {})

    def place(figure: Mapping[str, Any]) -> tuple[Any, ...]:
        return figure["op"], figure["shape"] if partly else None

    replaced = set(map(place, figures))
    content["figures"] = [f for f in content["figures"] if place(f) not in replaced]
    content["figures"] += [{**f, "kernels": _kernels(f["op"])} for f in figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    scratch.replace(path)
    return path


def _timed(name: str) -> set[str]:
    """Return the operators whose kernels a figure of this name is of: that of the public function, or all if it is of none."""
    operator = of_function(name)
    return {operator.name} if operator else set(OPERATORS)


def _kernels(name: str) -> dict[str, str | None]:
    """Return the digests of the present kernels that a figure of this name is of, by operator."""
    return {op: kernel_digest(op) for op in sorted(_timed(name))}


def _named(test: str) -> set[str]:
    """Return the operators that a test names, or a function of; one that names none may be of any."""
    found = {op.name for op in OPERATORS.values() if any(name in test for name in (op.name, *op.functions))}
    return found or set(OPERATORS)


def installed(package: str) -> str:
    """Return the version of a package, or that there is none; imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT


def read(path: Path) -> Record:
    """Return the record in a file.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Record(path=path, **{name: content[name] for name in _FIELDS})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a GPU record, got {type(error).__name__}: {error}") from error
