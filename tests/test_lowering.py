"""Kernels that are lowered once for all tests: what is read again is what was lowered, and no other kernel's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tilelang.language as T
from tilelang import tvm

import lowering
from lemmata.kernels.build import PASS_CONFIGS
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
