"""Layer 1, races, on a kernel that ships; and that the kernels of the verdict files lower to what they are there for."""

import pytest

from engine_verdicts import hypotheses, kinds, outcomes
from lemmata.kernels import sinkhorn
from lemmata.proofs.engine.compiler import extract
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.order.questions import order
from lemmata.reference.sinkhorn import BACKWARD
from verdicts import MANUAL, STRICT, opened


def test_a_private_lane_of_shared_memory_needs_no_barrier():
    kernel = sinkhorn.sinkhorn_bwd(sinkhorn.Config(n=4))
    assert "tvm_storage_sync" not in extract.lower(kernel, guards=False, pass_configs=STRICT).device.script()
    found = outcomes(order, kernel, Hypotheses.of(BACKWARD, {"n": 4, "iterations": 20, "eps": 1e-6}, kernel), STRICT)
    assert kinds(found) == {"race"}
    assert {o.verdict for o in found} == {"proved"}


@pytest.mark.parametrize(
    ("name", "arch", "configs", "words"),
    [
        ("races/hoisted_barrier", "sm_90a", STRICT, ["tvm_storage_sync"]),
        ("races/swizzled_tiles_right", "sm_80", STRICT, ["// 32 * 32"]),
        ("races/matrices_by_two_right", "sm_90a", STRICT, ["ptx_stmatrix(0, 2, ", "ptx_mma"]),
        ("races/matrices_by_four_right", "sm_90a", STRICT, ["ptx_stmatrix(0, 4, ", "wgmma"]),
        ("races/shared_reused_right", "sm_90a", MANUAL, ["handle_add_byte_offset"]),
        ("bounds/copies_in_flight_right", "sm_80", STRICT, ["ptx_cp_async"]),
    ],
)
def test_what_the_compiler_makes_of_the_verdict_kernels(name, arch, configs, words):
    script = extract.lower(opened(name).kernel, guards=False, pass_configs=configs, arch=arch).device.script()
    assert all(word in script for word in words)


def test_products_of_a_warpgroup_are_named_as_not_modelled():
    file = opened("races/swizzled_tiles_right")
    assert not any("wgmma" in name for name in order(file.kernel, hypotheses(file), STRICT).unmodelled), "modelled"
