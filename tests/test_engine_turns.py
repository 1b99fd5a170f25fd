"""Warps with roles are read as one program: in an order in which the roles may run, if there is one."""

from __future__ import annotations

from typing import Any

import pytest
import tilelang.language as T
import torch

from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.interpreter.interpret import interpret
from lemmata.proofs.engine.semantics.semantics import Machine

F32 = "float32"


def handed_on(*, room: int = 1, early: int = 0, late: int = 0, under: bool = False, foreign: bool = False) -> Any:
    """y[i] = Σ_t x[t, i]: one role brings a row at a time, the other one adds.

    Args:
        room: how many iterations ago the row was added that the bringer waits for.
        early, late: rows that the bringer, the adder leave out.
        under: the bringer arrives under a condition.
        foreign: the bringer clears the sum, in registers of its own threads.
    """
    n = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((n, 32), F32), y: T.Tensor((32,), F32)):
        with T.Kernel(1, threads=64):
            row = T.alloc_shared((32,), F32)
            total = T.alloc_fragment((32,), F32)
            full = T.alloc_barrier(32)
            empty = T.alloc_barrier(32)
            thread = T.get_thread_binding()
            if thread < 32:
                if foreign:
                    T.fill(total, 0)
                for t in T.serial(n - early):
                    T.barrier_wait(empty, (t + room) % 2)
                    T.copy(x[t, :], row)
                    if under:
                        if t < 1000:
                            T.barrier_arrive(full)
                    else:
                        T.barrier_arrive(full)
            else:
                T.fill(total, 0)
                for t in T.serial(n - late):
                    T.barrier_wait(full, t % 2)
                    for i in T.Parallel(32):
                        total[i] += row[i]
                    T.barrier_arrive(empty)
                T.copy(total, y)

    return kernel


@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_roles_take_turns(rows: int) -> None:
    x, y = torch.randn(rows, 32), torch.full((32,), torch.nan)
    interpret(handed_on(), x, y)
    torch.testing.assert_close(y, x.sum(0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"room": 0}, "wait for one another"),
        ({"early": 1}, "different ranges"),
        ({"late": 1}, "different ranges"),
        ({"under": True}, "under a condition"),
        ({"foreign": True}, "registers that several roles use: total"),
    ],
)
def test_roles_that_do_not_meet_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        interpret(handed_on(**wrong), torch.zeros(3, 32), torch.zeros(32))


def test_the_loops_of_roles_are_one() -> None:
    assert set(Machine(None, handed_on(), {}).loops.values()) == {"t"}  # type: ignore[arg-type]
