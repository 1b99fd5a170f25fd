"""What only the indexer needs: visibility, one function for prefill and decode, special values, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lemmata
from inputs import EXACT, make
from lemmata.bindings import chunks
from lemmata.reference import indexer
from opspec import OpSpec, array
from specs_indexer import INDEXER_SCORES, INDEXER_SCORES_FP8

INF, NAN = float("inf"), float("nan")
FP8 = torch.float8_e4m3fn
both = pytest.mark.parametrize("spec", [INDEXER_SCORES, INDEXER_SCORES_FP8], ids=["bf16", "fp8"])


@pytest.fixture(scope="module", autouse=True)
def checked() -> Iterator[None]:
    """Every selection here goes through the checker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEMMATA_CHECK", "1")
        yield


def case(
    spec: OpSpec,
    device: torch.device,
    magnitude: float | tuple[float, ...] = 1.0,
    seed: int = 0,
    at: int = 0,
    **sizes: int,
) -> dict[str, Tensor]:
    """The tensors of a call, by name, without an offset."""
    call = make(spec.contract, spec.configurations[at], spec.sizes | sizes, seed, magnitude).to(device)
    named = dict(zip((t.name for t in spec.contract.inputs), call.tensors, strict=True))
    del named["offset"]
    return named


def calc_diff(got: Tensor, want: np.ndarray) -> float:
    """DeepGEMM's measure over the entries that are seen: 1 - 2<x,y> / (<x,x> + <y,y>)."""
    x, y = array(got), want
    assert np.array_equal(np.isneginf(x), np.isneginf(y)), "other entries are -inf"
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    return float(1 - 2 * (x * y).sum() / (x * x + y * y).sum())


