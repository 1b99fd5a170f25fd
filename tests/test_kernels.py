"""What the compiler makes of the shipped kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import tilelang.language as T

from lemmata.bench.resources import Resources, read_report, resources, tile_operations
from lemmata.kernels import (
    combine,
    compressor,
    compressor_backward,
    csa,
    hca,
    indexer,
    indexer_backward,
    mhc_post,
    mhc_post_pre,
    mhc_post_pre_backward,
    mhc_pre,
    mhc_pre_backward,
    mhc_project,
    sinkhorn,
    sparse_attention_config,
    topk,
)
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.proofs.engine.compiler.extract import lower
from lemmata.proofs.engine.emitted.cuda import printed

exhaustive = pytest.mark.exhaustive  # sizes further from those that ship, of the same text
Kernel = tuple[Any, Any]  # a factory and its config


def sinkhorn_of(*sizes: tuple[int, int]) -> list[Kernel]:
    """Both kernels for some widths, each with a number of iterations."""
    factories = sinkhorn.sinkhorn_fwd, sinkhorn.sinkhorn_bwd
    return [(factory, sinkhorn.Config(*size)) for factory in factories for size in sizes]


def attention_of(*sizes: tuple[int, int, int]) -> list[Kernel]:
    """Both kernels for some numbers of heads, widths and splits."""
    configs = [sparse_attention_config.Config(H, D, splits=splits) for H, D, splits in sizes]
    return [(factory, config) for factory in (csa.csa_fwd, hca.hca_fwd) for config in configs]


def combine_of(D: int) -> Kernel:
    return combine.combine, sparse_attention_config.Config(64, D, splits=5)


def streams_of(*sizes: tuple[int, int]) -> list[Kernel]:
    """The kernels of hyper-connections for some numbers of streams and widths."""
    of_streams = mhc_post.mhc_post_fwd, mhc_post.mhc_post_bwd
    between = mhc_post_pre.mhc_mix, mhc_post_pre.mhc_weigh_norm, mhc_post_pre_backward.mhc_norm_bwd
    projecting = mhc_project.mhc_project, mhc_project.mhc_split, mhc_project.mhc_multiply
    reading = *projecting, mhc_pre.mhc_weigh, *between
    found: list[Kernel] = []
    for size in sizes:
        found += [(factory, mhc_post.Config(*size)) for factory in of_streams]
        found += [(factory, mhc_project.Config(*size)) for factory in reading]
        found.append((mhc_pre.mhc_head_weigh, mhc_project.Config(*size, head=True)))
        found += mhc_pre_backward.launched(mhc_project.Config(*size))
        found += mhc_pre_backward.launched(mhc_project.Config(*size, head=True))
    return found


def compressor_of(*configs: compressor.Config) -> list[Kernel]:
    """All kernels of the KV compressor, of few candidates or of more."""
    return [
        kernel
        for config in configs
        for kernel in (*compressor.forward_kernels(config), *compressor_backward.backward_kernels(config))
    ]


SMALL = {
    "sinkhorn": sinkhorn_of((4, 20), (8, 20)),
    "topk": [
        (topk.topk, topk.Config(512, "float32", 128, 4)),
        (topk.topk, topk.Config(512, "float32", 1024, 4)),
        (topk.topk_merge, topk.Config(512, "float32", 256, 4)),
    ],
    "combine": [combine_of(512)],
    "mhc": streams_of((4, 4096)),
    "compressor": compressor_of(compressor.Config(), compressor.Config(128, overlap=False)),
}
OTHER_SMALL = {
    "sinkhorn": sinkhorn_of((2, 20), (3, 20), (4, 1), (5, 20), (6, 20), (7, 20), (8, 100)),
    "topk": [
        (topk.topk, topk.Config(1, "float32", 1024)),
        (topk.topk, topk.Config(2048, "bfloat16", 1024)),
        (topk.topk_merge, topk.Config(2048, "bfloat16", 128)),
    ],
    "combine": [combine_of(64)],
    "compressor": compressor_of(*(compressor.Config(*size) for size in ((4, 512, True, 32, 4), (8,), (128, 64)))),
    "mhc": streams_of((4, 7168), (2, 64), (3, 4096), (5, 4096), (6, 64), (7, 4096), (8, 8192)),
}
# what DeepSeek-V4 uses, as the tests of the proofs have it, then the sizes that are furthest from it; the length of a chunk
# changes a loop's bound only
SCORES = [
    (indexer.indexer_scores, indexer.Config()),
    (indexer.indexer_scores_fp8, indexer.fp8(chunk=256)),
    pytest.param(indexer.indexer_scores, indexer.Config(H=8, D=32), marks=exhaustive),
    pytest.param(indexer.indexer_scores_fp8, indexer.fp8(H=8, D=32), marks=exhaustive),
    pytest.param(indexer.indexer_scores_fp8, indexer.fp8(H=16, D=32), marks=exhaustive),
]
# csa and hca with DeepSeek-V4's heads whole; then splits, other sizes, and hca of one query a block
WHOLE = attention_of((64, 512, 1))
OTHERS = [
    *attention_of((128, 512, 1), (128, 512, 5), (8, 192, 1)),
    (hca.hca_fwd, sparse_attention_config.Config(ratio=4)),
]
ATTENTION = [*WHOLE, *(pytest.param(*kernel, marks=exhaustive) for kernel in OTHERS)]

# the backward, of DeepSeek-V4's sizes and then of others
_OF_SCORES = indexer_backward.indexer_scores_bwd_q, indexer_backward.indexer_scores_bwd_k
BACKWARD: list[Kernel] = [
    (csa.csa_bwd, sparse_attention_config.BackwardConfig()),
    *((factory, indexer_backward.Config()) for factory in _OF_SCORES),
]
OTHER_BACKWARD: list[Kernel] = [
    (hca.hca_bwd, sparse_attention_config.BackwardConfig()),
    (csa.csa_bwd, sparse_attention_config.BackwardConfig(8, 192)),
    *((factory, indexer_backward.Config(32, 128)) for factory in _OF_SCORES),
    *((factory, indexer_backward.Config(64, 64)) for factory in _OF_SCORES),
]


def source(factory: Any, config: Any) -> str:
    """Return the CUDA that a build prints, from the lowering that the proofs read."""
    return printed(lower(factory(config), guards=False, pass_configs=PASS_CONFIGS))


def spills(found: Resources) -> bool:
    return (found.stack_bytes, found.spill_store_bytes, found.spill_load_bytes) != (0, 0, 0)


def left(text: str, registers: int) -> int:
    """Registers that a block of so many a thread has left when its warpgroups have theirs; below 0 one waits for ever."""
    return 128 * sum(registers - int(number) for number in re.findall(r"warpgroup_reg_(?:de)?alloc<(\d+)>", text))


def spilling(*sources: str) -> list[str]:
    """Which of the kernels spill, by number."""
    found = resources({str(number): text for number, text in enumerate(sources)})
    assert len(found) == len(sources)
    assert all(0 < needs.registers <= 255 for needs in found.values())
    assert all(left(text, needs.registers) >= 0 for text, needs in zip(sources, found.values(), strict=True))
    return [number for number, needs in found.items() if spills(needs)]


@pytest.mark.parametrize(
    "kernels",
    [
        *(pytest.param(kernels, id=name) for name, kernels in SMALL.items()),
        *(pytest.param(kernels, id=f"other {name}", marks=exhaustive) for name, kernels in OTHER_SMALL.items()),
    ],
)
def test_no_register_is_spilled(kernels: list[Kernel]) -> None:
    assert not spilling(*(source(*kernel) for kernel in kernels))


@pytest.mark.parametrize(("factory", "config"), SCORES)
def test_the_scores_run_on_tensor_cores_stream_and_spill_nothing(factory: Any, config: indexer.Config) -> None:
    """Lowering takes seconds, so that all that is asked of one kernel is one test."""
    text = source(factory, config)
    if config.dtype == "bfloat16":
        assert tile_operations(text) == {"wgmma_ss kBFloat16", "cp_async_gs 16", "cp_async_wait 1"}
    else:  # the scales stream too, 4 bytes at a time
        assert tile_operations(text) == {"wgmma_ss kFloat8_e4m3", "cp_async_gs 16", "cp_async_gs 4", "cp_async_wait 3"}
    assert not spilling(text)


@pytest.mark.parametrize(("factory", "config"), ATTENTION)
def test_attention_runs_on_tensor_cores_streams_and_spills_nothing(
    factory: Any, config: sparse_attention_config.Config
) -> None:
    text = source(factory, config)
    assert tile_operations(text) == {"wgmma_ss kBFloat16", "wgmma_rs kBFloat16", "cp_async_gs 16"}
    assert not spilling(text)


@pytest.mark.parametrize("kernels", [BACKWARD, pytest.param(OTHER_BACKWARD, marks=exhaustive)])
def test_the_backward_runs_on_tensor_cores_streams_and_spills_nothing(kernels: list[Kernel]) -> None:
    texts = [source(*kernel) for kernel in kernels]
    for text in texts:
        assert tile_operations(text) - {"wgmma_rs kBFloat16"} == {"wgmma_ss kBFloat16", "cp_async_gs 16"}
    assert not spilling(*texts)


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


def test_roles_that_take_more_registers_than_their_block_has_are_seen() -> None:
    text = source(csa.csa_fwd, sparse_attention_config.Config())
    assert left(text, 168) == 0
    assert left(text.replace("dealloc<72>", "dealloc<80>"), 168) < 0


def test_a_report_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="ptxas"):
        read_report("all is well")
