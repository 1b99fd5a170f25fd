"""The proofs of lemmata's kernels, by operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..operators import find
from ..reference.contract import Contract
from .engine.base.report import LAYERS, Mutation, Report
from .engine.execution.ranges import Waiver
from .engine.guards.mutation import untried
from .engine.layers.lemmas import Examples, Lemma
from .engine.verify import Compare, applies, verify


@dataclass(frozen=True)
class Proof:
    """A kernel and what is claimed of it: the arguments of ``verify``."""

    op: str
    kernel: Any
    contract: Contract
    statics: Mapping[str, float]
    compare: Compare | None
    pass_configs: Mapping[str, object]
    lemmas: tuple[Lemma, ...] = ()
    waivers: tuple[Waiver, ...] = ()
    dead: Mapping[str, str] = field(default_factory=dict)
    mutate: bool = False
    every: int = 1
    equivalents: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = LAYERS  # those that are claimed, if they apply
    examples: Examples | None = None

    @property
    def name(self) -> str:
        """The kernel, the static parameters, and the type of its first input where the contract leaves a choice."""
        words = [str(self.kernel.attrs["global_symbol"]), *(f"{k}={v:g}" for k, v in self.statics.items())]
        if len(self.contract.inputs[0].dtypes) > 1:
            words.append(str(next(iter(self.kernel.buffer_map.values())).dtype))
        return " ".join(words)

    def claimed(self, layers: Iterable[str] | None = None) -> list[str]:
        """Return which of the layers asked for, or of all, this proof claims.

        Raises:
            ValueError: there is no such layer.
        """
        if unknown := set(layers or ()) - set(LAYERS):
            raise ValueError(f"layers: expected some of {', '.join(LAYERS)}, got {sorted(unknown)}")
        asked = [name for name in layers or LAYERS if name in self.layers]
        return [name for name in asked if applies(name, self.compare, self.lemmas, self.examples)]

    def mutants(self) -> tuple[Mutation, ...]:
        """Return the mutants that are claimed to be refuted, none of them tried."""
        return untried(self.kernel, self.every) if self.mutate else ()

    def run(self, *, mutate: bool = False, fresh: bool = False, **options: Any) -> Report:
        """Return the verdict on the kernel.

        Args:
            mutate: whether to try its mutants too, where mutants are claimed to be refuted.
            fresh: whether to disregard verdicts kept on disk.
            options: those of ``verify``.
        """
        mutate = mutate and self.mutate
        options["layers"] = self.claimed(options.get("layers"))
        return verify(
            self.kernel,
            self.contract,
            statics=self.statics,
            compare=self.compare,
            lemmas=self.lemmas,
            examples=self.examples,
            pass_configs=self.pass_configs,
            waivers=self.waivers,
            dead=self.dead,
            mutate=mutate,
            every=self.every if mutate else 1,
            equivalents=self.equivalents if mutate else None,
            cache_key=None if fresh else self.name,
            **options,
        )


def proofs(op: str) -> Iterator[Proof]:
    """Yield the proofs of one operator; there are none of one without kernels.

    Raises:
        ValueError: there is no such operator.
    """
    operator = find(op)
    if operator.kernels:
        yield from operator.module("proofs").proofs()
