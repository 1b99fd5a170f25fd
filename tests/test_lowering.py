"""Kernels that are rewritten and lowered once for all tests: what is read again is what was made, and no other kernel's."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import tilelang.language as T
from tilelang import tvm

import lowering
import tracing
from lemmata.kernels import mhc_project
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.csa import csa_fwd
from lemmata.kernels.sparse_attention_config import Config
from lemmata.proofs.engine.compiler.extract import ARCH, Lowered
from lemmata.proofs.engine.compiler.extract import _lower as lower  # as kept for all tests
from lemmata.proofs.engine.emitted.cuda import printed

CONFIGS = tuple(sorted(PASS_CONFIGS.items()))


def doubled(factor: float) -> Any:
    @T.prim_func
    def kernel(x: T.Tensor((64,), "float32"), out: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            shared = T.alloc_shared((64,), "float32")
            T.copy(x, shared)
            for i in T.Parallel(64):
                out[i] = shared[63 - i] * factor

    return kernel


def never(*asked: Any) -> Lowered:
    raise AssertionError("lowered again")


def test_what_is_read_again_is_what_was_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "SLOW", 0.0)
    once = lowering.kept(lower, tmp_path)(doubled(2.0), CONFIGS, ARCH)
    again = lowering.kept(never, tmp_path)(doubled(2.0), CONFIGS, ARCH)
    for level in lowering.LEVELS:
        a, b = getattr(once, level), getattr(again, level)
        assert tvm.ir.save_json(a) == tvm.ir.save_json(b), level
        assert str(a) == str(b), level
    assert printed(once) == printed(again)


@pytest.mark.parametrize(
    ("kernel", "configs", "arch"),
    [
        (doubled(3.0), CONFIGS, ARCH),
        (doubled(2.0), (), ARCH),
        (doubled(2.0), CONFIGS, "sm_80"),
    ],
    ids=["another kernel", "other options", "another target"],
)
def test_another_question_is_lowered_anew(
    kernel: Any, configs: Any, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowering, "SLOW", 0.0)
    lowering.kept(lower, tmp_path)(doubled(2.0), CONFIGS, ARCH)
    with pytest.raises(AssertionError, match="lowered again"):
        lowering.kept(never, tmp_path)(kernel, configs, arch)


def test_what_is_lowered_at_once_is_not_kept(tmp_path: Path) -> None:
    lowering.kept(lower, tmp_path)(doubled(2.0), CONFIGS, ARCH)
    assert not list(tmp_path.iterdir())


KERNELS = [
    *((csa_fwd, Config(H=H, D=D, splits=splits)) for H, D, splits in ((8, 64, 1), (64, 512, 1), (64, 512, 3))),
    *((mhc_project.mhc_project, mhc_project.Config(hc)) for hc in (2, 4)),
    *((lambda factor: doubled(factor), factor) for factor in (2.0, 3.0)),
]


def test_a_text_that_is_rewritten_once_makes_the_kernels_that_tilelang_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn, of each text for several sizes."""

    def made() -> list[str]:
        return [tvm.ir.save_json(factory(config)) for factory, config in KERNELS]

    rewritten: list[Any] = []
    monkeypatch.setattr(tracing.builder, "mutate", tracing.once(lambda f: rewritten.append(f) or tracing.TILELANGS(f)))
    got = made()
    few = len(rewritten)
    assert made() == got
    assert len(rewritten) == few
    monkeypatch.setattr(tracing.builder, "mutate", tracing.TILELANGS)
    assert got == made()
    assert len(set(got)) == len(got)


def test_a_text_in_two_modules_makes_a_kernel_of_the_sizes_of_each() -> None:
    file = Path(__file__).parent / "verdicts" / "equality" / "view_right.py"
    first, second = (tvm.ir.save_json(runpy.run_path(str(file))["kernel"]) for _ in range(2))
    assert first == second
