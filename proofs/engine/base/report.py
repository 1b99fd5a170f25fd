"""What was proved of a kernel, under which contract, and what was not looked at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .failures import Accepted as Accepted
from .failures import Failure as Failure
from .failures import Mutation as Mutation
from .failures import fates as fates
from .text import lines

LAYERS = ("L0", "L1", "L2", "range", "lemmas", "run")


@dataclass(frozen=True)
class Layer:
    """One layer of the proof of one kernel."""

    name: str
    conditions: int  # how many were put, the checks against hollow proofs not counted
    proved: int  # how many of them hold
    guards: int  # how many checks against hollow proofs were made
    seconds: float
    failures: tuple[Failure, ...] = ()
    unmodelled: tuple[str, ...] = ()  # what the kernel does that no condition accounts for, by name
    waived: tuple[str, ...] = ()  # what is not proved, each with the reason that was given
    statements: tuple[str, ...] = ()  # theorems in words, each with its status; what is assumed, trusted or tested

    @property
    def proves(self) -> bool:
        """Whether this is a proof; runs on examples are not."""
        return self.name != "run"

    @property
    def holds(self) -> bool:
        """Whether everything asked for was shown. Only in the range layer may there be nothing to show."""
        return not self.failures and self.proved == self.conditions and (self.conditions > 0 or self.name == "range")


@dataclass(frozen=True)
class Report:
    """The verdict on one kernel."""

    kernel: str
    contract: str
    statics: Mapping[str, float]
    versions: Mapping[str, str]
    layers: tuple[Layer, ...]
    mutations: tuple[Mutation, ...] = ()
    unexplained: tuple[str, ...] = ()
    cached: bool = False

    @property
    def holds(self) -> bool:
        """Whether every layer holds and every mutant that survived is accounted for by name."""
        return bool(self.layers) and all(layer.holds for layer in self.layers) and not self.unexplained

    @property
    def complete(self) -> bool:
        """Whether every layer holds and leaves nothing aside that may matter to it."""
        return self.holds and not self.aside()

    def aside(self, accepted: Iterable[Accepted] = ()) -> tuple[str, ...]:
        """Return what layers do not model, but for what is accepted, each with its layer."""
        named = [(layer.name, name) for layer in self.layers for name in layer.unmodelled]
        return tuple(f"{name} in {layer}" for layer, name in named if not any(a.of(layer, name) for a in accepted))

    def __str__(self) -> str:
        return "\n".join(lines(" ".join([self.kernel, *(f"{k}={v:g}" for k, v in self.statics.items())]), self))

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The failures of all layers."""
        return tuple(failure for layer in self.layers for failure in layer.failures)

    def to_json(self) -> str:
        """Return the whole report as a JSON object."""
        return json.dumps(asdict(self) | {"holds": self.holds, "complete": self.complete}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that `to_json` wrote."""
        content: dict[str, Any] = json.loads(text)
        del content["holds"], content["complete"]
        for layer in content["layers"]:
            layer |= {name: tuple(layer[name]) for name in ("unmodelled", "waived", "statements")}
            layer["failures"] = tuple(Failure(**failure) for failure in layer["failures"])
        content["layers"] = tuple(Layer(**layer) for layer in content["layers"])
        content["mutations"] = tuple(Mutation(**mutation) for mutation in content["mutations"])
        return cls(**{**content, "unexplained": tuple(content["unexplained"])})
