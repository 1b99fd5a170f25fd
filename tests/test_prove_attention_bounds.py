"""The attention kernels: in bounds whatever the indices hold, every result written once; wrong ones refuted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
from tilelang import tvm

from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.csa import csa_fwd
from lemmata.kernels.hca import hca_fwd
from lemmata.kernels.online_softmax import Config, combine, configure
from lemmata.proofs import attention
from lemmata.proofs.engine import extract
from lemmata.proofs.engine.bounds import bounds
from lemmata.proofs.engine.conditions import Condition
from lemmata.proofs.engine.coverage import coverage
from lemmata.proofs.engine.hypotheses import Hypotheses
from lemmata.proofs.engine.mutate import Mutant, mutants
from lemmata.proofs.engine.races import within_blocks
from lemmata.proofs.engine.solve import solve
from lemmata.proofs.engine.verify import verify
from lemmata.reference.csa import CSA
from lemmata.reference.hca import HCA

tirx = tvm.tirx
CONTRACTS = {csa_fwd: CSA, hca_fwd: HCA}
SMALL = configure(16, 64, 100, 0.125, 128, 1)
HALVES = configure(128, 64, 128, 0.125, 128, 1)


def hypotheses(factory: Callable[[Config], Any], cfg: Config) -> Hypotheses:
    """What may be assumed of a call."""
    statics = attention.statics(cfg, "H", "D", "window", "scale", "ratio")
    return Hypotheses.of(attention.contract(CONTRACTS[factory], cfg), statics, factory(cfg))


def wrong(cfg: Config, error: str) -> Any:
    """The last of csa's mutants with this in its name: the one in the loop, where there are several."""
    *_, last = (m.prim_func for m in of_csa(cfg) if error in m.name)
    return last


@cache
def of_csa(cfg: Config) -> list[Mutant]:
    """All mutants."""
    return mutants(csa_fwd(cfg))


def refuted(conditions: Iterable[Condition], about: str) -> list[Condition]:
    """Of the conditions about some memory, those that are refuted."""
    return [c for c in conditions if about in c.statement and solve(c).verdict == "refuted"]


@pytest.mark.parametrize(
    ("factory", "cfg"),
    [
        (csa_fwd, configure(64, 512, 128, 512**-0.5, 1, 1)),
        (hca_fwd, configure(16, 512, 128, 512**-0.5, 128, 1)),
    ],
    ids=["csa", "hca of 16 heads"],
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
    for layer, conditions in zip(report.layers, (400, 25), strict=True):
        assert layer.conditions > conditions
    asynchronous = {"tl.ptx_cp_async", "tirx.ptx_wait_group", "tl.fence_proxy_async"}
    assert asynchronous <= set(report.layers[0].unmodelled), "what is not modelled is named"
    assert not asynchronous & set(report.layers[1].unmodelled), "L1 knows when a copy has arrived"


def test_indices_may_be_anything() -> None:
    """The contract says nothing of them, so that every int32 is admitted, and every length of a sequence."""
    assert hypotheses(csa_fwd, SMALL).ranges["indices"] == (None, None)
    assert CSA.sizes["T"].low == CSA.sizes["K"].low == CSA.sizes["P"].low == 0


def test_narrow_heads_admit_so_many_queries_that_their_rows_wrap() -> None:
    cfg = configure(8, 64, 32, 0.125, 128, 1)
    found = refuted(bounds(hca_fwd(cfg), hypotheses(hca_fwd, cfg), PASS_CONFIGS).conditions, "R_1")
    assert {c.kind for c in found} == {"overflow"}


WINDOW, COMPRESSED = "window_kv[b, rows[j], p * 64 + d]", "compressed_kv[b, rows[j], p * 64 + d]"
INSIDE = "rows[j] >= 0 and rows[j] < "
PLANTED = [  # of csa; the error, by a part of its name, and the memory that it accesses out of bounds
    pytest.param(f"dropped guard @ T.if_then_else({INSIDE}R_1, {WINDOW}, 0) -> ", "window_kv", id="any row of the window"),
    pytest.param(f"dropped guard @ T.if_then_else({INSIDE}T_1, {COMPRESSED}, 0) -> ", "compressed_kv", id="any entry"),
    pytest.param(f"dropped guard @ {INSIDE}T_1 -> rows[j] < T_1", "compressed_kv", id="entry -1"),
    pytest.param(f"dropped guard @ {INSIDE}T_1 -> rows[j] >= 0", "compressed_kv", id="an entry from T on"),
    pytest.param("off by one @ rows[j] < T_1 -> rows[j] <= T_1", "compressed_kv", id="entry T"),
    pytest.param(", indices[b, s, e * 32 + j], -1) -> indices[b, s, e * 32 + j]", "indices", id="indices from K on"),
    pytest.param("constant @ t % 2 -> t % 3", "ks", id="a third stage"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "memory"), PLANTED)
def test_accesses_out_of_bounds_are_refuted(error: str, memory: str) -> None:
    found = bounds(wrong(SMALL, error), hypotheses(csa_fwd, SMALL), PASS_CONFIGS)
    assert {c.kind for c in refuted(found.conditions, f" of {memory}")} == {"bounds"}


def test_entries_are_not_as_many_as_rows_of_the_window() -> None:
    """The guard of the gather with the length of the other tensor."""
    kernel = csa_fwd(SMALL)
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
    conditions = bounds(changed, hypotheses(csa_fwd, SMALL), PASS_CONFIGS).conditions
    assert refuted(conditions, "read of compressed_kv")
    assert not refuted(conditions, "read of window_kv")


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        ("constant @ bx // 2 -> bx // 3", {"uniqueness", "coverage"}),  # two blocks write the same query's results
        ("dropped operand @ bx % 2 * 64 -> 64", {"uniqueness", "coverage"}),  # and the same half of the heads
        ("grid @ for bx in 0:S * 2 -> for bx in 0:S * 2 - 1", {"coverage"}),
    ],
)
def test_results_written_twice_or_never_are_refuted(error: str, kinds: set[str]) -> None:
    found = coverage(wrong(HALVES, error), hypotheses(csa_fwd, HALVES), PASS_CONFIGS)
    assert {c.kind for c in refuted(found.conditions, "")} == kinds


