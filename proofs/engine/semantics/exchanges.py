"""What words, exchanges within a warp and atomic additions mean, for the readings that know them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import tirx

from ..base.errors import Unsupported
from ..compiler.nodes import called
from ..compiler.source_text import describe
from .algebra import Binary, Memory, V
from .semantics import Machine

_OF_BITS: Mapping[str, Binary] = {"and": "bitand", "or": "bitor", "xor": "bitxor"}
_WORDS: Mapping[str, Binary] = {
    **{f"tirx.bitwise_{name}": operator for name, operator in _OF_BITS.items()},
    **{"tirx.shift_left": "shl", "tirx.shift_right": "shr"},
}
_EXCHANGES: tuple[Binary, ...] = ("shfl", "shfl_up", "shfl_down", "shfl_xor")
_SHUFFLES = {f"tl.{name}_sync": name for name in _EXCHANGES}
_WARP, _ALL = 32, 2**32 - 1


class ExchangeMachine(Machine[V]):
    """Runs a kernel whose threads exchange words."""

    def _function(self, e: Any, dtype: str) -> V:
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
        self.atomic_add(memory, index, self._cast(self.evaluate(value), str(value.dtype), memory.dtype))

    def atomic_add(self, memory: Memory[V], index: Sequence[V], value: V) -> None:
        """Add to an element, one thread after the other; a reading says how."""
        raise NotImplementedError
