"""The table of public kernels: which there are, a row for each, and the page's text, made of the rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lemmata.proofs.accepted import ACCEPTED
from lemmata.proofs.engine.base.report import Failure, Layer, Report
from lemmata.proofs.engine.layers.verdicts import COMPILERS_GUARDS, OWN

from . import automodel, tile_kernels, tile_kernels_quant, veomni
from .entry import PACKAGES, Entry

ROWS_FILE = Path(__file__).parents[2] / "docs" / "public_kernels.json"
ENTRIES: tuple[Entry, ...] = (
    *tile_kernels.ENTRIES,
    *tile_kernels_quant.ENTRIES,
    *automodel.ENTRIES,
    *veomni.ENTRIES,
)
VERSIONS = {"tile_kernels": "2.1.0", "nemo_automodel": "0.7.0", "veomni": "0.1.12"}
_LONGEST = 300  # characters of a reason


@dataclass(frozen=True)
class Tried:
    """Layers of the proof of a public kernel, by its place among the entries; see ``lemmata.proofs.tasks.Task``."""

    number: int
    layers: tuple[str, ...]
    folders: tuple[Path, ...]

    def run(self) -> Report:
        """Return the verdict; that something went wrong on the way is one too, and no good one."""
        try:
            return ENTRIES[self.number].prove(self.folders, self.layers)
        except Exception as error:  # a crash is to stand in the table
            failure = Failure("crash", f"{type(error).__name__}: {error}", verdict="crash")
            return Report("", "", {}, {}, tuple(Layer(name, 1, 0, 0, 0.0, (failure,)) for name in self.layers))


def digest(entry: Entry) -> str:
    """Return a digest of an entry: of the kernel's parameters and of its contract."""
    return hashlib.sha256(repr(_plain(entry)).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return what an entry says in a form whose text is always the same."""
    if isinstance(value, dict):
        return [(name, _plain(v)) for name, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "shape"):
        return str(value.dtype), list(value.shape)
    if isinstance(value, Entry):
        return {name: _plain(v) for name, v in vars(value).items() if name != "judged"}
    return str(value)


def row(entry: Entry, layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the row of a kernel."""
    found = {layer.name: _verdict(layer) for layer in layers}
    return {"name": entry.name, "digest": digest(entry), "lines": entry.lines, "judged": entry.judged, **found}


def _verdict(layer: Layer) -> dict[str, Any]:
    aside = [name for name in layer.unmodelled if not any(a.of(layer.name, name) for a in ACCEPTED)]
    counts = {
        "seconds": round(layer.seconds, 1),
        "conditions": layer.conditions,
        "proved": layer.proved,
        "aside": aside,
    }
    if layer.holds:
        relied = [s for s in layer.statements if s.startswith(f"relies on {COMPILERS_GUARDS}")]
        reason = " ".join(relied[0].split())[: 2 * _LONGEST] if relied else ""
        return {"verdict": "holds, by the compiler's guards" if relied else "holds", "reason": reason, **counts}
    decisive = [
        f for f in layer.failures if f.kind != OWN
    ] or layer.failures  # the compiler's guards may help the others
    worst = min(decisive, key=lambda f: _ORDER.index(f.verdict) if f.verdict in _ORDER else len(_ORDER))
    return {"verdict": worst.verdict, "reason": _brief(worst), **counts}


_ORDER = ("crash", "refuted", "unsupported", "not proved", "unknown")


def _brief(failure: Failure) -> str:
    values = ", ".join(f"{name} = {value}" for name, value in (failure.counterexample or {}).items())
    words = " ".join(f"{failure.kind}: {failure.statement}".split())[:_LONGEST]
    return f"{words} when {values}"[: 2 * _LONGEST] if values else words


def rows() -> list[dict[str, Any]]:
    """Return the rows that are kept."""
    kept: list[dict[str, Any]] = json.loads(ROWS_FILE.read_text())["kernels"]
    return kept


def holds(kernel: dict[str, Any]) -> bool:
    """Return whether both layers of a row hold."""
    return all(kernel[layer]["verdict"].startswith("holds") for layer in ("L0", "L1"))


def summary() -> str:
    """Return in Markdown how many kernels of each package hold."""
    lines = ["| package | kernels | hold in L0 and L1 |", "| --- | --- | --- |"]
    found = rows()
    of = {package: [r for r in found if r["name"].startswith(package)] for package in PACKAGES}
    for package, kernels in [*of.items(), ("all", found)]:
        name = f"`{package}` {VERSIONS[package]}" if package in VERSIONS else "all"
        lines.append(f"| {name} | {len(kernels)} | {sum(map(holds, kernels))} |")
    return "\n".join(lines)


def verdicts() -> str:
    """Return in Markdown the table of all kernels."""
    lines = ["| kernel | L0 | L1 | seconds | lines of contract |", "| --- | --- | --- | --- | --- |"]
    for kernel in rows():
        name = re.sub(r"^(\w+)\..*\.(\w+):", r"\1 \2 ", kernel["name"])
        seconds = " + ".join(f"{kernel[layer]['seconds']:.0f}" for layer in ("L0", "L1"))
        both = (kernel[layer]["verdict"] for layer in ("L0", "L1"))
        lines.append(f"| `{name}` | {' | '.join(both)} | {seconds} | {kernel['lines']} |")
    return "\n".join(lines)


def reasons() -> str:
    """Return in Markdown why kernels do not hold, and what those rely on that do by the compiler's guards."""
    return "\n".join(
        line for kernel in rows() if any(kernel[n]["reason"] for n in ("L0", "L1")) for line in _why(kernel)
    )


def _why(kernel: dict[str, Any]) -> Iterator[str]:
    yield f"- **{kernel['name'].rpartition('.')[2]}** ({kernel['name'].partition('.')[0]})"
    if kernel["judged"]:
        yield f"    - {kernel['judged']}"
    for layer in ("L0", "L1"):
        if kernel[layer]["reason"]:
            yield f"    - {layer} {kernel[layer]['verdict']}: `{kernel[layer]['reason'].replace('`', '')}`"


def aside() -> str:
    """Return in Markdown what the kernels that hold leave aside, by how many do."""
    names: Iterable[str] = (
        re.sub(r"<.*>", "<...>", name) for k in rows() if holds(k) for name in {*k["L0"]["aside"], *k["L1"]["aside"]}
    )
    counts = sorted(Counter(names).items(), key=lambda each: (-each[1], each[0]))
    return "\n".join(f"- `{name}`: {count}" for name, count in counts) or "Nothing."