@both
@pytest.mark.parametrize("magnitude", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("at", range(4))
def test_scores_by_the_measure_of_deepgemm(spec: OpSpec, device: torch.device, magnitude: float, at: int) -> None:
    call = spec.sample(2, magnitude, at=at, S=33, T=130).to(device)
    want = spec.oracle(*map(array, call.tensors), **call.statics)
    assert calc_diff(spec.run(call), want) < 5e-6
    name = "a head missing" if spec is INDEXER_SCORES else "another key's scale"
    assert calc_diff(spec.wrong[name](*call.tensors, **call.statics), want) > 5e-6


@both
def test_the_largest_of_the_scores(spec: OpSpec, device: torch.device) -> None:
    tensors = case(spec, device, S=70, T=130)
    for offset, ratio, topk in ((0, 4, 5), (300, 4, 64), (7, 1, 16), (0, 128, 1), (1000, 2, 200)):
        scores = lemmata.indexer_scores(**tensors, offset=offset, ratio=ratio)
        expected = lemmata.topk(scores.flatten(0, 1), k=topk).view(*scores.shape[:2], topk)
        for workspace in (1, 130 * 4 * 7, 2**28):
            got = lemmata.indexer_topk(**tensors, topk=topk, offset=offset, ratio=ratio, workspace=workspace)
            assert torch.equal(got, expected)
    late = lemmata.indexer_topk(**tensors, topk=200, offset=1001, ratio=2)
    assert torch.equal(late, got), "all entries are seen"
    assert not torch.equal(lemmata.indexer_topk(**tensors, topk=5, offset=1), lemmata.indexer_topk(**tensors, topk=5))


@both
@pytest.mark.parametrize("ratio", [1, 2, 4, 128])
def test_an_entry_is_seen_from_its_last_token_on(spec: OpSpec, device: torch.device, ratio: int) -> None:
    tensors = case(spec, device, B=1, S=1)
    for t in (ratio - 2, ratio - 1, ratio, 5 * ratio - 2, 5 * ratio - 1):
        if t < 0:
            continue
        seen = (t + 1) // ratio
        scores = lemmata.indexer_scores(**tensors, ratio=ratio, offset=t)
        assert scores.isfinite().sum() == seen
        assert scores[..., :seen].isfinite().all()
        chosen = lemmata.indexer_topk(**tensors, topk=8, ratio=ratio, offset=t)[0, 0].tolist()
        assert chosen == [*range(seen), *[-1] * (8 - seen)]


@both
def test_an_offset_for_each_sequence(spec: OpSpec, device: torch.device) -> None:
    tensors = case(spec, device)
    equal = torch.full((3,), 77, dtype=torch.int32, device=device)
    for op in (lemmata.indexer_scores, lambda **t: lemmata.indexer_topk(**t, topk=5)):
        assert torch.equal(op(**tensors, offset=equal), op(**tensors, offset=77))
        positions = [0, 30, 2**30 - 1]
        of_each = op(**tensors, offset=torch.tensor(positions, dtype=torch.int32, device=device))
        for b, offset in enumerate(positions):
            assert torch.equal(of_each[b], op(**tensors, offset=offset)[b])


@both
def test_prefill_chunked_prefill_and_decode_are_one(spec: OpSpec, device: torch.device) -> None:
    tensors = case(spec, device, S=65)
    for op in (lemmata.indexer_scores, lambda **t: lemmata.indexer_topk(**t, topk=5)):
        whole = op(**tensors, offset=10)

        def part(begin: int, end: int, op: Any = op) -> Tensor:
            queries = {name: tensors[name][:, begin:end] for name in ("q", "weights")}
            return op(**tensors | queries, offset=10 + begin)

        assert torch.equal(torch.cat([part(0, 33), part(33, 64), part(64, 65)], 1), whole)
        for t in (0, 1, 31, 64):
            assert torch.equal(part(t, t + 1), whole[:, t : t + 1])
        assert not torch.equal(part(0, 65)[:, 1:], whole[:, :-1])


@both
def test_entries_that_no_query_sees_do_not_count(spec: OpSpec, device: torch.device) -> None:
    tensors = case(spec, device, EXACT, S=33, T=8)  # exact: the width of a product may change the order of its sums
    more = {}
    for name in ("k", "k_scale") if spec is INDEXER_SCORES_FP8 else ("k",):
        beyond = torch.full_like(tensors[name], NAN).repeat_interleave(3, 1)
        more[name] = torch.cat([tensors[name], beyond], 1)
    scores = lemmata.indexer_scores(**tensors)
    padded = lemmata.indexer_scores(**tensors | more)
    assert torch.equal(padded[..., :8], scores)
    assert (padded[..., 8:] == -INF).all()
    for topk in (3, 8, 20):
        assert torch.equal(
            lemmata.indexer_topk(**tensors | more, topk=topk), lemmata.indexer_topk(**tensors, topk=topk)
        )


@both
@given(data=st.data())
def test_no_input_gives_an_index_out_of_range(spec: OpSpec, device: torch.device, data: st.DataObject) -> None:
    tensors = case(spec, device, seed=data.draw(st.integers(0, 99)), B=2)
    for tensor in tensors.values():
        flat = tensor.view(-1)
        for _ in range(data.draw(st.integers(0, 3))):
            value = data.draw(st.sampled_from((NAN, INF, -INF)))
            flat[data.draw(st.integers(0, flat.numel() - 1))] = value if tensor.dtype is not FP8 else NAN
    offset = data.draw(st.sampled_from((0, 60, 130)))
    clean = lemmata.indexer_scores(
        **{name: t.float().nan_to_num(0, 0, 0).to(t.dtype) for name, t in tensors.items()}, offset=offset
    )
    for topk in (1, 5, 40):
        chosen = lemmata.indexer_topk(**tensors, topk=topk, offset=offset)
        taken = chosen >= 0
        assert ((chosen == -1) | taken & (chosen < 35)).all()
        assert ((chosen[..., 1:] > chosen[..., :-1]) | ~taken[..., 1:]).all()
        assert (clean.gather(-1, chosen.clamp(0).long()).isfinite() | ~taken).all(), "an entry that is not seen"


def test_few_entries_are_taken_whatever_they_score(device: torch.device) -> None:
    tensors = case(INDEXER_SCORES, device, S=33)
    tensors["weights"][:] = NAN
    seen = (torch.arange(33, device=device) + 1) // 4
    chosen = lemmata.indexer_topk(**tensors, topk=5)
    for t, count in enumerate(seen.tolist()):
        expected = list(range(count)) if count <= 5 else []
        assert chosen[0, t].tolist() == [*expected, *[-1] * (5 - len(expected))]


def test_the_derivative_of_relu_at_zero_is_zero(device: torch.device) -> None:
    tensors = case(INDEXER_SCORES, device)
    tensors["q"][:] = 0
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    lemmata.indexer_scores(**leaves, offset=300).sum().backward()
    assert all((t.grad == 0).all() for t in leaves.values())


def test_gradients_do_not_see_entries_that_no_query_sees(device: torch.device) -> None:
    tensors = case(INDEXER_SCORES, device, S=33)
    tensors["k"][:, 8:] = NAN
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    lemmata.indexer_scores(**leaves).backward(
        torch.full((3, 33, 35), NAN, device=device).masked_fill(seen(33, 35, device), 1)
    )
    assert all(t.grad is not None and t.grad.isfinite().all() for t in leaves.values())
    assert (leaves["k"].grad[:, 8:] == 0).all()  # type: ignore[index]


def seen(S: int, T: int, device: torch.device) -> Tensor:
    return indexer.visible(torch.zeros(1, dtype=torch.int32, device=device), S, 4)[..., None] > torch.arange(
        T, device=device
    )


def test_gradcheck_of_the_reference() -> None:
    class Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(*inputs)
            return torch.where(seen(9, 3, torch.device("cpu")), indexer.indexer_scores(*inputs, OFFSET, 4), 0)

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            return indexer.indexer_scores_bwd(g * factor, *ctx.saved_tensors, OFFSET, 4)

    OFFSET, factor = torch.zeros(2, dtype=torch.int32), 1.0
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 9, 8, 32), (2, 3, 32), (2, 9, 8)
    inputs = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(Closed.apply, inputs, fast_mode=True, rtol=1e-6)
    factor = 1.001
    assert not torch.autograd.gradcheck(Closed.apply, inputs, fast_mode=True, rtol=1e-6, raise_exception=False)


