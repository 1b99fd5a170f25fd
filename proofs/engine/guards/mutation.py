"""The fate of every mutant: which layer refutes it, and why."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..base.report import Failure, Layer, Mutation
from .mutate import Mutant, mutants


@dataclass(frozen=True)
class Trial:
    """One layer, to be run on a mutant."""

    layer: str
    run: Callable[[], Layer]


Tried = Callable[[Any], Iterator[Trial]]
Same = Callable[[Any], bool]
SAME = "the compiler emits the same code"


def mutation_fates(
    kernel: Any,
    tried: Tried,
    chosen: slice,
    equivalents: Mapping[str, str],
    same: Same = lambda _: False,
    workers: int | None = None,
) -> tuple[Mutation, ...]:
    """Return the fates of some mutants of a kernel.

    Args:
        kernel: the PrimFunc, as its factory returns it.
        tried: the layers to run on a mutant, in order.
        chosen: which of them.
        equivalents: reasons, by the mutants' names without the line.
        same: whether the compiler makes the same of a mutant as of the kernel, which is a reason too.
        workers: processes; all the machine's cores by default. The fates do not depend on it.

    Returns:
        The fates, in the order of the source. A mutant that satisfies every layer is equivalent: it computes the
        reference from any input that the contract admits, as the kernel does. It needs a reason all the same.
    """
    found = _mutants(kernel)[chosen]
    workers = min(workers or os.cpu_count() or 1, len(found))
    if not workers or multiprocessing.current_process().daemon:  # which may have no processes, and ends soon
        return tuple(_fate(mutant, tried(mutant.prim_func), equivalents, same) for mutant in found)
    global _shared
    _shared = found, tried, equivalents, same  # IR and closures cannot be pickled; a forked process has them
    # a process for each mutant: what the engine remembers of one would fill the memory
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        return tuple(pool.imap(_shared_fate, range(len(found))))


_mutants = lru_cache(maxsize=1)(mutants)  # the shares of a kernel's mutants are mostly tried in turn


def untried(kernel: Any, every: int) -> tuple[Mutation, ...]:
    """Return every ``every``-th mutant of a kernel in the order of the source, as one that was not tried."""
    return tuple(Mutation(m.name, m.operator, "untried", "", "not reached") for m in _mutants(kernel)[::every])


_shared: tuple[list[Mutant], Tried, Mapping[str, str], Same]


def _shared_fate(number: int) -> Mutation:
    chosen, tried, equivalents, same = _shared
    return _fate(chosen[number], tried(chosen[number].prim_func), equivalents, same)


def _fate(mutant: Mutant, trials: Iterable[Trial], equivalents: Mapping[str, str], same: Same) -> Mutation:
    """Return the first layer that refutes the mutant; failing that, the first that does not take it."""
    refused: Mutation | None = None
    for trial in trials:
        try:
            layer = trial.run()
        except Exception as error:  # the compiler, or the engine on IR that no compiler would emit
            reason = f"{type(error).__name__}: {_first_line(str(error))}"
            refused = refused or Mutation(mutant.name, mutant.operator, "rejected", trial.layer, reason)
            continue
        if layer.holds:
            continue
        first = layer.failures[0] if layer.failures else Failure("hollow", "nothing is left to show")
        reason = f"{first.kind}: {_first_line(first.statement)}"
        if first.kind != "unsupported":
            return Mutation(mutant.name, mutant.operator, "killed", trial.layer, reason)
        refused = refused or Mutation(mutant.name, mutant.operator, "rejected", trial.layer, reason)
    if refused:
        return refused
    reason = equivalents.get(unlined(mutant.name)) or (SAME if same(mutant.prim_func) else "")
    return Mutation(mutant.name, mutant.operator, "equivalent", "", reason)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:200]


def unlined(name: str) -> str:
    """Return a mutant's name without the line, which moves with every edit."""
    return ", ".join(part for part in name.split(", ") if not part.startswith("line "))
