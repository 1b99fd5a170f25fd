"""What ``verify`` can be told beyond its first arguments, and which layers it is asked for.

It is not trusted: it declares names and types for the type checker, and says what the report is to hold. A layer that an
error here leaves out is not in the report, which then claims nothing of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from lemmata.reference.contract import Contract

from .base.report import LAYERS
from .execution.invariants import Invariant
from .execution.ranges import Waiver
from .layers.comparison import Compare
from .layers.lemmas import Examples, Lemma

_ARCHITECTURE = re.compile(r"sm_\d+[af]?")


class Options(TypedDict, total=False):
    """The options of ``verify``, all of which may be left out.

    Attributes:
        invariants: for loops that carry state, by loop name.
        compare: instead of reference and invariants, for proofs that need more, such as a reference run in lock step.
        lemmas: theorems about the operator.
        examples: inputs to run the kernel and its mutants on, where not every layer is claimed. That proves nothing.
        pass_configs: TileLang's pass configs of the build that ships.
        waivers: obligations of the range layer that are not proved, each with its reason.
        dead: conditions of if statements that never hold, by their text in the lowered kernel, each with the reason.
        arch: the GPU, which bounds shared memory and decides what the compiler emits.
        mutate: whether to prove of each mutant of the kernel that some layer refutes it.
        every: of how many mutants one is taken.
        share: (i, n) for one of n shares of the mutants taken: every n-th of them from number i on. They are tried on the
            layers asked for, none of which is shown of the kernel itself.
        equivalents: mutants that compute the same, by their names without the line, each with the reason. Those of
            which the compiler makes the same code need not be named.
        solver: "z3", followed by others where it does not know, or "cvc5" alone.
        seed: of the solver.
        rlimit: the steps that z3 may take for one condition.
        smt: a folder to write every condition to, as SMT-LIB.
        cache_key: a name for ``reference``, ``invariants``, ``compare``, ``lemmas`` and ``examples``, which must change
            when they do. With it the verdict is kept on disk, by a digest of this name, the kernel's IR, all other
            arguments, the sources of the engine, of lemmata's references and proofs, and the versions. Without it
            nothing is kept or looked up.
    """

    invariants: Mapping[str, Invariant] | None
    compare: Compare | None
    lemmas: Sequence[Lemma]
    examples: Examples | None
    pass_configs: Mapping[str, object] | None
    waivers: Sequence[Waiver]
    dead: Mapping[str, str] | None
    arch: str
    mutate: bool
    every: int
    share: tuple[int, int] | None
    equivalents: Mapping[str, str] | None
    solver: Literal["z3", "cvc5"]
    seed: int
    rlimit: int
    smt: Path | None
    cache_key: str | None


def applies(layer: str, compare: Compare | None, lemmas: Sequence[Lemma], examples: Examples | None) -> bool:
    """Return whether there is something for a layer to show."""
    needed = {"L2": compare, "range": compare, "lemmas": lemmas, "run": examples}
    return bool(needed.get(layer, True))


def asked_for(
    layers: Iterable[str] | None, compare: Compare | None, lemmas: Sequence[Lemma], examples: Examples | None
) -> list[str]:
    """Return the layers to show, in order: those asked for, or all that apply."""
    chosen = set(LAYERS if layers is None else layers)
    if unknown := chosen - set(LAYERS):
        raise ValueError(f"layers: expected some of {', '.join(LAYERS)}, got {sorted(unknown)}")
    wanted = [name for name in LAYERS if name in chosen and applies(name, compare, lemmas, examples)]
    if layers is not None and (lacking := chosen - set(wanted)):
        raise ValueError(
            "layers: expected a reference for L2 and range, lemmas for lemmas, examples for run, "
            f"got none for {sorted(lacking)}"
        )
    return wanted


def check(contract: Contract, statics: Mapping[str, float], asked: Options) -> None:
    """Check what ``verify`` was given before anything is proved.

    Raises:
        TypeError: the contract, a waiver or the folder for SMT-LIB is of another type.
        ValueError: the contract names no two calls, a ragged one and the largest, by all its sizes; or a static
            parameter, the architecture, the solver, or a number is not one that there is.
    """
    if not isinstance(contract, Contract):
        raise TypeError(f"contract: expected a Contract, got {type(contract).__name__}")
    if len(contract.probes) < 2:
        raise ValueError(f"contract: expected two probe sizes, a ragged and the largest, got {len(contract.probes)}")
    if any(set(probe) != set(contract.sizes) for probe in contract.probes):
        raise ValueError(f"contract: expected probes of all its sizes {sorted(contract.sizes)}")
    if not set(contract.statics) <= set(statics):
        raise ValueError(f"statics: expected values of {sorted(contract.statics)}, got {sorted(statics)}")
    for name, static in contract.statics.items():
        static.check(f"statics: {name}", statics[name])
    for waiver in asked["waivers"]:
        if not isinstance(waiver, Waiver):
            raise TypeError(f"waivers: expected Waiver objects, got {waiver!r}")
    if not isinstance(asked["smt"], Path | None):
        raise TypeError(f"smt: expected a Path, got {asked['smt']!r}")
    if not _ARCHITECTURE.fullmatch(str(asked["arch"])):
        raise ValueError(f"arch: expected sm_90a or another of CUDA's names, got {asked['arch']!r}")
    if asked["solver"] not in ("z3", "cvc5"):
        raise ValueError(f"solver: expected z3 or cvc5, got {asked['solver']!r}")
    if (share := asked["share"]) and not (asked["mutate"] and 0 <= share[0] < share[1]):
        raise ValueError(f"share: expected mutants, and (i, n) with 0 <= i < n, got {share}")
    for name, least in {"seed": 0, "rlimit": 1, "every": 1}.items():
        if (number := int(asked[name])) < least:  # type: ignore[literal-required]
            raise ValueError(f"{name}: expected at least {least}, got {number}")