def test_fp8_has_no_gradient(device: torch.device) -> None:
    tensors = case(INDEXER_SCORES_FP8, device)
    for name in tensors:
        leaf = {name: tensors[name].clone().requires_grad_()}
        with pytest.raises(ValueError, match=rf"^indexer_scores: {name}: expected no gradient .*, got .*$"):
            lemmata.indexer_scores(**tensors | leaf)
        with torch.no_grad():
            assert torch.equal(lemmata.indexer_scores(**tensors | leaf), lemmata.indexer_scores(**tensors))
        assert not lemmata.indexer_topk(**tensors | leaf, topk=5).requires_grad

    def of_weights(weights: Tensor) -> Tensor:
        return lemmata.indexer_scores(**tensors | {"weights": weights}).clamp(-1).sum()

    for transform in (torch.func.grad(of_weights), torch.func.jacfwd(of_weights)):
        with pytest.raises(ValueError, match="indexer_scores: weights: expected no gradient"):
            transform(tensors["weights"])


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"offset": -1}, ValueError, r"offset: expected a value in \[0, 1073741823\], got -1"),
        ({"offset": 2**30}, ValueError, r"offset: expected a value in \[0, 1073741823\], got 1073741824"),
        ({"offset": 1.0}, TypeError, "offset: expected an int or an int32 tensor, got float"),
        ({"offset": True}, TypeError, "offset: expected an int or an int32 tensor, got bool"),
        ({"offset": torch.zeros(3)}, TypeError, "offset: expected int32, got float32"),
        ({"offset": torch.zeros(2, dtype=torch.int32)}, ValueError, r"offset: expected shape \[B\], got \[2\]"),
        ({"k_scale": torch.ones(3, 35)}, TypeError, "k_scale: expected None beside bfloat16, got Tensor"),
        ({"q": torch.zeros(3, 9, 8, 128, dtype=torch.float8_e5m2)}, TypeError, "q: expected bfloat16 or float8_e4m3fn"),
        ({"k": torch.zeros(3, 35, 128, dtype=FP8)}, TypeError, "k: expected bfloat16, got float8_e4m3fn"),
        ({"q": torch.zeros(3, 9, 8, 128, dtype=FP8)}, TypeError, "k: expected float8_e4m3fn, got bfloat16"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], error: type[Exception], words: str) -> None:
    tensors = case(INDEXER_SCORES, torch.device("cpu"))
    for name, op in (("scores", lemmata.indexer_scores), ("topk", lambda **t: lemmata.indexer_topk(**t, topk=5))):
        with pytest.raises(error, match=f"^indexer_{name}: {words}"):
            op(**tensors | changed)


