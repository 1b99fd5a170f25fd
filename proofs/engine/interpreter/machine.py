"""What only the numeric reading runs: operations on words, exchanges within a warp, atomic additions, loops until a condition.

The symbolic reading refuses them by name, since ``semantics`` does not know them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from tvm import tirx

from ..base.errors import Unsupported
from ..compiler.nodes import called
from ..compiler.source_text import describe
from ..semantics.algebra import Binary
from ..semantics.semantics import Machine
from .lanes import Lanes

_OF_BITS: Mapping[str, Binary] = {"and": "bitand", "or": "bitor", "xor": "bitxor"}
_WORDS: Mapping[str, Binary] = {
    **{f"tirx.bitwise_{name}": operator for name, operator in _OF_BITS.items()},
    **{"tirx.shift_left": "shl", "tirx.shift_right": "shr"},
}
_EXCHANGES: tuple[Binary, ...] = ("shfl", "shfl_up", "shfl_down", "shfl_xor")
_SHUFFLES = {f"tl.{name}_sync": name for name in _EXCHANGES}
_WARP, _ALL = 32, 2**32 - 1


class NumericMachine(Machine[Tensor]):
    """Runs a kernel on numbers."""

    def __init__(self, lanes: Lanes, prim_func: Any, sizes: dict[str, Tensor]) -> None:
        super().__init__(lanes, prim_func, sizes)
        self._lanes = lanes

    def execute(self, statement: Any) -> None:
        """Run one statement."""
        if isinstance(statement, tirx.While):
            self._while(statement)
        else:
            super().execute(statement)

    def _while(self, statement: Any) -> None:
        condition = self.evaluate(statement.condition)
        if self.algebra.decided(condition) is not False:
            with self.algebra.guard(condition):
                self.execute(statement.body)
                self._while(statement)

    def _function(self, e: Any, dtype: str) -> Tensor:
        name = called(e)
        if name in _WORDS:
            return self.algebra.binary(_WORDS[name], self.evaluate(e.args[0]), self.evaluate(e.args[1]), dtype)
        if name not in _SHUFFLES:
            return super()._function(e, dtype)
        mask, value, by, width = e.args  # between the lanes of a whole warp
        if [int(n) if isinstance(n, tirx.IntImm) else None for n in (mask, width)] != [_ALL, _WARP]:
            raise Unsupported(f"an exchange within a part of a warp: {describe(e)}")
        return self.algebra.binary(_SHUFFLES[name], self.evaluate(value), self.evaluate(by), dtype)

    def _call(self, call: Any) -> None:
        if called(call) == "tl.atomic_add_elem_op" and self._written is None:
            self._atomic_add(call)
        else:
            super()._call(call)

    def _atomic_add(self, call: Any) -> None:
        pointer, value = call.args
        target = pointer.args[0] if called(pointer) == "tl.access_ptr" else None
        if not isinstance(target, tirx.BufferLoad):
            raise Unsupported(f"an atomic addition: {describe(call)}")
        memory, index = self._place(target.buffer, [self.evaluate(i) for i in target.indices])
        self._lanes.atomic_add(memory, index, self._cast(self.evaluate(value), str(value.dtype), memory.dtype))
