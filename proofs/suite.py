"""All that lemmata claims of its kernels, by operator."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..reference.contract import Contract
from .engine.lemmas import Lemma
from .engine.ranges import Waiver
from .engine.report import LAYERS, Report
from .engine.verify import Compare, applies, verify

OPERATORS = ("sinkhorn", "topk")


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
    mutate: bool = False
    every: int = 1
    equivalents: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The kernel and the static parameters."""
        return f"{self.kernel.attrs['global_symbol']} {' '.join(f'{k}={v:g}' for k, v in self.statics.items())}"

    def run(self, *, mutate: bool = False, fresh: bool = False, **options: Any) -> Report:
        """Verify it; ``mutate`` also runs its mutants, if it has any; ``fresh`` disregards verdicts kept on disk."""
        mutate = mutate and self.mutate
        if layers := options.pop("layers", None):
            if unknown := set(layers) - set(LAYERS):
                raise ValueError(f"layers: expected some of {', '.join(LAYERS)}, got {sorted(unknown)}")
            options["layers"] = [name for name in layers if applies(name, self.compare, self.lemmas)]
        return verify(
            self.kernel,
            self.contract,
            statics=self.statics,
            compare=self.compare,
            lemmas=self.lemmas,
            pass_configs=self.pass_configs,
            waivers=self.waivers,
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
    if op not in OPERATORS:
        raise ValueError(f"op: expected one of {list(OPERATORS)}, got {op!r}")
    yield from importlib.import_module(f"lemmata.proofs.{op}").proofs()