@both
def test_chunks_change_no_bit(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    call = spec.sample(2, S=70)
    whole = spec.run(call)
    g = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1))
    _, grads = spec.grads(spec.op, call, g)
    calls = []
    for name in ("indexer_scores", "indexer_scores_fp8"):
        unit = getattr(indexer, name)
        monkeypatch.setattr(indexer, name, lambda *a, unit=unit: calls.append(a[0].shape) or unit(*a))
    monkeypatch.setattr(chunks, "_CHUNK", 8 * 35 * 3)
    again, again_grads = spec.grads(spec.op, call, g)
    assert torch.equal(again, whole)
    assert max(shape[0] * shape[1] for shape in calls) == 3, "more queries at a time than fit"
    for a, b in zip(again_grads, grads, strict=True):
        torch.testing.assert_close(a, b)


def test_checked_mode(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = case(INDEXER_SCORES_FP8, device, S=70)
    tensors["weights"][0, [0, 30]] = NAN  # sees as many as are taken; sees more
    arguments = {"topk": 5, "offset": 20, "workspace": (35 + 5 * 2 + 2) * 4 * 7}
    right = lemmata.indexer_topk(**tensors, **arguments)
    monkeypatch.setenv("LEMMATA_CHECK", "1")
    assert torch.equal(lemmata.indexer_topk(**tensors, **arguments), right)
    wrong = right.clone()
    wrong[1, 45] = right[1, 44]
    assert not torch.equal(wrong, right)
    monkeypatch.setattr("lemmata.bindings.indexer._topk_call", lambda *_: wrong)
    with pytest.raises(RuntimeError, match=r"indexer_topk of sequence 1 from query 42 on: result: .* row \[3\]"):
        lemmata.indexer_topk(**tensors, **arguments)


@pytest.mark.gpu
@both
def test_scores_beyond_two_to_the_31_elements(spec: OpSpec) -> None:
    tensors = case(spec, torch.device("cpu"), at=3, B=1, S=2**13 + 5, T=2**18)
    tensors = {name: t.to("cuda") for name, t in tensors.items()}
    scores = lemmata.indexer_scores(**tensors, ratio=1, offset=2**18)
    last = {name: tensors[name][:, -5:] for name in ("q", "weights")}
    assert torch.equal(scores[:, -5:], lemmata.indexer_scores(**tensors | last, ratio=1, offset=2**19))
    assert scores.isfinite().all()


@pytest.mark.gpu
def test_memory_of_indexer_topk_is_bounded_by_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEMMATA_CHECK", "0")  # a check holds scores again
    cuda = torch.device("cuda")
    q = torch.randn(1, 4096, 64, 128, device=cuda).to(FP8)
    k = torch.randn(1, 2**18, 128, device=cuda).to(FP8)
    weights, k_scale = torch.randn(1, 4096, 64, device=cuda), torch.rand(1, 2**18, device=cuda)
    workspace, out = 64 * 2**20, 4096 * 512 * 4
    lemmata.indexer_topk(q[:, :1], k, weights[:, :1], k_scale=k_scale, topk=512, offset=2**20)  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    lemmata.indexer_topk(q, k, weights, k_scale=k_scale, topk=512, offset=2**20, workspace=workspace)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= workspace + out + 2**21, "2 MiB for what the allocator rounds up"
    assert peak > out, "nothing was measured"
