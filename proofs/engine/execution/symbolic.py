"""Symbolic execution of a kernel at the tile level: the semantics read with normal forms.

The values are those of the extended reals: rounding, overflow of floats and the order of additions are not modelled, and
the elements of float inputs are taken to be finite, but for inputs of which the kernel uses only the bits. Accesses are
taken to be in bounds, and each output element to be written by one thread only; other layers prove both. All blocks,
threads and iterations of a parallel loop are one symbolic one. A sequential loop is unrolled if its extent is constant,
or cut by an ``Invariant``.

A buffer in shared memory, or a fragment, may be used by explicit threads in their own lane only: where one dimension of
every index is the thread variable itself. A buffer of the kernel that is both read and written in global memory is
rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..forms import normal_form as nf
from ..forms.entailment import Facts
from ..forms.extended import Value
from ..forms.normal_form import Form
from ..semantics.semantics import Machine
from .invariants import Invariant
from .outcome import Execution as Execution
from .symbols import Symbols
from .symbols import block as block
from .symbols import thread as thread


def execute(
    prim_func: Any,
    *,
    sizes: Mapping[str, Form] | None = None,
    invariants: Mapping[str, Invariant] | None = None,
    facts: Facts | None = None,
    raw: Sequence[str] = (),
) -> Execution:
    """Run a kernel on symbolic inputs: element ``x[i, j]`` of an input is the atom ``read("x", i, j)``.

    Args:
        prim_func: the kernel, as its factory returns it or after the launch has been materialised.
        sizes: values for symbolic dimensions; a dimension without one is a natural variable of its own name.
        invariants: for loops to be cut, by loop name (``semantics.serial_loops``).
        facts: what the contract says of the sizes and of integer inputs.
        raw: float inputs of which the kernel uses only the bits; their elements may be any float.

    Raises:
        Unsupported: the kernel is outside of what is modelled; also a read of what may not have been written, or a
            value that may be NaN.
    """
    execution = Execution(facts if facts is not None else Facts(), frozenset(raw))
    dims = {d.name: nf.variable(d.name) for b in prim_func.buffer_map.values() for d in b.shape if hasattr(d, "name")}
    values = {name: Value(form) for name, form in {**dims, **(sizes or {})}.items()}
    algebra = Symbols(execution, invariants or {})
    machine = Machine(algebra, prim_func, values)
    if unknown := set(invariants or {}) - set(machine.loops.values()):
        raise ValueError(f"no loop is named {sorted(unknown)}; there are {sorted(machine.loops.values())}")
    machine.parameters()
    machine.run()
    execution.externs, execution.unmodelled = machine.externs, frozenset(machine.waits)
    return execution
