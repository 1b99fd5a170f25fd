"""The Lightning Indexer with DeepSeek-V4's 64 heads of width 128: lemmata, DeepGEMM.

A chunk of 4096 queries at the end of a sequence of 4 T tokens, T entries, or at decode its last query alone. DeepGEMM has
scores in fp8 only. Where scores are the result it leaves those that a query does not see undefined, which is its fastest;
lemmata writes -inf. Where ``torch.topk`` selects from its scores they have to be -inf. Ties are then unspecified.

``lemmata bench indexer`` takes device time on a GPU; ``pytest bench/indexer.py`` the time of eager calls anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lemmata.bench import cudnn
from lemmata.bench.peers import Gradients, difference, find, require_near
from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.bench.topk import require_indices
from lemmata.bindings import chunks
from lemmata.bindings.indexer import indexer_topk
from lemmata.reference.indexer import visible
from lemmata.warmup import Job, to_disk

H, D, RATIO, K = 64, 128, 4, 512
WORKSPACE = 256 * 2**20  # of indexer_topk, its default
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
LARGEST_FP8 = 448.0
QUERIES = 4096
TOLERANCE = 1e-6  # for the order of summation over the heads, in fp32: far below what rounding to fp8 does
FURTHEST = 1e-5  # the ``difference`` of gradients from the reference's or a peer's, each rounded to bf16

Result = Callable[[], Tensor]


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand: the kernels that the cases launch, and the peer's."""
    from lemmata.kernels import indexer, indexer_backward, topk

    yield to_disk, indexer.indexer_scores, indexer.Config()
    yield to_disk, indexer.indexer_scores_fp8, indexer.fp8()
    yield to_disk, indexer_backward.indexer_scores_bwd_q, indexer_backward.Config()
    yield to_disk, indexer_backward.indexer_scores_bwd_k, indexer_backward.choose(QUERIES, 8192, H, D, RATIO)
    yield to_disk, topk.topk, topk.Config(K, "float32", 1024, ratio=4)
    if find("deep_gemm"):
        yield (_compile_deep_gemm,)


def _compile_deep_gemm() -> None:
    _deep_gemm_select(*inputs(FP8, 128, 8192))()


def _quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows in e4m3 with a scale for each row."""
    scale = x.abs().amax(-1) / LARGEST_FP8
    return (x / scale.unsqueeze(-1)).to(FP8), scale


def inputs(dtype: torch.dtype, queries: int, entries: int, device: str = "cuda") -> tuple[Tensor, ...]:
    """Return q, k, weights, in fp8 the scales of the keys, and the offset of the last so many queries."""
    q = torch.randn(1, queries, H, D, device=device)
    k = torch.randn(1, entries, D, device=device)
    weights = torch.randn(1, queries, H, device=device) / (H * D) ** 0.5
    offset = torch.full((1,), RATIO * entries - queries, dtype=torch.int32, device=device)
    if dtype is BF16:
        return q.to(BF16), k.to(BF16), weights, offset
    (q, q_scale), (k, k_scale) = _quantised(q), _quantised(k)
    return q, k, weights * q_scale, k_scale, offset


def _scores(*tensors: Tensor) -> Result:
    ops = torch.ops.lemmata
    op = ops.indexer_scores_fp8_fwd if tensors[0].dtype is FP8 else ops.indexer_scores_fwd
    return functools.partial(op.default, *tensors, RATIO)


def _select(*tensors: Tensor) -> Result:
    return functools.partial(torch.ops.lemmata.indexer_topk_fwd.default, *tensors, RATIO, K, WORKSPACE)


def _deep_gemm(*tensors: Tensor, clean: bool = False) -> Result:
    peer: Any = find("deep_gemm")
    q, k, weights, k_scale, offset = tensors
    seen = visible(offset, q.shape[1], RATIO).clamp(max=k.shape[1]).flatten().int()
    none, keys = torch.zeros_like(seen), (k[0], k_scale[0])
    return functools.partial(peer.fp8_mqa_logits, q[0], keys, weights[0], none, seen, clean_logits=clean)


def _deep_gemm_select(*tensors: Tensor) -> Result:
    scores = _deep_gemm(*tensors, clean=True)
    return lambda: scores().topk(K, sorted=False).indices


def _require_close(ours: Tensor, theirs: Tensor) -> None:
    if not (found := difference(ours, theirs)) < TOLERANCE:  # so NaN is refused
        raise RuntimeError(f"expected scores that differ by less than {TOLERANCE} from DeepGEMM's, got {found}")


def _agree_on_scores(queries: int, entries: int) -> None:
    tensors = inputs(FP8, queries, entries)
    ours, theirs = _scores(*tensors)()[0], _deep_gemm(*tensors)()[:, :entries]
    seen = torch.arange(entries, device=ours.device) < visible(tensors[-1], queries, RATIO)[0].unsqueeze(-1)
    _require_close(torch.where(seen, ours, 0.0), torch.where(seen, theirs, 0.0))


def _agree_on_selection(queries: int, entries: int) -> None:
    """Compare the scores of what is selected; which entries are may differ, as scores do in their last bits."""
    tensors = inputs(FP8, queries, entries)
    ours, theirs, scores = (call() for call in (_select(*tensors), _deep_gemm_select(*tensors), _scores(*tensors)))
    require_indices(ours, entries)
    a, b = (scores[0].gather(1, indices.long()).sort(-1).values for indices in (ours[0], theirs))
    _require_close(a, b)


def _seen_pairs(queries: int, entries: int) -> int:
    """Return the number of pairs of a query and an entry that it sees: only their scores have to be computed."""
    return int(visible(torch.tensor([RATIO * entries - queries]), queries, RATIO).clamp(max=entries).sum())


def _case(op: str, dtype: torch.dtype, queries: int, entries: int, limit: float | None) -> Case:
    selects = op == "indexer_topk"
    make = functools.partial(inputs, dtype, queries, entries)

    def contender(call_on: Callable[..., Result]) -> Call:
        return call_on(*make())

    contenders = {"lemmata": functools.partial(contender, _select if selects else _scores)}
    absent: tuple[str, ...] = ()
    agree: Callable[[], None] = lambda: None  # noqa: E731
    if dtype is FP8:
        name = "DeepGEMM + torch.topk" if selects else "DeepGEMM"
        if find("deep_gemm"):
            contenders[name] = functools.partial(contender, _deep_gemm_select if selects else _deep_gemm)
            agree = functools.partial(_agree_on_selection if selects else _agree_on_scores, queries, entries)
        else:
            absent = (name,)

    pairs, row = _seen_pairs(queries, entries), D * dtype.itemsize
    read = queries * H * (row + 4) + entries * (row + 4 * (dtype is FP8))
    scores = 4 * queries * entries
    flop = 2 * D * H * pairs
    least, why = bound(
        bytes=read + (4 * queries * K if selects else scores),
        fp32=2 * H * pairs,  # relu, multiply-add
        **{"fp8" if dtype is FP8 else "bf16": flop},
    )
    shape = f"{'fp8' if dtype is FP8 else 'bf16'} {queries} x {entries}"
    return Case(op, shape, read + scores, least, why, limit, contenders, absent, agree)


def _bwd(grad: Tensor, *tensors: Tensor) -> Gradients:
    return functools.partial(torch.ops.lemmata.indexer_scores_bwd.default, grad, *tensors, RATIO)


def _upstream(entries: int) -> Tensor:
    return torch.randn(1, QUERIES, entries, device="cuda")


def _cudnn(entries: int) -> tuple[tuple[Tensor, ...], Gradients]:
    """Return the tensors of our backward and cuDNN's call on the same; the first is their gradient once it has run."""
    q, k, weights, offset = inputs(BF16, QUERIES, entries)
    weights = weights.to(BF16)  # it takes no others
    scores = _scores(q, k, weights.float(), offset)()
    call = cudnn.indexer_bwd(q, k, weights, offset, RATIO, scores)
    return (scores, q, k, weights.float(), offset), call


