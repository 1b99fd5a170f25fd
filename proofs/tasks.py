"""What ``lemmata prove`` runs: parts of proofs, each of which can be done in a process of its own."""

from __future__ import annotations

import itertools
import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from ..operators import OPERATORS, find
from .engine.base.failures import unexplained
from .engine.base.report import LAYERS, Accepted, Mutation, Report
from .engine.compiler.extract import prim_func
from .engine.guards.mutation import untried
from .engine.verify import verify
from .suite import Proof, proofs

_TOGETHER = (("L0", "L1"), ("L2", "range"), ("lemmas",), ("run",))
"""Layers that share work: L0 and L1 are read off one run of the compiler, L2 and range off one symbolic execution."""
MUTANTS = 4
"""How many mutants one task tries: few, so that little is lost with one that is cut off."""


class Task(Protocol):
    """Some layers of the proof of one kernel. It is pickled by what the kernel is found by, not with the kernel."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers to show."""

    def run(self) -> Report:
        """Return the verdict of these layers."""


@lru_cache(maxsize=1)  # the proofs of an operator are mostly run in turn
def _made(op: str) -> tuple[list[Proof], Iterator[Proof]]:
    """Return the proofs of an operator whose kernels are made, and those that are left."""
    return [], iter(proofs(op))


def _shipped(op: str, number: int) -> Proof:
    made, left = _made(op)
    made += itertools.islice(left, max(number + 1 - len(made), 0))
    return made[number]


@dataclass(frozen=True)
class Shipped:
    """Layers of a proof by its place in the suite; ``options`` go to `Proof.run`. Mutants are tried of a share alone."""

    op: str
    number: int
    layers: tuple[str, ...]
    options: Mapping[str, Any]

    def run(self) -> Report:
        """Return the verdict of these layers."""
        return _shipped(self.op, self.number).run(
            **{**self.options, "mutate": "share" in self.options, "layers": self.layers}
        )


@lru_cache(maxsize=1)
def _module(path: Path) -> dict[str, Any]:
    return runpy.run_path(str(path))


@dataclass(frozen=True)
class InFile:
    """Layers of a kernel in a file of the user's, which names a ``contract`` and may name others, see `_in_file`."""

    path: Path
    kernel: str
    layers: tuple[str, ...]
    options: Mapping[str, Any]

    def run(self) -> Report:
        """Return the verdict of these layers. It is kept only under a ``cache_key`` of the file's options."""
        names = _module(self.path)
        options = {**self.options, **names.get("options", {})}  # what the file says holds
        options["mutate"] = "share" in options
        if options.pop("fresh", False):
            options["cache_key"] = None
        return verify(
            names[self.kernel],
            names["contract"],
            reference=names.get("reference"),
            layers=self.layers,
            **options,
        )


@dataclass(frozen=True)
class Share:
    """Some mutants of a kernel: every n-th of those tried from number i on, for a ``share`` (i, n).

    Attributes:
        kernel: it, and the layers to try them on.
        mutants: they, as long as none is tried.
    """

    kernel: Shipped | InFile
    share: tuple[int, int]
    mutants: tuple[Mutation, ...]
    layers: tuple[str, ...] = ()

    def run(self) -> Report:
        """Return the fates of these mutants, and no layer of the kernel itself."""
        report = replace(self.kernel, options={**self.kernel.options, "share": self.share}).run()
        expected, tried = ([mutant.name for mutant in each] for each in (self.mutants, report.mutations))
        if tried != expected:
            raise ValueError(f"mutants: expected {expected} in share {self.share}, got {tried}")
        return report

    def untried(self, why: str) -> Report:
        """Return that none was tried, and why."""
        mutants = tuple(replace(mutant, reason=why) for mutant in self.mutants)
        return Report("", "", {}, {}, (), mutants, unexplained(mutants))


