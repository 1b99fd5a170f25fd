"""Which code each swapped module ran: an operator of lemmata, or the module's own, and why.

A call that no operator computes runs as transformers has it. Its first occurrence is logged, once for each reason in a
model; a strict model raises instead.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

OWN = "own"
"""The path of a call that ran the module's own code."""
_RECORD = "_lemmata_record"


class FallbackError(RuntimeError):
    """A module of a strictly swapped model cannot run on lemmata."""


@dataclass(frozen=True)
class Path:
    """What one swapped module did.

    Attributes:
        last: what its last call ran, `OWN` or the operators; None before the first.
        reason: why the last call did not run on the operator that is for it, or None if it did.
        calls: how often each was taken.
    """

    last: str | None
    reason: str | None
    calls: dict[str, int]


@dataclass
class Shared:
    """What the modules of one model have in common; ``client`` names the integration that swapped them."""

    strict: bool = False
    said: set[tuple[str, str]] = field(default_factory=set)
    client: str = "transformers"


@dataclass
class Record:
    """What a swapped module remembers. It travels with the module when that is copied or pickled."""

    op: str
    name: str
    shared: Shared
    last: str | None = None
    reason: str | None = None
    calls: Counter[str] = field(default_factory=Counter)


def attach(module: nn.Module, op: str, name: str, shared: Shared) -> None:
    """Give a module an empty record."""
    vars(module)[_RECORD] = Record(op, name, shared)


def detach(module: nn.Module) -> None:
    """Take a module's record away."""
    vars(module).pop(_RECORD, None)


def record(module: nn.Module) -> Record | None:
    """Return a module's record, or None if it has none."""
    found: Record | None = vars(module).get(_RECORD)
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def took(module: Any, path: str, reason: str | None = None) -> None:
    """Note what a call of the module runs; torch.compile notes it when it traces the call.

    Raises:
        FallbackError: there is a reason, and the model is strict.
    """
    noted = record(module)
    if noted is None:
        return
    noted.last, noted.reason = path, reason
    noted.calls[path] += 1
    if reason is not None:
        say(noted.shared, noted.op, noted.name, reason, "runs" if path == OWN else f"runs on {path}")


def say(shared: Shared, op: str, name: str, reason: str, what: str = "runs") -> None:
    """Log, once in a model, that a module does not run as it was asked to; raise if the model is strict."""
    if shared.strict:
        raise FallbackError(f"{op}: expected {name} to run on lemmata, got a call that does not: {reason}")
    if (op, reason) not in shared.said:
        shared.said.add((op, reason))
        runs = "runs the module's own code" if what == "runs" else what
        logging.getLogger("lemmata").warning(
            f"{op}: {name} {runs}: {reason} "
            f"(said once; lemmata.integrations.{shared.client}.paths(model) has every module)"
        )


def paths(model: nn.Module) -> dict[str, Path]:
    """Return what each swapped module inside ``model`` ran, by the module's name.

    A call that torch.compile traced counts once for each graph that was made of it.
    """
    found = ((name, record(module)) for name, module in model.named_modules())
    return {name: Path(r.last, r.reason, dict(r.calls)) for name, r in found if r is not None}
