"""What the compiler prints synchronises as the IR that is proved does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from lemmata.kernels import indexer, topk_check
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.operators import OPERATORS
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.compiler.extract import Lowered, lower
from lemmata.proofs.engine.compiler.instructions import INSTRUCTIONS
from lemmata.proofs.engine.emitted import cuda, ir
from lemmata.proofs.engine.emitted.comparison import difference
from lemmata.proofs.suite import proofs

exhaustive = pytest.mark.exhaustive
SLOW = "csa_bwd", "hca_fwd", "hca_bwd", "indexer_scores", "indexer_scores_bwd_q", "indexer_scores_bwd_k", "topk_check"
CSA = next(OPERATORS["csa"].shipped())
SCORES = next(k for k in OPERATORS["indexer"].shipped() if k[0] is indexer.indexer_scores_fp8)


def shipped() -> Iterator[Any]:
    """Every kernel that calls of DeepSeek-V4 launch: at each run one of each factory that is not slow to lower."""
    kernels = [kernel for operator in OPERATORS.values() for kernel in operator.shipped()]
    seen = set(SLOW)
    for factory, config in dict.fromkeys([*kernels, (topk_check.topk_check, topk_check.Config())]):
        marks = [exhaustive] if factory.__name__ in seen else []
        seen.add(factory.__name__)
        yield pytest.param(factory, config, id=f"{factory.__name__} {config}", marks=marks)


@cache
def lowered(factory: Any, config: Any) -> Lowered:
    return lower(factory(config), guards=False, pass_configs=PASS_CONFIGS)


def differs(low: Lowered, text: str) -> str | None:
    return difference(ir.skeleton(low.device), cuda.skeleton(text))


@pytest.mark.parametrize(("factory", "config"), list(shipped()))
def test_what_is_printed_synchronises_as_what_is_proved(factory: Any, config: Any) -> None:
    low = lowered(factory, config)
    assert differs(low, low.cuda) is None


@exhaustive
@pytest.mark.parametrize("op", OPERATORS)
def test_so_does_every_kernel_with_a_proof(op: str) -> None:
    for proof in proofs(op):
        low = lower(proof.kernel, guards=False, pass_configs=proof.pass_configs)
        assert differs(low, low.cuda) is None, proof.name


LINE = r"(?m)^ *{}\n"
PLANTED = {
    "the parity of a wait flipped": (
        CSA,
        r"(keys_ready\[2\]\.wait)\((.+)\);",
        r"\1((1 - \2));",
        "(keys_ready[2], (1 - ",
    ),
    "a wait removed": (CSA, LINE.format(r"rows_ready\[1\]\.wait\(.*\);"), "", "mbarrier.wait(rows_ready[1]"),
    "the wait of another barrier": (CSA, r"keys_free\[3\]\.wait", "keys_free[2].wait", "keys_free[3]"),
    "the wait of another array": (CSA, r"rows_ready\[1\]\.wait", "keys_free[1].wait", "mbarrier.wait(rows_ready[1]"),
    "a count of arrivals changed": (CSA, r"keys_free\[1\]\.init\(128\)", "keys_free[1].init(256)", "keys_free[1], 256"),
    "an arrival removed": (CSA, LINE.format(r"weights_ready\[1\]\.arrive\(\);"), "", "mbarrier.arrive"),
    "a proxy fence removed": (CSA, LINE.format(r"tl::fence_proxy_async\(\);"), "", "has fence.proxy.async()"),
    "a fence of registers removed": (CSA, LINE.format(r"tl::warpgroup_arrive\(\);"), "", "has wgmma.fence()"),
    "products awaited too late": (CSA, r"wait_wgmma<0>", "wait_wgmma<1>", "wgmma.wait_group(1)"),
    "a copy that counts elsewhere": (CSA, r"noinc\(q_ready\[0\]\)", "noinc(keys_ready[0])", "what was emitted has"),
    "a barrier of fewer threads": (CSA, r"partial\(3, 128\)", "partial(3, 64)", "bar.sync(3, 64)"),
    "other registers": (CSA, r"reg_dealloc<\d+>", "reg_dealloc<24>", "setmaxnreg.dec(24)"),
    "a role of fewer threads": (CSA, r"\) < 256\) \{", ") < 192) {", "< 192)"),
    "a loop that ends early": (CSA, r"; t < (.+); \+\+t", r"; t < (\1 - 1); ++t", "- 1)"),
    "a commit moved past a wait": (
        SCORES,
        r"( *tl::cp_async_commit\(\);\n)( *tl::cp_async_wait<3>\(\);\n)",
        r"\2\1",
        "the IR has cp.async.commit_group(), what was emitted has cp.async.wait_group(3)",
    ),
    "more groups left under way": (SCORES, r"cp_async_wait<2>", "cp_async_wait<3>", "cp.async.wait_group(3)"),
    "a barrier of all removed": (SCORES, LINE.format(r"__syncthreads\(\);"), "", "bar.sync(0)"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_an_error_in_what_is_printed_is_named(name: str) -> None:
    kernel, pattern, replacement, named = PLANTED[name]
    low = lowered(*kernel)
    wrong, count = re.subn(pattern, replacement, low.cuda, count=1)
    assert count == 1
    found = differs(low, wrong)
    assert found
    assert named in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "line",
    [
        "__syncwarp();",
        'asm volatile("bar.sync 1;");',
        "keys_ready[0].expect_transaction(128);",
        "tl::tma_load(k_desc, keys_ready[0], k_shared, 0, 0);",
        "keys_free[0].arrive(); keys_free[0].arrive();",
        "while (true) {",
    ],
)
def test_a_line_that_may_synchronise_is_refused_if_it_is_not_known(line: str) -> None:
    low = lowered(*CSA)
    with pytest.raises(Unsupported, match="emitted code"):
        cuda.skeleton(low.cuda.replace("tl::fence_barrier_init();", f"tl::fence_barrier_init();\n  {line}"))


def test_every_instruction_that_the_proofs_order_by_is_in_the_skeleton() -> None:
    """Those which only make addresses are not."""
    text = "\n".join(
        pattern.pattern if isinstance(pattern, re.Pattern) else str(pattern) for pattern in vars(ir).values()
    )
    addresses = {name for name, does in INSTRUCTIONS.items() if does in ("describe", "advance")}
    assert addresses
    special = {"tirx.tvm_storage_sync", "tl.set_max_nreg", "tl.ptx_cp_async", "tl.ptx_wgmma_ss", "tl.ptx_wgmma_rs"}
    missing = {name for name in INSTRUCTIONS if name not in text} - addresses - special
    assert missing == {"tl.warpgroup_fence_operand"}  # it binds nvcc, which makes no instruction of it
