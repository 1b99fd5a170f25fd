"""That the kernels of compressor steps write what the reference does, and leave the rest as it was.

What is written into states and cache is compared with the reference by the sequence b and the entry i after the first, or the
row q of the call, that it is of. Of those that are written, with the reference's ``Places``:

    cache[page(b, i), row(b, i)] = entry(b, i),   state[slot(b, q), place(b, q)] = (kv, gate)[b, q]

Each store of a kernel is shown to be one of these, and each of these to be stored. All else keeps what it held.

An entry's candidates are rows of the call or of a state. That a kernel has the right ones is shown where it loads them, and
there they are abbreviated. What it makes of them is compared with what the reference makes of any candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from ..kernels.compressor import GROUPS, LANES, WIDTH
from ..kernels.compressor_step import Config
from ..reference import compressor_step as reference
from ..reference.compressor import BF16, weighted
from ..reference.contract import Contract
from .engine.execution.abbreviations import Abbreviating, Abbreviation
from .engine.execution.contents import Write
from .engine.execution.outcome import Execution
from .engine.execution.symbolic import block, execute
from .engine.forms import extended
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.forms.equations import Equation
from .engine.forms.extended import Value
from .engine.forms.normal_form import ONE, ZERO, Form
from .engine.forms.ring import single
from .engine.layers.comparison import symbolic_inputs
from .engine.reference.pull_array import Extent, deciding
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.verify import Compare, Compared
from .written import is_written

ROWS = ("kv", "gate")  # what a state keeps of a token, in this order
ENTRY, SEQUENCE = block("x"), block("y")  # of a block: its entry after the first, and its sequence


@dataclass(frozen=True)
class Step:
    """A call as the reference has it: the parameters, the tensors, how many entries are asked for, and what is known.

    ``sliced``: whether a block has some of the channels.
    """

    cfg: Config
    x: Any
    entries: Any
    known: Facts
    sliced: bool

    @classmethod
    def of(cls, cfg: Config, given: Mapping[str, SymbolicTensor], known: Facts, *, sliced: bool) -> Step:
        """Return the call on what a kernel is given. Of what it is not given, the reference asks sizes alone."""
        kv = given["kv"]
        sizes = {"ape": kv.new_zeros(cfg.ratio, cfg.wide), "norm_weight": kv[0, 0, : cfg.D]}
        tensors: dict[str, Any] = {**dict.fromkeys(reference.Step._fields, kv), **sizes, **given}
        x = reference.Step(*(tensors[name] for name in reference.Step._fields))
        return cls(cfg, x, x.T if cfg.few else Extent(nf.variable("T")), known, sliced)

    @cached_property
    def given(self) -> Any:
        """The candidates of entries as the reference has them."""
        return reference.candidates(self.x, self.entries)

    @cached_property
    def places(self) -> Any:
        """Where entries go."""
        return reference.places_of_entries(self.x, self.entries)

    @cached_property
    def candidates(self) -> dict[str, Abbreviation]:
        """Values and logits of candidate n of entry i of sequence b, by what they are read from.

        Where there is none, the value is 0 and the logit -inf. Of more than a few, those alone are loaded that an entry needs
        which is written.
        """
        values, logits, there = self.given

        def of(tensor: Any, none: Value, b: Form, i: Form, n: Form, c: Form) -> Value:
            return extended.select(there.at(b, i, n, ZERO), tensor.value(b, i, n, c), none)

        def where(b: Form, i: Form, n: Form, c: Form) -> Form:
            return ONE if self.cfg.few else self.places.written.at(b, i)

        absent = extended.negative(extended.INFINITY)
        return {
            "kv": Abbreviation("value", partial(of, values, Value(ZERO)), where),
            "gate": Abbreviation("logit", partial(of, logits, absent), where),
        }

    def abbreviated(self, place: tuple[Form, ...], value: Value) -> tuple[Abbreviation, tuple[Form, ...]] | None:
        """Return which candidate a block loads into that place of a fragment, if what it stores is of a row of the call."""
        reads = (nf.atom_of(n) for n in nf.support(value.form))
        channels = {a.buffer: a.index[-1] for a in reads if isinstance(a, nf.Read) and a.buffer in ROWS}
        if len(channels) != 1:
            return None
        ((name, channel),), (n, t, j), cfg = channels.items(), place, self.cfg
        if cfg.few and self.known.holds(nf.nonnegative(channel - (cfg.wide - cfg.D))):  # of its own block
            n = n + (cfg.candidates - cfg.ratio)
        return self.candidates[name], (SEQUENCE, ENTRY, n, self.first + self.lanes[1] * t + j)

    @property
    def lanes(self) -> tuple[int, int]:
        """How many threads share out the channels of a block, and how many each has."""
        return (LANES, WIDTH) if self.sliced else (self.cfg.threads, self.cfg.width)

    @property
    def first(self) -> Form:
        """The first channel of a block."""
        return block("z") * (LANES * WIDTH) if self.sliced and self.cfg.D > LANES * WIDTH else ZERO

    def pooled(self) -> Any:
        """Return what the reference pools of any candidates."""
        shape = self.x.kv.form_shape[0], tensor(self.entries).at(), self.cfg.candidates, self.cfg.D
        of: list[Any] = [SymbolicTensor(shape, self.candidates[name]) for name in ROWS]
        values, logits = of
        return weighted(values, logits, self.given.there).total

    def variables(self, **extents: int) -> list[Form]:
        """Return fresh variables below these."""
        found = [nf.fresh(name) for name in extents]
        for variable, extent in zip(found, extents.values(), strict=True):
            self.known.bound(variable, nf.form(extent))
        return found


def compared(cfg: Config, contract: Contract) -> Compare:
    """Return the comparison of what a kernel writes with the reference."""

    def compare(kernel: Any, known: Facts) -> Compared:
        with deciding(known), nf.tiled(cfg.D, cfg.width):
            given = symbolic_inputs(kernel, contract)
            step = Step.of(cfg, given, known, sliced="pooled" in contract.updated)
            execution = execute(kernel, facts=known, reading=partial(Abbreviating, step.abbreviated))
            equations = [*execution.equations, *_grid(step, "table" in given)]
            if "pooled" in contract.updated:
                equations += _pooled(step, execution)
            if "cache" in contract.updated:
                equations += _entries(step, execution, given["pooled"] if "pooled" in given else step.pooled())
            if "state" in contract.updated:
                equations += _rows(step, execution, entries="table" in given)
            return execution, equations

    return compare


def _pooled(step: Step, execution: Execution) -> Iterator[Equation]:
    """Yield that what is pooled is the reference's, of each entry that is written and of no other."""
    yield from execution.compare("pooled", step.pooled().value)
    for write in execution.writes.get("pooled", []):
        b, i, _ = write.index
        written = step.places.written.at(b, i)
        with step.known.assuming(*write.path):
            yield Equation(f"entry {i} of {b} is written", step.known.holds(written), written, ONE, write.site)
    t, j = step.variables(t=LANES, j=WIDTH)
    index = SEQUENCE, ENTRY, step.first + WIDTH * t + j
    yield is_written(execution, "pooled", index, (t, j), step.places.written.at(SEQUENCE, ENTRY))


