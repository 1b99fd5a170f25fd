"""What the numeric reading runs besides: operations on words, exchanges, atomic additions, and loops until a condition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from tvm import tirx

from ..semantics.algebra import Memory
from ..semantics.exchanges import ExchangeMachine
from .lanes import Lanes


class NumericMachine(ExchangeMachine[Tensor]):
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

    def atomic_add(self, memory: Memory[Tensor], index: Sequence[Tensor], value: Tensor) -> None:
        """Add to an element, one thread after the other."""
        self._lanes.atomic_add(memory, index, value)
