"""What is installed here, which backend each operator has, and whether the GPU records are of these kernels."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass

import torch
from platformdirs import user_cache_path

import lemmata

from .operators import OPERATORS
from .record import Record, installed, records
from .terminal import console, facts

BACKENDS = {"cpu": "reference", "cuda": "tilelang"}
"""What an operator runs on tensors of each kind of device."""

_PACKAGES = ("torch", "tilelang", "z3-solver", "cvc5", "transformers")
_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Info:
    """The answer of ``lemmata info``."""

    versions: dict[str, str]
    gpu: str
    cache: str
    backends: dict[str, dict[str, str]]
    records: dict[str, dict[str, str]]


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}"


def cuda_backend() -> str:
    """Return the backend of CUDA tensors here, or why there is none."""
    if not torch.cuda.is_available():
        return "none: torch finds no CUDA device"
    if torch.cuda.get_device_capability() != _CAPABILITY:
        return f"none: expected compute capability {_CAPABILITY}, got {torch.cuda.get_device_capability()}"
    if installed("tilelang") == "not installed":
        return "none: tilelang is not installed: pip install 'lemmata[cuda]'"
    return BACKENDS["cuda"]


def _on_cuda(op: str) -> str:
    """Return the backend of an operator's CUDA tensors here; one without kernels asks for no more than such a tensor."""
    return cuda_backend() if OPERATORS[op].kernels or not torch.cuda.is_available() else BACKENDS["cpu"]


def _state(record: Record, op: str) -> str:
    if op not in record.kernels:
        return "not recorded"
    if record.stale(op):
        return "kernel changed since"
    return "tests of the present kernel, figures of an earlier one" if record.behind(op) else "of the present kernel"


def gather() -> Info:
    """Gather the answer; imports nothing heavier than torch."""
    return Info(
        versions={
            "lemmata": lemmata.__version__,
            "python": platform.python_version(),
            **{package: installed(package) for package in _PACKAGES},
            "cuda": torch.version.cuda or "not in this torch",
        },
        gpu=_gpu(),
        cache=str(user_cache_path("lemmata", appauthor=False)),
        backends={op: {"cpu": BACKENDS["cpu"], "cuda": _on_cuda(op)} for op in OPERATORS},
        records={record.path.stem: {op: _state(record, op) for op in OPERATORS} for record in records()},
    )


def print_info(found: Info, *, as_json: bool = False) -> None:
    """Print the answer, as a table or as one JSON object."""
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    table = facts()
    for name, value in found.versions.items():
        table.add_row(name, value)
    table.add_row("gpu", found.gpu)
    table.add_row("cache", found.cache)
    for op, backends in found.backends.items():
        table.add_row(op, "; ".join(f"{device}: {backend}" for device, backend in backends.items()))
    for name, ops in found.records.items():
        table.add_row(f"record {name}", "; ".join(f"{op}: {state}" for op, state in ops.items()))
    if not found.records:
        table.add_row("record", "none here")
    console(200).print(table)