def _entries(step: Step, execution: Execution, pooled: Any) -> Iterator[Equation]:
    """Yield that the entries of what was pooled are written into the cache, each in its place, and nothing else."""
    cfg = step.cfg
    out: Any = reference.entries(pooled.to(BF16), step.x, cfg.eps, BF16)
    yield from execution.compare("cache", lambda *index: out.value(SEQUENCE, ENTRY, index[-1]))
    for write in execution.writes.get("cache", []):
        yield _placed("cache", step, write, step.places, (SEQUENCE, ENTRY, write.index[-1]))
    still, width = cfg.threads - cfg.turning, cfg.width
    t, j = step.variables(t=still, j=width)
    u, k = step.variables(t=cfg.turning, k=width // 2)
    channels = [(width * t + j, (t, j)), *((width * (still + u) + 2 * k + h, (u, k)) for h in (0, 1))]
    for c, steps in channels:
        index = step.places.outer.at(SEQUENCE, ENTRY), step.places.inner.at(SEQUENCE, ENTRY), c
        yield is_written(execution, "cache", index, steps, step.places.written.at(SEQUENCE, ENTRY))


def _rows(step: Step, execution: Execution, entries: bool) -> Iterator[Equation]:
    """Yield that rows of the call are kept in the state, each in its place, and nothing else.

    A block has those of the tokens of an entry's block after the call's first token, or one, from the call's last on.
    """
    places: Any = reference.places_of_rows(step.x)
    for write in execution.writes.get("state", []):
        read = single(write.value.form)
        if not isinstance(read, nf.Read) or read.buffer not in ROWS or write.value.finite is not ONE:
            yield Equation("what a state keeps is of a row of the call", False, write.value.form, ZERO, write.site)
            continue
        b, q, c = read.index
        yield _placed("state", step, write, places, (b, q, nf.form(ROWS.index(read.buffer)), c))
    S, q = step.x.kv.form_shape[1], nf.fresh("q")
    step.known.bound(q, S)
    blocks, of = step.known.below[nf.number(ENTRY)], nf.floordiv(q, step.cfg.ratio) if entries else S - 1 - q
    with step.known.assuming(places.written.at(SEQUENCE, q)):
        there = step.known.holds(nf.nonnegative(of) * nf.nonnegative(blocks - 1 - of))
    yield Equation("each row that is kept is of a block", there, of, blocks)
    for row, steps in _rows_of_block(step) if entries else [(S - 1 - ENTRY, ())]:
        yield from _kept(step, execution, places, row, steps)


def _rows_of_block(step: Step) -> Iterator[tuple[Form, tuple[Form, ...]]]:
    """Yield the rows of a block that makes an entry, and the steps of loops by which they are kept."""
    ratio = step.cfg.ratio
    if step.cfg.few:
        yield from ((ratio * ENTRY + r, ()) for r in range(ratio))
        return
    for start in range(0, ratio, GROUPS):
        (r,) = step.variables(r=min(GROUPS, ratio - start))
        yield ratio * ENTRY + start + r, (r,)


def _kept(step: Step, execution: Execution, places: Any, q: Form, steps: tuple[Form, ...]) -> Iterator[Equation]:
    """Yield that a block keeps its channels of row q, if that is one of the call that is kept."""
    t, j = step.variables(t=step.lanes[0], j=step.lanes[1])
    where = places.written.at(SEQUENCE, q), nf.nonnegative(step.x.kv.form_shape[1] - 1 - q)
    for n, half in itertools.product(range(len(ROWS)), range(step.cfg.halves)):
        c = half * step.cfg.D + step.first + step.lanes[1] * t + j
        index = places.outer.at(SEQUENCE, q), places.inner.at(SEQUENCE, q), nf.form(n), c
        yield is_written(execution, "state", index, (*steps, t, j), *where)


def _placed(output: str, step: Step, write: Write, places: Any, of: tuple[Form, ...]) -> Equation:
    """Return that a write is of where row n of sequence b goes, which the reference writes: b, n and the further indices."""
    b, n, *others = of
    wanted = places.outer.at(b, n), places.inner.at(b, n), *others
    with step.known.assuming(*write.path):
        right = step.known.holds(places.written.at(b, n)) and all(map(step.known.same, write.index, wanted))
    statement = f"{output}[{', '.join(map(str, write.index))}] is where the reference writes row {n} of {b}"
    return Equation(statement, right, nf.apply(output, *write.index), nf.apply(output, *wanted), write.site)


def _grid(step: Step, entries: bool) -> Iterator[Equation]:
    """Yield that there are blocks of all sequences, of all channels, and of all entries that may be written."""
    sequences = step.x.kv.form_shape[0]
    parts = [] if step.first is ZERO else [(block("z"), nf.form(step.cfg.D // (LANES * WIDTH)))]
    made = [(ENTRY, tensor(step.x.T).at())] if entries else []
    for index, extent in ((SEQUENCE, sequences), *parts, *made):
        found = step.known.below[nf.number(index)]
        yield Equation(f"{index} is below {extent}", step.known.same(found, extent), found, extent)
