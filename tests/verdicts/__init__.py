"""The vocabulary of the verdict files: a contract read off the kernel, options of the build, and the verdicts."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Protocol

import torch

from lemmata.reference.contract import Contract, Elements, Size, TensorSpec

STRICT = {"tl.disable_safe_memory_legalize": True}
"""The compiler adds no bounds checks of its own. Every file is built so unless its OPTIONS say otherwise."""

MANUAL = {**STRICT, "tl.disable_thread_storage_sync": True}
"""And it adds no barriers: only those that the kernel asks for are there."""

ASYNC = {"parallel_prefer_async": True, "parallel_async_without_async_commit_wait": True}
"""Annotations of a parallel loop: its copies are asynchronous, and the kernel itself waits for them."""

LARGEST = 2**31 - 256
PROBES = 1009, 4096  # sizes that every contract must admit, or the next that it does


def opened(name: str) -> ModuleType:
    """Return a verdict file, such as "races/lane_right"."""
    return importlib.import_module("verdicts." + name.replace("/", "."))


def contract(
    kernel: Any,
    *writes: str,
    sizes: Mapping[str, Size] | None = None,
    elements: Mapping[str, Elements] | None = None,
    shapes: Mapping[str, str] | None = None,
) -> Contract:
    """Return the contract of a kernel that may be called with any sizes.

    Args:
        kernel: the PrimFunc, whose symbolic dimensions become sizes from 0 to LARGEST.
        writes: the names of its outputs; all other tensors are inputs.
        sizes: the sizes that have another range.
        elements: what the elements of some tensors may hold.
        shapes: the shapes that the contract states otherwise than the kernel.
    """
    specs: dict[str, TensorSpec] = {}
    for buffer in kernel.buffer_map.values():
        own = " ".join(str(int(d.value)) if hasattr(d, "value") else d.name for d in buffer.shape)
        shape = (shapes or {}).get(buffer.name, own)
        dtypes = (getattr(torch, str(buffer.dtype)),)
        specs[buffer.name] = TensorSpec(buffer.name, shape, dtypes, (elements or {}).get(buffer.name, Elements()))
    words = {word for spec in specs.values() for word in spec.shape.split() if not word.isdigit()}
    ranges = {word: Size(high=LARGEST) for word in sorted(words)} | dict(sizes or {})
    inputs = tuple(spec for name, spec in specs.items() if name not in writes)
    probes = tuple({name: max(min(probe, s.high), s.low) for name, s in ranges.items()} for probe in PROBES)
    return Contract("verdict", ranges, {}, inputs, tuple(specs[name] for name in writes), probes)


class Verdict(Protocol):
    """What is expected of some layers, which are run, and no others."""

    layers: tuple[str, ...]

    def differs(self, report: Any) -> str:
        """Say how a report differs from the verdict; nothing where it is as expected."""


class Proved:
    """Every condition of these layers is proved.

    Args:
        layers: "L0", "L1", "L2" or "range".
        unmodelled: what the report must name as not modelled; a part of the name is enough.
        says: a statement that the report must contain.
    """

    def __init__(self, *layers: str, unmodelled: str = "", says: str = "") -> None:
        self.layers, self.unmodelled, self.says = layers, unmodelled, says

    def differs(self, report: Any) -> str:
        """Say what is not proved, or not said."""
        if not report.holds or tuple(layer.name for layer in report.layers) != self.layers:
            return f"not proved:\n{listed(report.failures)}"
        names = [name for layer in report.layers for name in layer.unmodelled]
        if not any(self.unmodelled in name for name in ["", *names]):
            return f"{self.unmodelled} is not among what is not modelled: {names}"
        said = [statement for layer in report.layers for statement in layer.statements]
        return "" if any(self.says in statement for statement in ["", *said]) else f"{self.says} is not said: {said}"


class Failed:
    """Conditions of these kinds, and of no others, fail in one layer.

    Args:
        layer: "L0", "L1", "L2" or "range".
        when: a relation that holds of every counterexample in which its names occur. ``tx'`` is of the other thread.
        failures: for each kind of condition, the words of one that fails, or of several; " ... " stands for any other
            words. The kind "not a number" is written not_a_number, and "async", a word of Python's, async_.
    """

    outcome = ""

    def __init__(self, layer: str, when: str = "", **failures: str | tuple[str, ...]) -> None:
        self.layers, self.when = (layer,), when
        self.failures = {
            name.rstrip("_").replace("_", " "): (words,) if isinstance(words, str) else words
            for name, words in failures.items()
        }

    def differs(self, report: Any) -> str:
        """Say what fails otherwise than expected."""
        kinds = {failure.kind for failure in report.failures}
        outcomes = {failure.verdict for failure in report.failures if failure.kind != "hollow"}
        if kinds != set(self.failures) or not outcomes <= {self.outcome}:
            return f"expected to be {self.outcome}: {sorted(self.failures)}; got\n{listed(report.failures)}"
        for kind, words in ((kind, words) for kind, several in self.failures.items() for words in several):
            pattern = ".*".join(map(re.escape, words.split(" ... ")))
            if not any(f.kind == kind and re.search(pattern, f.statement) for f in report.failures):
                return f"no {kind} says {words!r}:\n{listed(report.failures)}"
        found = [holds(self.when, f.counterexample or {}) for f in report.failures] if self.when else [True]
        right = True in found and False not in found
        return "" if right else f"{self.when} does not hold of\n{listed(report.failures)}"


class Refuted(Failed):
    """The solver has found sizes, threads and iterations of which conditions of these kinds do not hold."""

    outcome = "refuted"


class Unproved(Failed):
    """The engine cannot show conditions of these kinds; it looks for no counterexample to an equality of terms."""

    outcome = "not proved"


class Unknown(Failed):
    """Conditions of these kinds hang on what a construct gives that the engine does not model, and that they name."""

    outcome = "unknown"


class Unsupported(Failed):
    """The engine refuses the kernel, for this reason."""

    outcome = "unsupported"

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(layer, unsupported=reason)


def listed(failures: Iterable[Any]) -> str:
    """Return the failures as text, or a word where there are none."""
    return (
        "\n".join(f"{f.verdict} {f.kind}: {f.statement}, when {f.counterexample}"[:400] for f in failures) or "nothing"
    )


def holds(relation: str, values: Mapping[str, int]) -> bool | None:
    """Return whether a relation such as ``tx' == tx + 1`` holds of a counterexample, None where a name is not in it."""
    if not values:
        return None
    names = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
    numbers = re.sub(rf"(?<![\w.'])({names})(?![\w.'])", lambda m: f"({values[m[0]]})", relation)
    try:
        return bool(eval(numbers, {"__builtins__": {}}))  # the relation stands in a test file
    except (NameError, SyntaxError):
        return None
