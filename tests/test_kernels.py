"""What the compiler makes of every shipped kernel."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tilelang.language as T

from lemmata.bench.resources import read_report, resources
from lemmata.kernels import sinkhorn
from lemmata.kernels.build import PASS_CONFIGS

SHIPPED = {
    f"{factory.__name__} n={n} iterations={iterations}": factory(sinkhorn.Config(n, iterations))
    for factory in (sinkhorn.sinkhorn_fwd, sinkhorn.sinkhorn_bwd)
    for n, iterations in ((2, 20), (3, 20), (4, 1), (4, 20), (5, 20), (6, 20), (7, 20), (8, 20), (8, 100))
}


def test_no_register_is_spilled() -> None:
    for name, found in resources(SHIPPED, PASS_CONFIGS).items():
        assert (found.stack_bytes, found.spill_store_bytes, found.spill_load_bytes) == (0, 0, 0), name
        assert 0 < found.registers <= 255, name


@dataclass(frozen=True)
class _Greedy:
    live: int = 400


def _greedy(cfg: _Greedy):  # type: ignore[no-untyped-def]
    @T.prim_func
    def greedy(x: T.Tensor((cfg.live, 32), "float32"), y: T.Tensor((cfg.live, 32), "float32")):
        with T.Kernel(1, threads=32):
            lane = T.get_thread_binding()
            held = T.alloc_local((cfg.live,), "float32")
            total = T.alloc_var("float32")
            total = 0
            for i in T.unroll(cfg.live):
                held[i] = x[i, lane]
                total += held[i] * held[i]
            for i in T.unroll(cfg.live):
                y[i, lane] = held[i] * total

    return greedy


def test_a_kernel_that_spills_is_seen() -> None:
    (found,) = resources({"greedy": _greedy(_Greedy())}, PASS_CONFIGS).values()
    assert found.spill_store_bytes + found.stack_bytes > 0


def test_a_report_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="ptxas"):
        read_report("all is well")