def _shares(kernel: Shipped | InFile, mutants: Sequence[Mutation]) -> Iterator[Share]:
    count = -(-len(mutants) // MUTANTS)
    for number in range(count):
        yield Share(kernel, (number, count), tuple(mutants[number::count]))


def merged(shares: Iterable[Sequence[Mutation]]) -> tuple[Mutation, ...]:
    """Return the mutants of all shares of a kernel, in the order of the source."""
    return tuple(mutant for each in itertools.zip_longest(*shares) for mutant in each if mutant is not None)


@dataclass(frozen=True)
class Asked:
    """A kernel to prove: its name, the tasks that do it, and what its layers may leave aside."""

    name: str
    tasks: tuple[Task, ...]
    accepted: tuple[Accepted, ...]


def asked(
    names: Iterable[str], accepted: Iterable[Accepted], options: Mapping[str, Any], apart: bool = False
) -> Iterator[Asked]:
    """Yield the kernels to prove: of operators, public functions and ``FILE.py:KERNEL``, or all that ship.

    Args:
        names: theirs.
        accepted: what layers of lemmata's own kernels may leave aside.
        options: those of ``verify``.
        apart: whether L0 and L1 are tasks of their own, since each may take so long, though they share the compiler's run.

    Raises:
        ValueError: a name, a layer or a file is none.
    """
    names = list(names)
    theirs = [name for name in names if ".py:" in name or name.endswith(".py")]
    ours = [name for name in names if name not in theirs]
    for op in dict.fromkeys(find(name).name for name in ours) if ours or theirs else OPERATORS:
        for number, proof in enumerate(proofs(op)):
            layers = tuple(proof.claimed(options.get("layers")))
            whole = Shipped(op, number, layers, options)
            parts = [replace(whole, layers=part) for part in _parts(layers, apart)]
            shares = _shares(whole, proof.mutants() if layers and options.get("mutate") else ())
            if layers:
                yield Asked(proof.name, (*parts, *shares), tuple(accepted))
    for name in theirs:
        yield _in_file(name, options, apart)


def _parts(layers: Iterable[str], apart: bool) -> Iterator[tuple[str, ...]]:
    for together in (("L0",), ("L1",), *_TOGETHER[1:]) if apart else _TOGETHER:
        if part := tuple(layer for layer in layers if layer in together):
            yield part


def _in_file(name: str, options: Mapping[str, Any], apart: bool) -> Asked:
    """Return what is asked of a kernel in a file: every layer that applies, or those of ``options``.

    The file names a ``contract``. It may name a ``reference``, the ``options`` of ``verify``, and as ``accepted`` what
    layers may leave aside.
    """
    file, _, kernel = name.rpartition(":")
    path = Path(file).resolve()
    if not (file and path.is_file()):
        raise ValueError(f"op: expected FILE.py:KERNEL of an existing file, got {name!r}")
    found = _module(path)
    if absent := [each for each in (kernel, "contract") if each not in found]:
        raise ValueError(f"op: expected the names {kernel} and contract in {file}, got no {' and no '.join(absent)}")
    apply = ("L0", "L1", *(("L2", "range") if "reference" in found or "compare" in found.get("options", {}) else ()))
    layers = [layer for layer in LAYERS if layer in (options.get("layers") or apply)]
    kept = {key: value for key, value in options.items() if key != "layers"}
    holding = kept | found.get("options", {})
    whole = InFile(path, kernel, tuple(layers), kept)
    mutants: tuple[Mutation, ...] = ()
    if holding.get("mutate"):
        mutants = untried(prim_func(found[kernel], holding.get("statics") or {})[0], holding.get("every", 1))
    accepted = tuple(found.get("accepted", ()))
    if wrong := [each for each in accepted if not isinstance(each, Accepted)]:
        raise ValueError(f"op: expected accepted in {file} to hold objects of Accepted, got {wrong[0]!r}")
    parts = (replace(whole, layers=part) for part in _parts(layers, apart))
    return Asked(name, (*parts, *_shares(whole, mutants)), accepted)
