"""The control flow of a kernel in PTX, with what synchronises in it.

A label that is not nvcc's own stands in the text of an instruction that TileLang's headers bring along. There is one such
text that branches: a wait for an mbarrier, which tries until it has passed, and so is one step.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from ..base.errors import Unsupported
from .skeleton import Apply, Event, Name, Term

UNKNOWN = Name("?")
"""An operand that is computed at run time."""

_EVENTS = {
    r"mbarrier\.init\.shared::cta\.b64 \[(%\w+)\], (%\w+);": "mbarrier.init",
    r"mbarrier\.arrive\.shared::cta\.b64 _, \[(%\w+)\];": "mbarrier.arrive",
    r"mbarrier\.try_wait\.parity\.shared::cta\.b64 \w+, \[(%\w+)\], (%\w+), %\w+;": "mbarrier.wait",
    r"fence\.mbarrier_init\.release\.cluster;": "fence.mbarrier_init",
    r"cp\.async\.mbarrier\.arrive\.noinc\.shared::cta\.b64 \[(%\w+)\];": "cp.async.mbarrier.arrive.noinc",
    r"cp\.async\.c[ag]\.shared\.global \[%\w+\], \[%\w+\], (\d+);": "cp.async",
    r"cp\.async\.c[ag]\.shared\.global \[%\w+\], \[%\w+\], (\d+), %\w+;": "cp.async.zfill",
    r"cp\.async\.commit_group;": "cp.async.commit_group",
    r"cp\.async\.wait_group (\d+);": "cp.async.wait_group",
    r"cp\.async\.wait_(all);": "cp.async.wait_group",
    r"wgmma\.fence\.sync\.aligned;": "wgmma.fence",
    r"wgmma\.mma_async\.sync\.aligned\.m(\d+)n(\d+)k(\d+)\S* \{[^}]*\}, %.*": "wgmma.mma_async.ss",
    r"wgmma\.mma_async\.sync\.aligned\.m(\d+)n(\d+)k(\d+)\S* \{[^}]*\}, *\{.*": "wgmma.mma_async.rs",
    r"wgmma\.commit_group\.sync\.aligned;": "wgmma.commit_group",
    r"wgmma\.wait_group\.sync\.aligned (\d+);": "wgmma.wait_group",
    r"fence\.proxy\.async\.shared::cta;": "fence.proxy.async",
    r"bar\.sync (%?\w+);": "bar.sync",
    r"bar\.sync (%?\w+), (%?\w+);": "bar.sync",
    r"setmaxnreg\.inc\.sync\.aligned\.u32 (\d+);": "setmaxnreg.inc",
    r"setmaxnreg\.dec\.sync\.aligned\.u32 (\d+);": "setmaxnreg.dec",
    r"griddepcontrol\.wait;": "griddepcontrol.wait",
    r"griddepcontrol\.launch_dependents;": "griddepcontrol.launch_dependents",
    r"shfl\.sync\.idx\.b32 .*": "shfl.idx",
    r"shfl\.sync\.up\.b32 .*": "shfl.up",
    r"shfl\.sync\.bfly\.b32 .*": "shfl.bfly",
    r"vote\.sync\.ballot\.b32 .*": "vote.ballot",
    r"atom\.shared\.add\.u32 .*": "atom.add",
}
_SYNCHRONISES = re.compile(
    r"(?:^|[\s;{}])(?:mbarrier|cp|wgmma|fence|membar|bar|barrier|setmaxnreg|griddepcontrol|shfl|vote|match|redux|atom|red"
    r"|multimem|cluster\w*|tcgen05|tensormap|st\.async|call|brx|exit|trap|bra)(?:[\s.;]|$)"
)
"""Instructions that order threads or end them. A line with one is an event, a branch, or refused."""

_BRANCH = re.compile(r"(@\S+ )?bra(?:\.uni)? (\w+|\$\w+);")
_DEFINES = re.compile(r"(?:@\S+ )?(?!bar)([\w.:]+) (%\w+)(?:\|%\w+)?, (.*);")
_DEFINES_SOME = re.compile(r"(?:@\S+ )?[\w.:]+ \{([^{}]*)\},")


class Step(NamedTuple):
    """One line: what it does, and at which lines it may go on."""

    event: Event | None
    follows: tuple[int, ...]


def flow(text: str) -> list[Step]:
    """Return the steps of the one kernel in a text that nvcc made.

    Raises:
        Unsupported: there is a function, or an instruction that may order threads and is not known.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    if len(re.findall(r"(?m)^\.visible \.entry", text)) != 1 or re.search(r"(?m)^\.(weak|func|visible \.func)", text):
        raise Unsupported("PTX of more than one kernel")
    labels = {line[:-1]: at for at, line in enumerate(lines) if line.startswith("$") and line.endswith(":")}
    operands = _Operands(lines)
    return [_step(line, at, labels, operands) for at, line in enumerate(lines)]


def _step(line: str, at: int, labels: dict[str, int], operands: _Operands) -> Step:
    if line == "ret;":
        return Step(None, ())
    if line.startswith("//") or not _SYNCHRONISES.search(line):
        return Step(None, (at + 1,))
    if branch := _BRANCH.fullmatch(line):
        there = (labels[branch[2]],) if branch[2].startswith("$") else ()
        return Step(None, (*there, *((at + 1,) if branch[1] or not there else ())))
    for pattern, kind in _EVENTS.items():
        if found := re.fullmatch(pattern, line):
            return Step(Event(kind, tuple(map(operands.term, found.groups()))), (at + 1,))
    raise Unsupported(f"PTX, the line {line}")


class _Operands:
    """What the registers hold that are defined once, by constants and the addresses of variables."""

    def __init__(self, lines: list[str]) -> None:
        self._defined: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for line in lines:
            if found := _DEFINES.fullmatch(line):
                self._defined[found[2]].append((found[1], found[3]))
            elif found := _DEFINES_SOME.match(line):
                for register in re.findall(r"%\w+", found[1]):
                    self._defined[register].append(("one of a list", ""))

    def term(self, text: str) -> Term:
        """Return an operand: a number, an mbarrier, or UNKNOWN."""
        symbol, offset = self._address(text) or ("?", 0)
        array = re.fullmatch(r"_ZZ\w+_kernelE\d+(\w+)_mem", symbol)
        return Apply("[]", (Name(array[1]), offset // 8)) if array else UNKNOWN if symbol else offset

    def _address(self, text: str) -> tuple[str, int] | None:
        """Return a value as the variable whose address it contains, "" if it contains none, and a number of bytes."""
        if re.fullmatch(r"-?\d+|all", text):
            return "", 0 if text == "all" else int(text)
        if not text.startswith("%"):
            return text, 0
        match self._defined[text]:
            case [(operation, operand)] if operation.startswith("mov."):
                return self._address(operand)
            case [(operation, operand)] if operation.startswith("add."):
                match [self._address(part) for part in operand.split(", ")]:
                    case [(symbol, offset), ("", more)]:
                        return symbol, offset + more
        return None
