"""What only the indexer's loss needs: that its teacher is attention's softmax, queries without one, candidates, chunks."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lemmata
from inputs import VALUES, Call, make
from lemmata.bench import indexer_loss as bench
from lemmata.bindings import indexer_loss as bindings
from lemmata.reference import indexer_loss
from opspec import OpSpec, array
from specs_indexer_loss import DENSE_NAMES, INDEXER_LOSS, INDEXER_LOSS_DENSE, LISTED_NAMES

INF, NAN = float("inf"), float("nan")
BOTH = INDEXER_LOSS, INDEXER_LOSS_DENSE
both = pytest.mark.parametrize("spec", BOTH, ids=["listed", "dense"])


def named(spec: OpSpec, call: Call) -> dict[str, Tensor]:
    """The tensors of a call by name."""
    return dict(zip((t.name for t in spec.contract.inputs), call.tensors, strict=True))


def case(spec: OpSpec, device: torch.device, magnitude: float = 1.0, seed: int = 0, **sizes: int) -> dict[str, Any]:
    """The arguments of the public function, with ``indices`` None where all is listed that is seen."""
    call = make(spec.contract, spec.configurations[0], spec.sizes | sizes, seed, magnitude).to(device)
    return {"indices": None} | named(spec, call) | call.statics


def graded(arguments: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """The loss, and the gradients of the sum of it."""
    leaves = {name: arguments[name].detach().clone().requires_grad_() for name in ("q", "k", "weights")}
    out = lemmata.indexer_loss(**arguments | leaves)
    return out.detach(), list(torch.autograd.grad(out.sum(), list(leaves.values())))


def of_attention(x: dict[str, Tensor], window_kv: Tensor, window: int, offset: int, scale: float) -> np.ndarray:
    """KL from probabilities in fp64, a query at a time: of a softmax over window, entries and sink, the part of entries."""
    q, entries, sink = (array(x[name]) for name in ("core_q", "compressed_kv", "sink"))
    scores, out = array(lemmata.indexer_scores(x["q"], x["k"], x["weights"], ratio=1, offset=2**20)), []
    tokens, past = array(window_kv), window_kv.shape[1] - q.shape[1]
    for b, t in np.ndindex(*q.shape[:2]):
        rows = [r for r in range(past + t - window + 1, past + t + 1) if r >= 0 and offset - past + r >= 0]
        chosen = [i for i in x["indices"][b, t].tolist() if 0 <= i < entries.shape[1]]
        keys = np.concatenate([tokens[b, rows], entries[b, chosen]])
        logits = np.concatenate([scale * q[b, t] @ keys.T, sink[:, None]], 1)
        e = np.exp(logits - logits.max(1, keepdims=True))
        p = (e / e.sum(1, keepdims=True))[:, len(rows) : -1].sum(0)
        s = np.exp(scores[b, t, chosen] - scores[b, t, chosen].max(initial=-INF))
        out.append(0.0 if not chosen else float((p / p.sum() * np.log(p / p.sum() / (s / s.sum()))).sum()))
    return np.array(out).reshape(q.shape[:2])


def test_the_teacher_is_the_softmax_of_attention(device: torch.device) -> None:
    x = case(INDEXER_LOSS, device, 0.5)
    scale, window, offset = x.pop("scale"), 5, 30
    generator = torch.Generator().manual_seed(3)
    window_kv = torch.randn(3, 7 + 9, 64, generator=generator).mul(0.5).bfloat16().to(device)
    attention = x["core_q"], window_kv, x["compressed_kv"], x["indices"], x["sink"]
    _, lse = lemmata.csa(*attention, window=window, offset=offset, scale=scale)
    wanted = of_attention(x, window_kv, window, offset, scale)

    def far(lse: Tensor) -> float:
        return float(np.abs(array(lemmata.indexer_loss(**x | {"lse": lse}, scale=scale)) - wanted).max())

    assert far(lse) < 1e-4 < wanted.max()
    alone = torch.logsumexp(torch.zeros(1), 0).to(device)
    assert far(torch.logaddexp(lse, x["sink"])) > 1e-3
    assert far(alone.expand_as(lse)) > 1e-3


def test_all_that_is_seen_may_be_listed(device: torch.device) -> None:
    x = case(INDEXER_LOSS_DENSE, device)
    seen = (x["offset"].unsqueeze(1) + torch.arange(9, device=device) + 1) // x["ratio"]
    entry = torch.arange(35, device=device)
    indices = torch.where(entry < seen.unsqueeze(-1), entry, -1).int()
    results = zip(*(_flat(graded(x | {"indices": some})) for some in (None, indices)), strict=True)
    for n, (a, b) in enumerate(results):
        if device.type == "cpu":
            torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype is torch.bfloat16 else 1e-5, atol=1e-5)
        else:  # the kernels of the gradients multiply in bf16, each in its own way
            assert (a - b).norm() <= 2.0 ** (-7 if n else -16) * a.norm()
    late, _ = graded(x | {"offset": x["offset"] + x["ratio"]})
    assert not torch.allclose(late, graded(x)[0])


def _flat(results: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    return [results[0], *results[1]]


@pytest.mark.parametrize("lists", [[[3]], [[-1, 3, 99]]])
def test_one_candidate_leaves_nothing_to_learn(device: torch.device, lists: list[list[int]]) -> None:
    indices = torch.tensor([lists], dtype=torch.int32, device=device).expand(3, 9, -1)
    out, grads = graded(case(INDEXER_LOSS, device) | {"indices": indices})
    assert (out == 0).all()
    assert all((g == 0).all() for g in grads)
    doubled, other = (torch.cat([indices, torch.full_like(indices[..., :1], i)], -1) for i in (3, 4))
    assert (graded(case(INDEXER_LOSS, device) | {"indices": doubled})[0] < 1e-6).all()
    assert (graded(case(INDEXER_LOSS, device) | {"indices": other})[0] > 1e-6).all()


WITHOUT: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "nothing listed": lambda x: {"indices": torch.full_like(x["indices"], -1)},
    "only entries that are not there": lambda x: {"indices": torch.full_like(x["indices"], 35)},
    "no index": lambda x: {"indices": x["indices"][..., :0]},
    "a sink of +inf": lambda x: {"sink": torch.full_like(x["sink"], INF)},
    "no key": lambda x: {"lse": torch.full_like(x["lse"], INF)},
    "no key and no sink": lambda x: {
        "lse": torch.full_like(x["lse"], INF),
        "sink": torch.full_like(x["sink"], -INF),
    },
    "no entry": lambda x: {name: x[name][:, :0] for name in ("k", "compressed_kv")},
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_query_without_a_teacher_has_no_loss(device: torch.device, name: str) -> None:
    x = case(INDEXER_LOSS, device)
    out, grads = graded(x | WITHOUT[name](x))
    assert out.shape == (3, 9)
    assert (out == 0).all()
    assert all((g == 0).all() for g in grads)


def test_a_head_that_gives_no_weight_does_not_teach(device: torch.device) -> None:
    x = case(INDEXER_LOSS, device)
    without = {name: x[name].clone() for name in ("sink", "lse")}
    without["sink"][3] = INF
    fewer = x["lse"].clone()
    fewer[..., 3] = INF
    assert torch.equal(graded(x | without)[0], graded(x | {"lse": fewer})[0])
    assert not torch.equal(graded(x | without)[0], graded(x)[0])


def test_weights_of_the_teacher_below_what_fp32_holds(device: torch.device) -> None:
    """Beside a window that has nearly all the weight, entries still have shares of what is left."""
    x = case(INDEXER_LOSS, device)
    low = x | {"lse": x["lse"] + 300, "sink": torch.full_like(x["sink"], -INF)}
    right = x | {"sink": torch.full_like(x["sink"], -INF)}
    torch.testing.assert_close(graded(low)[0], graded(right)[0], rtol=1e-4, atol=1e-4)
    assert (graded(right)[0] > 0).any()


@both
@given(data=st.data())
def test_edges(spec: OpSpec, device: torch.device, data: st.DataObject) -> None:
    """Ties, large numbers, sinks and lse that are infinite, lists without order, of doubles, of none, beside the oracle."""
    magnitude = data.draw(st.sampled_from((VALUES, (0.0, 1.0), 0.1, 1.0, 8.0)))
    sizes = {name: data.draw(st.sampled_from((0, 1, 2, 5)), name) for name in spec.contract.sizes}
    call = make(spec.contract, spec.configurations[0], sizes, data.draw(st.integers(0, 99)), magnitude).to(device)
    x = named(spec, call)
    for name, values in {"sink": (-INF, INF), "lse": (INF,)}.items():
        for _ in range(data.draw(st.integers(0, 2)) if x[name].numel() else 0):
            x[name].view(-1)[data.draw(st.integers(0, x[name].numel() - 1))] = data.draw(st.sampled_from(values))
    out = spec.run(call)
    assert (out >= 0).all()
    with np.errstate(invalid="ignore"):
        assert spec.error(call, out) <= spec.tolerance(str(device))[0]
    if isinstance(magnitude, float):
        g = torch.ones_like(out)
        assert spec.error_bwd(call, g, spec.grads(spec.op, call, g)[1]) <= spec.tolerance(str(device))[1]


@both
def test_what_is_no_candidate_changes_nothing(spec: OpSpec, device: torch.device) -> None:
    x = case(spec, device, S=5)
    if spec is INDEXER_LOSS:
        x["indices"] = x["indices"].clamp(max=20)
    else:
        x |= {"offset": torch.zeros_like(x["offset"]), "ratio": 1}
    clean = graded(x)
    spoiled = {name: x[name].clone() for name in ("k", "compressed_kv")}
    for tensor in spoiled.values():
        tensor[:, 21:] = NAN
    for a, b in zip(_flat(graded(x | spoiled)), _flat(clean), strict=True):
        assert torch.equal(a, b)
    spoiled["k"][:, 0] = NAN
    assert graded(x | spoiled)[0].isnan().any(), "a candidate"


@both
def test_a_query_that_is_nan_spoils_no_other(spec: OpSpec, device: torch.device) -> None:
    x = case(spec, device) | ({"ratio": 4} if spec is INDEXER_LOSS_DENSE else {})
    clean, (of_q, _, of_weights) = graded(x)
    for name in ("q", "weights", "core_q", "lse"):
        spoiled = x[name].clone()
        spoiled[:, 4] = NAN
        out, (grad_q, grad_k, grad_weights) = graded(x | {name: spoiled})
        others = [0, 1, 2, 3, 5, 6, 7, 8]
        for a, b in ((out, clean), (grad_q, of_q), (grad_weights, of_weights)):
            assert torch.equal(a[:, others], b[:, others])
        if spec is INDEXER_LOSS:
            named_by_it = torch.zeros(3, 36, dtype=torch.bool, device=device)
            taken = x["indices"][:, 4]
            named_by_it.scatter_(1, torch.where((taken >= 0) & (taken < 35), taken, 35).long(), True)
            assert grad_k.isfinite().all(-1)[~named_by_it[:, :35]].all()


def test_the_teacher_has_no_gradient(device: torch.device) -> None:
    x = case(INDEXER_LOSS, device)
    leaves = {
        name: t.clone().requires_grad_() for name, t in x.items() if isinstance(t, Tensor) and t.is_floating_point()
    }
    lemmata.indexer_loss(**x | leaves).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is not None} == {"q", "k", "weights"}
    for name, grad in zip(("q", "k", "weights"), graded(x)[1], strict=True):
        assert torch.equal(leaves[name].grad, grad)


@both
def test_chunks_change_no_bit(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    x = case(spec, torch.device("cpu"), S=70, T=40, **({"K": 32} if spec is INDEXER_LOSS else {}))
    whole, seen, right = graded(x), [], indexer_loss.log_teacher
    held = 32 * 64 if spec is INDEXER_LOSS else 40 * 8
    monkeypatch.setattr(bindings, "_CHUNK", 3 * held + 1)
    monkeypatch.setattr(indexer_loss, "log_teacher", lambda *a: seen.append(a[0].shape[:2].numel()) or right(*a))
    again = graded(x)
    assert max(seen) == 3, "more queries at a time than fit"
    assert sum(seen) == 2 * 3 * 70
    assert torch.equal(again[0], whole[0])
    for name, a, b in zip(("q", "k", "weights"), again[1], whole[1], strict=True):
        if spec is INDEXER_LOSS or name != "k":
            assert torch.equal(a, b), name
        else:  # a sum over the queries of a chunk, then over chunks
            torch.testing.assert_close(a, b)


def test_a_step_along_the_gradient_lowers_the_loss(device: torch.device) -> None:
    x = case(INDEXER_LOSS, device, 0.3, S=33)
    losses = []
    for _ in range(30):
        out, (_, _, of_weights) = graded(x)
        losses.append(float(out.mean()))
        x["weights"] = x["weights"] - 0.1 * of_weights
    assert losses[-1] < 0.7 * losses[0]
    assert losses == sorted(losses, reverse=True)


@both
@pytest.mark.parametrize("at", range(3))
def test_gradcheck_of_the_reference(spec: OpSpec, at: int) -> None:
    """The closed form in fp64; an error of a thousandth in any gradient does not pass."""
    listed = spec is INDEXER_LOSS
    forward = indexer_loss.indexer_loss if listed else indexer_loss.indexer_loss_dense
    backward = indexer_loss.indexer_loss_bwd if listed else indexer_loss.indexer_loss_dense_bwd
    call = make(spec.contract, spec.configurations[0], spec.sizes | {"B": 2, "S": 3, "T": 5}, seed=1)
    tensors = [t.double() if t.is_floating_point() else t for t in call.tensors]
    statics, factors = tuple(call.statics.values()), [1.0] * 3

    class Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *leaves):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(*leaves)
            return forward(*leaves, *tensors[3:], *statics)

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            grads = backward(g, *ctx.saved_tensors, *tensors[3:], *statics)
            return tuple(grad * factor for grad, factor in zip(grads, factors, strict=True))

    leaves = [t.mul(0.3).requires_grad_() for t in tensors[:3]]
    assert torch.autograd.gradcheck(Closed.apply, leaves, fast_mode=True, atol=1e-9, rtol=1e-6)
    factors[at] = 1.001
    assert not torch.autograd.gradcheck(
        Closed.apply, leaves, fast_mode=True, atol=1e-9, rtol=1e-6, raise_exception=False
    )


def test_a_list_that_is_named_twice_teaches_the_same() -> None:
    x = case(INDEXER_LOSS, torch.device("cpu"))
    twice = torch.cat([x["indices"], x["indices"]], -1)
    once, both_times = graded(x), graded(x | {"indices": twice})
    torch.testing.assert_close(once[0], both_times[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(once[1][1], both_times[1][1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"q": None}, TypeError, "q: expected a tensor, got NoneType"),
        ({"q": [1.0]}, TypeError, "q: expected a tensor, got list"),
        ({"core_q": torch.zeros(3, 9, 8, 64)}, TypeError, "core_q: expected bfloat16, got float32"),
        ({"lse": torch.zeros(3, 9, 16)}, ValueError, r"lse: expected shape \[B, S, core_H\], got \[3, 9, 16\]"),
        ({"k": torch.zeros(3, 34, 32).bfloat16()}, ValueError, r"compressed_kv: expected shape \[B, T, core_D\]"),
        ({"scale": 0.0}, ValueError, r"scale: expected a value in \[1e-06, 1000\], got 0.0"),
    ],
)
@both
def test_what_does_not_fit_is_named(spec: OpSpec, changed: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^indexer_loss: {words}"):
        lemmata.indexer_loss(**case(spec, torch.device("cpu")) | changed)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"offset": -1}, ValueError, r"offset: expected a value in \[0, 1073741823\], got -1"),
        ({"offset": 1.0}, TypeError, "offset: expected an int or an int32 tensor, got float"),
        ({"ratio": 0}, ValueError, r"ratio: expected a value in \[1, 65536\], got 0"),
        (
            {"indices": torch.zeros(3, 9, 2, dtype=torch.int64)},
            TypeError,
            r"indices: expected int32, got int64; \.int\(\)",
        ),
    ],
)
def test_what_does_not_fit_the_dense_form_is_named(changed: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^indexer_loss: {words}"):
        lemmata.indexer_loss(**case(INDEXER_LOSS_DENSE, torch.device("cpu")) | changed)


def test_the_default_scale_is_that_of_csa(device: torch.device) -> None:
    x = case(INDEXER_LOSS, device)
    assert x.pop("scale") == 0.125 == x["core_q"].shape[-1] ** -0.5
    assert torch.equal(lemmata.indexer_loss(**x), lemmata.indexer_loss(**x, scale=0.125))


def test_names_are_those_of_the_contracts() -> None:
    assert set(LISTED_NAMES) - {"indices"} == set(DENSE_NAMES) - {"offset"}


def test_the_program_of_the_page_on_training_trains_the_indexer() -> None:
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    program = next(p for p in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "indexer_loss" in p)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["losses"].mean() > 0
    for layer in ("to_q", "to_k", "to_w"):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in names[layer].parameters())
    dense = names["q"], names["rows"], names["entries"], names["sink"]
    _, lse = lemmata.hca(*dense, ratio=4)
    student = names["index_q"], names["index_k"], names["weights"]
    warm = lemmata.indexer_loss(*student, names["q"], names["entries"], None, names["sink"], lse)
    assert (warm[0, :3] == 0).all(), "nothing is seen"
    assert (warm[0, 7:] > 0).all()


def test_results_unlike_plain_torchs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for listed in (True, False):
        make, offset = functools.partial(bench.inputs, 3, 80, listed, "cpu"), 4 * 80 - 3
        bench.agree(make, offset, True)
        with monkeypatch.context() as patch:
            right = bench.ours
            patch.setattr(bench, "ours", lambda x, offset, right=right: 1.1 * right(x, offset))
            with pytest.raises(RuntimeError, match=r"expected result 0 within 0\.001 of plain torch's, got"):
                bench.agree(make, offset, True)


@pytest.mark.gpu
@both
def test_memory_is_that_of_a_chunk(spec: OpSpec) -> None:
    cuda = torch.device("cuda")
    x = case(spec, cuda, B=1, S=4096, T=8192, K=512)
    graded(x)  # whatever is loaded once
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    graded(x)
    peak = torch.cuda.max_memory_allocated() - before
    assert 2**24 < peak < 2**29 < 4 * 4096 * 8192 * 8, "one head's dot products with all entries, of eight"