@pytest.mark.parametrize("heads", [16, 64], ids=["mma", "wgmma"])
def test_weights_are_not_multiplied_before_all_are_stored(heads: int) -> None:
    """The barriers on both sides of the fence between: the compiler's, and the kernel's own."""
    cfg = configure(heads, 64, 128, 0.125, 128, 1)
    given = hypotheses(hca_fwd, cfg)
    device = extract.device(hca_fwd(cfg), guards=False, pass_configs=PASS_CONFIGS)

    def bare(seq: Any) -> Any:
        names = [getattr(getattr(getattr(s, "value", None), "op", None), "name", "") for s in seq.seq]
        at_fence = [any(n == "tl.fence_proxy_async" for n in names[max(i - 1, 0) : i + 2]) for i in range(len(names))]
        kept = zip(seq.seq, names, at_fence, strict=True)
        return tirx.SeqStmt([s for s, name, near in kept if not (near and name == "tirx.tvm_storage_sync")])

    changed = device.with_body(tirx.stmt_functor.ir_transform(device.body, None, bare, ["tirx.SeqStmt"]))
    assert not refuted(within_blocks(device, given).conditions, " of ps")
    assert any("write of ps" in c.statement for c in refuted(within_blocks(changed, given).conditions, "read of ps"))


def test_barriers_that_the_compiler_would_place_itself() -> None:
    """Each barrier that the kernel asks for may go: one is placed there all the same."""
    found = [m for m in of_csa(SMALL) if m.operator == "dropped barrier"]
    assert found
    for mutant in found:
        lowered = extract.device(mutant.prim_func, guards=False, pass_configs=PASS_CONFIGS)
        assert not refuted(within_blocks(lowered, hypotheses(csa_fwd, SMALL)).conditions, "")


def test_mutants_of_which_the_compiler_makes_the_same_code() -> None:
    """A loop over a fragment has the fragment's extent, whatever it says; another grid is another launch."""
    kernel = combine(configure(8, 64, 128, 0.125, 128, 5))
    by_name = {m.name: m.prim_func for m in mutants(kernel)}

    def same(change: str) -> bool:
        changed = next(f for name, f in by_name.items() if name.startswith(change))
        return extract.same_code(kernel, changed, pass_configs=PASS_CONFIGS)

    assert same("loop end @ for g in 0:5 -> for g in 0:6")
    assert not same("grid @ ")
