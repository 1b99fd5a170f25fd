"""The attention kernels: in bounds whatever the indices hold, every result written once; wrong ones refuted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import pytest
from tilelang import tvm

import lowering
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.combine import combine
from lemmata.kernels.csa import csa_fwd
from lemmata.kernels.hca import hca_fwd
from lemmata.kernels.sparse_attention_config import Config
from lemmata.proofs import attention
from lemmata.proofs.engine.base.conditions import Condition
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.guards.mutate import candidates
from lemmata.proofs.engine.guards.same_code import same_code
from lemmata.proofs.engine.layers.bounds import bounds
from lemmata.proofs.engine.layers.coverage import coverage
from lemmata.proofs.engine.smt.solve import solve
from lemmata.proofs.engine.verify import verify
from lemmata.reference.csa import CSA
from lemmata.reference.hca import HCA

tirx = tvm.tirx
exhaustive = pytest.mark.exhaustive  # lowering takes ten seconds, and each of these has a twin
CONTRACTS = {csa_fwd: CSA, hca_fwd: HCA}
SMALL = Config(16, 128, 100, 0.125)
HALVES = Config(128, 64, 128, 0.125)


def hypotheses(factory: Callable[[Config], Any], cfg: Config) -> Hypotheses:
    """What may be assumed of a call."""
    statics = attention.statics(cfg, "H", "D", "window", "scale", "ratio")
    return Hypotheses.of(attention.contract(CONTRACTS[factory], cfg), statics, factory(cfg))


def wrong(kernel: Any, error: str) -> Any:
    """The last of a kernel's mutants with this in its name."""
    *_, last = (m for m in candidates(kernel) if error in m.name)
    return last.make()


def wrong_everywhere(kernel: Any, error: str) -> Any:
    """A kernel with this mutation wherever it can be made."""
    while any(error in m.name for m in candidates(kernel)):
        kernel = wrong(kernel, error)
    return kernel


def refuted(conditions: Iterable[Condition], about: str) -> list[Condition]:
    """Return the refuted ones among the conditions about some memory."""
    return [c for c in conditions if about in c.statement and solve(c).verdict == "refuted"]


@pytest.mark.parametrize(
    ("factory", "cfg"),
    [
        (csa_fwd, Config()),
        (hca_fwd, SMALL),
        pytest.param(hca_fwd, Config(H=16), marks=exhaustive),
    ],
    ids=["csa", "hca", "hca of 16 heads"],
)
def test_in_bounds_and_written_once(factory: Callable[[Config], Any], cfg: Config) -> None:
    report = verify(
        factory(cfg),
        attention.contract(CONTRACTS[factory], cfg),
        statics=attention.statics(cfg, "H", "D", "window", "scale", "ratio"),
        layers=["L0", "L1"],
        pass_configs=PASS_CONFIGS,
    )
    assert report.holds, "\n".join(map(str, report.failures))
    inside, ordered = report.layers
    assert inside.conditions > 900
    assert ordered.conditions > 200
    asynchronous = {"tl.ptx_cp_async_barrier_noinc", "tl.mbarrier_wait_parity", "tl.fence_proxy_async"}
    assert asynchronous <= set(inside.unmodelled), "what is not modelled is named"
    assert not asynchronous & set(ordered.unmodelled), "L1 knows when a copy has arrived"


def test_indices_may_be_anything() -> None:
    """The contract says nothing of them, so that every int32 is admitted, and every length of a sequence."""
    assert hypotheses(csa_fwd, SMALL).ranges["indices"] == (None, None)
    assert CSA.sizes["T"].low == CSA.sizes["K"].low == CSA.sizes["P"].low == 0


def test_rows_do_not_wrap_where_there_may_be_most_queries() -> None:
    conditions = bounds(hca_fwd(SMALL), hypotheses(hca_fwd, SMALL), PASS_CONFIGS).conditions
    assert any(c.kind == "overflow" and "base[0]" in c.statement for c in conditions)
    assert not refuted(conditions, "base[0]")


