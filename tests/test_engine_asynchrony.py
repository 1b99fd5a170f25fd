"""Layer 1, asynchrony: of the lowered kernels of verdicts/async, what the compiler places is taken away, and missed."""

from __future__ import annotations

import itertools
import re
from types import ModuleType
from typing import Any

import pytest
import z3
from tilelang import tvm

from engine_verdicts import hypotheses, refuted
from lemmata.proofs.engine.access.tma import dimensions
from lemmata.proofs.engine.compiler import extract
from lemmata.proofs.engine.order.questions import MODELLED, READERS_FENCE, order, within_blocks
from verdicts import MANUAL, STRICT, opened

tirx = tvm.tirx
CONFIGS = {**MANUAL, "tl.disable_warp_specialized": True}


@pytest.mark.parametrize("more", ["", "_two_waits", "_two_barriers", "_empty_groups", "_products_awaited_twice"])
def test_conditions_of_a_pipeline_that_waits(more):
    file = opened(f"async/pipeline{more}_right")
    analysis = order(file.kernel, hypotheses(file), CONFIGS)
    assert len(analysis.conditions) > 5
    assert not analysis.unmodelled & MODELLED
    whose = " ".join(site.statement for site in analysis.sites)
    assert all(s in whose for s in ("copy's write of ks", "product's read of ks", "product's write of z"))


def without(device: Any, name: str, *which: int) -> Any:
    """The function without some of its calls of one intrinsic, by their place in the text; of all, if none is given."""
    count = itertools.count()

    def dropped(s: Any) -> Any:
        call = s.value
        if getattr(getattr(call, "op", None), "name", "") != name:
            return None
        number = next(count)
        return tirx.Evaluate(tirx.const(0)) if not which or number in which else None

    return device.with_body(tirx.stmt_functor.ir_transform(device.body, None, dropped, ["tirx.Evaluate"]))


def lowered(file: ModuleType) -> Any:
    return extract.lower(file.kernel, guards=False, pass_configs=CONFIGS).device


def refuted_within(file: ModuleType, device: Any) -> list[str]:
    """What is refuted of a function at device level, in words."""
    return [o.condition.statement for o in refuted(within_blocks, device, hypotheses(file))]


FENCE = "tl.fence_proxy_async"  # the kernel's own comes first, then the one that the compiler places at the product


@pytest.mark.parametrize(("change", "right"), [("", True), ("_compilers_fence", False), ("_early_fence", False)])
def test_the_fence_of_those_who_write(change, right):
    file = opened(f"async/pipeline{change}_right")
    device = without(lowered(file), FENCE, 0 if change == "_compilers_fence" else 1)
    statements = refuted_within(file, device)
    assert right != bool(statements)
    words = "product's read of ks .* meets this copy's write of ks, with no proxy fence after the wait"
    assert right or any(re.search(words, s) for s in statements)
    assert READERS_FENCE not in within_blocks(device, hypotheses(file)).unmodelled


def test_a_fence_of_those_who_write_needs_no_naming():
    file = opened("async/pipeline_right")
    assert READERS_FENCE not in order(file.kernel, hypotheses(file), CONFIGS).unmodelled


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tl.warpgroup_arrive", "product's write of z .* meets this write of z, with no warpgroup_arrive between"),
        ("tl.warpgroup_commit_batch", "copy's write of ks .* meets this product's read of ks, not in a batch"),
    ],
)
def test_what_the_compiler_places_at_a_product(name, words):
    file = opened("async/pipeline_right")
    device = lowered(file)
    assert not refuted_within(file, device)
    assert any(re.search(words, statement) for statement in refuted_within(file, without(device, name)))


def test_a_product_of_what_threads_store():
    file = opened("async/stored_right")
    device = lowered(file)
    assert not refuted_within(file, device)
    words = "product's read of qs .* meets this write of qs, with no proxy fence between"
    assert any(re.search(words, s) for s in refuted_within(file, without(device, FENCE)))
    words = "write of qs .* meets this product's read of qs, with no barrier after the wait"
    assert any(re.search(words, s) for s in refuted_within(file, without(device, "tirx.tvm_storage_sync", 1)))


def test_waits_that_the_compiler_places():
    file = opened("async/compilers_pipeline_right")
    device = extract.lower(file.kernel, guards=False, pass_configs=STRICT, arch="sm_80").device
    assert not refuted_within(file, device)
    words = "read of a .* meets this copy's write of a, not (awaited|committed)"
    for name in ("tirx.ptx_wait_group", "tirx.ptx_commit_group"):
        assert any(re.search(words, statement) for statement in refuted_within(file, without(device, name)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (FENCE, "TMA's read of s .* meets this write of s, with no proxy fence between"),
        ("tl.tma_store_arrive", "write of s .* meets this TMA's read of s, not committed"),
        ("tl.tma_store_wait", "write of s .* meets this TMA's read of s, not awaited"),
    ],
)
def test_a_store_by_tma_of_what_threads_store(name, words):
    file = opened("async/tma_reused_right")
    device = lowered(file)
    assert not refuted_within(file, device)
    assert any(re.search(words, statement) for statement in refuted_within(file, without(device, name)))


def test_fences_before_a_store_by_tma():
    file = opened("async/tma_reused_writers_fence_right")
    assert READERS_FENCE not in within_blocks(lowered(file), hypotheses(file)).unmodelled
    assert refuted_within(file, without(lowered(file), FENCE))
    file = opened("async/tma_reused_right")
    assert READERS_FENCE in within_blocks(lowered(file), hypotheses(file)).unmodelled


def test_dimensions_of_a_descriptor():
    rows, columns = z3.Int("rows"), z3.IntVal(128)
    four, row = z3.IntVal(4), z3.IntVal(512)
    assert dimensions([rows, columns], [columns, rows], [four, row], 4) == [1, 0]
    assert dimensions([rows, rows, columns], [columns, rows, rows], [four, row, row * rows], 4) == [2, 1, 0]
    for dims, strides in (
        ([rows, columns], [four, row]),  # transposed
        ([columns, rows], [four, 2 * row]),  # every second row
        ([columns, rows - 1], [four, row]),  # a row too few
        ([columns], [four]),
    ):
        assert dimensions([rows, columns], dims, strides, 4) is None
