"""What TileLang prints, and what nvcc makes of it, synchronises as the IR that is proved does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from claims import proofs
from lemmata.bench.resources import cuda_source
from lemmata.bench.resources import ptx as compiled
from lemmata.kernels import indexer, topk_check
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.operators import OPERATORS
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.compiler.extract import Lowered, lower
from lemmata.proofs.engine.compiler.instructions import INSTRUCTIONS
from lemmata.proofs.engine.emitted import cuda, ir
from lemmata.proofs.engine.emitted.comparison import difference
from lemmata.proofs.engine.emitted.paths import strays
from lemmata.proofs.engine.emitted.ptx import Step, flow
from lemmata.proofs.engine.emitted.skeleton import Branch, Event, Loop, Name, Node, Skeleton

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
    assert differs(low, cuda.printed(low)) is None


def test_what_is_read_is_what_a_build_prints() -> None:
    factory, config = next(OPERATORS["sinkhorn"].shipped())
    assert cuda.printed(lowered(factory, config)) == cuda_source(factory(config), PASS_CONFIGS)


@cache
def made(factory: Any, config: Any) -> str:
    return compiled(cuda.printed(lowered(factory, config)))


def leaves(low: Lowered, text: str) -> str | None:
    return strays(ir.skeleton(low.device), flow(text))


@pytest.mark.parametrize(
    ("factory", "config"),
    [
        *(pytest.param(*k, id=k[0].__name__) for k in (CSA, SCORES)),
        *(pytest.param(*k.values, id=str(k.id), marks=exhaustive) for k in shipped()),
    ],
)
def test_every_path_through_ptx_is_one_through_what_is_proved(factory: Any, config: Any) -> None:
    assert leaves(lowered(factory, config), made(factory, config)) is None


@exhaustive
@pytest.mark.parametrize("op", OPERATORS)
def test_so_is_every_kernel_with_a_proof(op: str) -> None:
    for proof in proofs(op):
        low = lower(proof.kernel, guards=False, pass_configs=proof.pass_configs)
        assert differs(low, cuda.printed(low)) is None, proof.name
        assert leaves(low, compiled(cuda.printed(low))) is None, proof.name


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
    wrong, count = re.subn(pattern, replacement, cuda.printed(low), count=1)
    assert count == 1
    found = differs(low, wrong)
    assert found
    assert named in found
    assert "\n" not in found


def test_nothing_can_be_left_out_of_what_is_printed() -> None:
    """One in three of the lines that synchronise, each alone."""
    low = lowered(*CSA)
    proved, lines = ir.skeleton(low.device), cuda.printed(low).splitlines()
    synchronises = re.compile(
        r"\.(init|wait|arrive)\(|tl::(cp_async|mbarrier|warpgroup_[acrw]|wgmma|wait|fence|__sync|AllR)|__sync"
    )
    places = [at for at, line in enumerate(lines) if synchronises.search(line)][::3]
    assert len(places) > 30
    for at in places:
        assert difference(proved, cuda.skeleton("\n".join([*lines[:at], *lines[at + 1 :]]))), lines[at]


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
        cuda.skeleton(cuda.printed(low).replace("tl::fence_barrier_init();", f"tl::fence_barrier_init();\n  {line}"))


def test_every_instruction_that_the_proofs_order_by_is_in_the_skeleton() -> None:
    """Those which only make addresses are not; stores by TMA are refused."""
    text = "\n".join(
        pattern.pattern if isinstance(pattern, re.Pattern) else str(pattern) for pattern in vars(ir).values()
    )
    addresses = {name for name, does in INSTRUCTIONS.items() if does in ("describe", "advance")}
    assert addresses
    refused = {name for name in INSTRUCTIONS if "tma" in name}  # which no kernel that ships has
    special = {"tirx.tvm_storage_sync", "tl.set_max_nreg", "tl.ptx_cp_async", "tl.ptx_wgmma_ss", "tl.ptx_wgmma_rs"}
    missing = {name for name in INSTRUCTIONS if name not in text} - addresses - special - refused
    assert missing == {"tl.warpgroup_fence_operand"}  # it binds nvcc, which makes no instruction of it


def other(value: object) -> str:
    """A register of its own that holds another value."""
    return rf"\n\tmov.u32 %r999999, {value};\n\1%r999999\2"


LINE_OF = r"(?m)^\s*{}.*\n"
OF_CSA = "_ZZ14csa_fwd_kernelE{}_mem"
IN_PTX = {
    "a wait removed": (
        CSA,
        LINE_OF.format(r"mbarrier\.try_wait"),
        "",
        "where the skeleton has mbarrier.wait(q_free[0]",
    ),
    "an arrival removed": (CSA, LINE_OF.format(r"mbarrier\.arrive"), "", "mbarrier.arrive(rows_ready[0])"),
    "a proxy fence removed": (
        CSA,
        LINE_OF.format(r"fence\.proxy\.async"),
        "",
        "where the skeleton has fence.proxy.async()",
    ),
    "products awaited too late": (
        CSA,
        r"wait_group\.sync\.aligned 0",
        "wait_group.sync.aligned 1",
        "wgmma.wait_group(1)",
    ),
    "a count of arrivals": (CSA, r"(\s*mbarrier\.init.*, )%r\d+(;)", other(64), "mbarrier.init(q_ready[0], 64)"),
    "another mbarrier": (
        CSA,
        r"(\s*mbarrier\.arrive.* _, \[)%r\d+(\];)",
        other(OF_CSA.format("13keys_free")),
        "mbarrier.arrive(keys_free[0]), where the skeleton has mbarrier.arrive(rows_ready[0])",
    ),
    "a constant parity flipped": (
        CSA,
        r"(\s*mbarrier\.try_wait.*\[(?:%r\d+)\], )%r\d+(, %r\d+; *\n(?:.*\n){1,30}.*bar\.sync)",
        other(1),
        "mbarrier.wait(sums_ready[0], 1), where the skeleton has mbarrier.wait(sums_ready[0], 0)",
    ),
    "a barrier of fewer threads": (CSA, r"(\s*bar\.sync %r\d+, )%r\d+(;)", other(64), "bar.sync(3, 64)"),
    "a role that ends early": (
        CSA,
        r"(?m)^(\s*setmaxnreg\.inc.*\n)",
        r"\1\tret;\n",
        "the end, where the skeleton has mbarrier.wait(q_ready[0], 0)",
    ),
    "a commit moved past a wait": (
        SCORES,
        r"(cp\.async\.commit_group)((?:.*\n){1,9}\s*)(cp\.async\.wait_group 3)",
        r"\3\2\1",
        "cp.async.wait_group(3), where the skeleton has cp.async.commit_group()",
    ),
    "more groups left under way": (
        SCORES,
        r"cp\.async\.wait_group 2",
        "cp.async.wait_group 3",
        "cp.async.wait_group(3)",
    ),
}


def test_nothing_can_be_left_out_of_ptx() -> None:
    """One in eleven of the instructions that synchronise, each alone."""
    steps, proved = flow(made(*CSA)), ir.skeleton(lowered(*CSA).device)
    places = [at for at, step in enumerate(steps) if step.event][::11]
    assert len(places) > 25
    for at in places:
        less = [*steps[:at], Step(None, steps[at].follows), *steps[at + 1 :]]
        assert strays(proved, less), steps[at]


@pytest.mark.parametrize("name", IN_PTX)
def test_an_error_in_ptx_is_named(name: str) -> None:
    kernel, pattern, replacement, named = IN_PTX[name]
    wrong, count = re.subn(pattern, replacement, made(*kernel), count=1)
    assert count == 1
    found = leaves(lowered(*kernel), wrong)
    assert found
    assert named in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "line", ["bar.warp.sync 1;", "{ membar.gl; }", "@%p1 bar.sync 0;", "call.uni f, ();", "exit;", "brx.idx %r1, t;"]
)
def test_a_line_of_ptx_that_may_synchronise_is_refused_if_it_is_not_known(line: str) -> None:
    with pytest.raises(Unsupported, match="PTX, the line"):
        flow(
            made(*CSA).replace("fence.mbarrier_init.release.cluster;", f"{line}\n fence.mbarrier_init.release.cluster;")
        )


def path(*events: Event, back: int | None = None, skip: int | None = None) -> list[Step]:
    """A program of one line for each event, which may go back from its last or skip from its first line, and an end."""
    steps = [Step(event, (at + 1,)) for at, event in enumerate(events)]
    if back is not None:
        steps[-1] = Step(events[-1], (back, len(events)))
    if skip is not None:
        steps[0] = Step(events[0], (1, skip))
    return [*steps, Step(None, ())]


A, B, C = Event("a"), Event("b"), Event("c")
TIMES = Name("n")
LOOP: list[Node] = [A, Loop(Name("i"), 0, TIMES, [B], False), C]
FOUR: list[Node] = [A, Loop(Name("i"), 0, 4, [B], True), C]
EITHER: list[Node] = [A, Branch(TIMES, ([B], [])), C]


@pytest.mark.parametrize(
    ("nodes", "steps", "found"),
    [
        (LOOP, [Step(A, (1,)), Step(None, (2, 3)), Step(B, (1,)), Step(C, (4,)), Step(None, ())], None),
        (LOOP, [*path(A, B, B, B, back=2, skip=4)[:-1], *path(C)[:0], Step(C, (5,)), Step(None, ())], None),
        (LOOP, path(A, B, C, C), "c(), where the skeleton has nothing more"),
        (LOOP, path(A, C), "PTX without b(), which the skeleton has"),
        (FOUR, path(A, B, B, B, B, C), None),
        (FOUR, path(A, B, B, B, C), "c(), where the skeleton has b()"),
        (FOUR, [*path(A, B, back=1)[:-1], Step(C, (3,)), Step(None, ())], "c(), where the skeleton has b()"),
        (EITHER, path(A, B, C, skip=2), None),
        (EITHER, path(A, C), "PTX without b(), which the skeleton has"),
        (EITHER, path(A, B, B, C), "b(), where the skeleton has c()"),
        (EITHER, path(A, B), "the end, where the skeleton has c()"),
    ],
)
def test_what_nvcc_may_do_to_loops_and_branches_and_what_not(
    nodes: list[Node], steps: list[Step], found: str | None
) -> None:
    stray = strays(Skeleton((), nodes), steps)
    assert stray is None if found is None else found in (stray or "")
