"""What the compiler makes of the shipped kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tilelang.language as T

from lemmata.bench.resources import Resources, cuda_source, read_report, resources, tile_operations
from lemmata.kernels import combine, csa, hca, indexer, sinkhorn, sparse_attention_config, topk
from lemmata.kernels.build import PASS_CONFIGS

SINKHORN = [
    (factory, sinkhorn.Config(n, iterations))
    for factory in (sinkhorn.sinkhorn_fwd, sinkhorn.sinkhorn_bwd)
    for n, iterations in ((2, 20), (3, 20), (4, 1), (4, 20), (5, 20), (6, 20), (7, 20), (8, 20), (8, 100))
]
# what DeepSeek-V4 uses, then the sizes that are furthest from it; the length of a chunk changes a loop's bound only
SCORES = [
    (indexer.indexer_scores, indexer.Config()),
    (indexer.indexer_scores_fp8, indexer.fp8()),
    (indexer.indexer_scores, indexer.Config(H=8, D=32)),
    (indexer.indexer_scores_fp8, indexer.fp8(H=8, D=32)),
    (indexer.indexer_scores_fp8, indexer.fp8(H=16, D=32)),
]
TOPK = [
    (topk.topk, topk.Config(512, "float32", 128, True)),
    (topk.topk, topk.Config(512, "float32", 1024, True)),
    (topk.topk_merge, topk.Config(512, "float32", 256, True)),
    (topk.topk, topk.Config(1, "float32", 1024)),
    (topk.topk, topk.Config(2048, "bfloat16", 1024)),
    (topk.topk_merge, topk.Config(2048, "bfloat16", 128)),
]
# DeepSeek-V4's heads, whole and in splits, then other sizes
ATTENTION = [
    (factory, sparse_attention_config.Config(H, D, splits=splits))
    for factory in (csa.csa_fwd, hca.hca_fwd)
    for H, D, splits in ((64, 512, 1), (128, 512, 5), (8, 192, 1))
]
COMBINE = [(combine.combine, sparse_attention_config.Config(64, D, splits=5)) for D in (64, 512)]
SHIPPED = {"sinkhorn": SINKHORN, "indexer_scores": SCORES, "topk": TOPK, "attention": ATTENTION + COMBINE}


@functools.cache  # lowering the scores takes seconds
def source(factory: Any, config: Any) -> str:
    return cuda_source(factory(config), PASS_CONFIGS)


def spills(found: Resources) -> bool:
    return (found.stack_bytes, found.spill_store_bytes, found.spill_load_bytes) != (0, 0, 0)


@pytest.mark.parametrize("kernels", SHIPPED.values(), ids=SHIPPED)
def test_no_register_is_spilled(kernels: list[tuple[Any, Any]]) -> None:
    found = resources({f"{factory.__name__} {cfg}": source(factory, cfg) for factory, cfg in kernels})
    assert len(found) == len(kernels)
    assert not [name for name, needs in found.items() if spills(needs) or not 0 < needs.registers <= 255]


@pytest.mark.parametrize(("factory", "config"), SCORES)
def test_the_scores_run_on_tensor_cores_and_stream(factory: Any, config: indexer.Config) -> None:
    found = tile_operations(source(factory, config))
    if config.dtype == "bfloat16":
        assert found == {"wgmma_ss kBFloat16", "cp_async_gs 16", "cp_async_wait 1"}
    else:  # the scales stream too, 4 bytes at a time
        assert found == {"wgmma_ss kFloat8_e4m3", "cp_async_gs 16", "cp_async_gs 4", "cp_async_wait 3"}


@pytest.mark.parametrize(("factory", "config"), ATTENTION)
def test_attention_runs_on_tensor_cores_and_streams(factory: Any, config: sparse_attention_config.Config) -> None:
    assert tile_operations(source(factory, config)) == {"wgmma_ss kBFloat16", "wgmma_rs kBFloat16", "cp_async_gs 16"}


@pytest.mark.parametrize(
    ("config", "sees"),
    [
        # products of 16 rows have no wgmma, and TileLang then takes mma.sync without a word
        (
            replace(indexer.Config(chunk=256), rows=16, threads=32),
            {"mma_sync kBFloat16", "cp_async_gs 16", "cp_async_wait 1"},
        ),
        # each load is waited for at once
        (indexer.Config(chunk=256, stages=1), {"wgmma_ss kBFloat16", "cp_async_gs 16", "cp_async_wait 0"}),
    ],
)
def test_a_kernel_without_wgmma_or_without_stream_is_seen(config: indexer.Config, sees: set[str]) -> None:
    assert tile_operations(source(indexer.indexer_scores, config)) == sees


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
    (found,) = resources({"greedy": source(_greedy, _Greedy())}).values()
    assert spills(found)


def test_a_report_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="ptxas"):
        read_report("all is well")
