"""All that lemmata claims of its kernels, by operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..operators import find
from ..reference.contract import Contract
from .engine.base.report import LAYERS, Report
from .engine.execution.ranges import Waiver
from .engine.layers.lemmas import Examples, Lemma
from .engine.verify import Compare, applies, verify


@dataclass(frozen=True)
class Proof:
    """One kernel and what is claimed of it: the arguments of ``verify``."""

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
    layers: tuple[str, ...] = LAYERS  # of them, those that are claimed
    examples: Examples | None = None

    @property
    def name(self) -> str:
        """The kernel, the static parameters, and the type of its first input where the contract leaves a choice."""
        words = [str(self.kernel.attrs["global_symbol"]), *(f"{k}={v:g}" for k, v in self.statics.items())]
        if len(self.contract.inputs[0].dtypes) > 1:
            words.append(str(next(iter(self.kernel.buffer_map.values())).dtype))
        return " ".join(words)

    def claimed(self, layers: Iterable[str] | None = None) -> list[str]:
        """Of the layers asked for, or of all, those that this proof claims.

        Raises:
            ValueError: there is no such layer.
        """
        if unknown := set(layers or ()) - set(LAYERS):
            raise ValueError(f"layers: expected some of {', '.join(LAYERS)}, got {sorted(unknown)}")
        asked = [name for name in layers or LAYERS if name in self.layers]
        return [name for name in asked if applies(name, self.compare, self.lemmas, self.examples)]

    def run(self, *, mutate: bool = False, fresh: bool = False, **options: Any) -> Report:
        """Verify it; ``mutate`` also runs its mutants, if it has any; ``fresh`` disregards verdicts kept on disk."""
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
    """The proofs of one operator.

    Raises:
        ValueError: there is no such operator.
    """
    yield from find(op).module("proofs").proofs()