def _agree_on_gradients(entries: int) -> None:
    grad, (q, k, weights, offset) = _upstream(entries), inputs(BF16, QUERIES, entries)
    wanted = chunks.scores_bwd(grad, q, k, weights, offset, RATIO)
    require_near(_bwd(grad, q, k, weights, offset)(), wanted, FURTHEST, "the reference's")
    if cudnn.found():
        (scores, *tensors), call = _cudnn(entries)
        theirs = call()  # first: it makes the gradient of the scores
        require_near(_bwd(scores.nan_to_num(neginf=0.0), *tensors)(), theirs, FURTHEST, "cuDNN's")


def _backward(entries: int, limit: float) -> Case:
    def call() -> Call:
        return _bwd(_upstream(entries), *inputs(BF16, QUERIES, entries))

    pairs, row = _seen_pairs(QUERIES, entries), 2 * D
    traffic = 4 * QUERIES * entries + 2 * (
        QUERIES * H * (row + 4) + entries * row
    )  # dI; the inputs and their gradients
    least, why = bound(bytes=traffic, bf16=3 * 2 * D * H * pairs)
    shape, agree = f"backward bf16 {QUERIES} x {entries}", functools.partial(_agree_on_gradients, entries)
    contenders: dict[str, Callable[[], Call]] = {"lemmata": call}
    if cudnn.found():
        contenders[cudnn.WITH_LOSS] = lambda: _cudnn(entries)[1]
    absent = () if cudnn.found() else (cudnn.WITH_LOSS,)
    return Case("indexer_scores", shape, traffic, least, why, limit, contenders, absent, agree)


def cases() -> Iterator[Case]:
    """Yield scores in fp8 and bf16, the selection in fp8, at decode too, and the backward: at most 4 times the forward."""
    yield _case("indexer_scores", FP8, QUERIES, 32768, 2200.0)
    yield _case("indexer_scores", FP8, QUERIES, 8192, None)
    yield _case("indexer_scores", BF16, QUERIES, 32768, 4500.0)
    yield _case("indexer_scores", BF16, QUERIES, 8192, None)
    yield _case("indexer_topk", FP8, QUERIES, 32768, 2470.0)
    yield _case("indexer_topk", FP8, 1, 32768, None)
    yield _backward(8192, 3500.0)


@pytest.mark.parametrize("entries", [8192, 32768])
def test_eager_call(benchmark: BenchmarkFixture, entries: int) -> None:
    """Return what a decode step of one sequence costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, weights, offset = inputs(BF16, 1, entries, device)

    def step() -> None:
        indexer_topk(q, k, weights, topk=K, ratio=RATIO, offset=offset)
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