WINDOW = "window_kv[bz, rows[j], p * 64 + d]"
INSIDE = "rows[j] >= 0 and rows[j] < "
HALF = "dropped operand @ (bx + i * 132) % 2 * 64 -> 64"  # two blocks write the same half of the heads
LESS = "grid @ for bx in 0:T.min(S, 66) * 2 -> for bx in 0:T.min(S, 66) * 2 - 1"
PLANTED = {  # of csa; the error, by a part of its name, and the memory that it accesses out of bounds
    f"d < 64 and ({INSIDE}R_1), {WINDOW}, 0) -> {WINDOW}": "window_kv",  # any row
    f"dropped guard @ {INSIDE}T_1 -> rows[j] < T_1": "compressed_kv",  # entry -1
    "slot], -1) -> indices[bz, (bx + i * 132) // 2, slot]": "indices",  # those from K on
    "index+1 @ rows_shared[1, j] = ": "rows_shared",  # a third half
}
LONGER = {f"dropped guard @ {INSIDE}T_1 -> rows[j] >= 0": "compressed_kv"}  # an entry from T on


def miswritten(kernel: Any) -> set[str]:
    """What is refuted of the elements that the kernel writes."""
    found = coverage(kernel, hypotheses(csa_fwd, HALVES), PASS_CONFIGS)
    return {c.kind for c in refuted(found.conditions, "")}


@pytest.mark.parametrize("planted", [PLANTED, pytest.param(LONGER, marks=exhaustive)], ids=["each", "from T on"])
def test_accesses_out_of_bounds_are_refuted_and_results_never_written(planted: dict[str, str]) -> None:
    """All errors stand in one kernel, since lowering it takes long: each is of other memory, of which nothing else is asked.

    That of the grid leaves blocks out, and accesses nothing more.
    """
    kernel = wrong(csa_fwd(HALVES), LESS)
    for error in planted:
        kernel = wrong(kernel, error)
    found = bounds(kernel, hypotheses(csa_fwd, HALVES), PASS_CONFIGS).conditions
    for memory in planted.values():
        assert {c.kind for c in refuted(found, f" of {memory}")} == {"bounds"}, memory
    assert miswritten(kernel) == {"coverage"}


def test_entries_are_not_as_many_as_rows_of_the_window_and_no_half_is_written_twice() -> None:
    """The guard of the gather with the length of the other tensor; and blocks which all write the same heads."""
    kernel = wrong_everywhere(csa_fwd(HALVES), HALF)
    shapes = {buffer.name: buffer.shape for buffer in kernel.buffer_map.values()}
    other = {shapes["compressed_kv"][1]: shapes["window_kv"][1]}

    def confused(e: Any) -> Any:
        if e.op.name != "tirx.if_then_else" or getattr(e.args[1], "buffer", None) is None:
            return None
        condition, read, otherwise = e.args
        if read.buffer.name != "compressed_kv":
            return None
        return tirx.Call(e.dtype, e.op, [tirx.stmt_functor.substitute(condition, other), read, otherwise])

    changed = kernel.with_body(tirx.stmt_functor.ir_transform(kernel.body, None, confused, ["tirx.Call"]))
    conditions = bounds(changed, hypotheses(csa_fwd, HALVES), PASS_CONFIGS).conditions
    assert refuted(conditions, "read of compressed_kv")
    assert not refuted(conditions, "read of window_kv")
    assert miswritten(changed) == {"uniqueness", "coverage"}


@exhaustive
def test_results_of_two_blocks_of_one_query_are_refuted() -> None:
    kernel = wrong_everywhere(csa_fwd(HALVES), "constant @ (bx + i * 132) // 2 -> (bx + i * 132) // 3")
    assert miswritten(kernel) == {"uniqueness", "coverage"}


def test_mutants_of_which_the_compiler_makes_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over a fragment has the fragment's extent, whatever it says; another grid is another launch."""
    monkeypatch.setattr(lowering, "SLOW", inf)  # IR that was read from a file is not that which was made
    kernel = combine(Config(8, 64, splits=7))

    def same(change: str) -> bool:
        changed = next(m.make() for m in candidates(kernel) if m.name.startswith(change))
        return same_code(kernel, changed, pass_configs=PASS_CONFIGS)

    assert same("loop end @ for g in 0:7 -> for g in 0:8")
    assert not same("grid @ ")
