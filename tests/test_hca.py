"""What HCA needs alone, visibility; and, of both cores, windows, offsets, sinks and what must not be read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lemmata
from attention_cases import GRADIENTS, INF, NAN, case, check, planted_is_caught, within_flash_mla
from inputs import make
from lemmata.reference import hca
from opspec import OpSpec
from specs_attention import join
from specs_csa import CSA
from specs_hca import HCA
from specs_swa import SWA

both = pytest.mark.parametrize("spec", [CSA, HCA], ids=["csa", "hca"])
OPS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"csa": lemmata.csa, "hca": lemmata.hca}


def run(spec: OpSpec, tensors: dict[str, Tensor], **more: Any) -> tuple[Tensor, Tensor]:
    """With a window of 5 and, in HCA, a ratio of 2."""
    statics = {"window": 5} | ({"ratio": 2} if spec is HCA else {}) | more
    return OPS[spec.name](**tensors, **statics)


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def near(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    """But for the order of summation, and the rounding of weights to bf16 that goes with it."""
    return torch.allclose(a[0], b[0], rtol=2**-7, atol=2**-7) and torch.allclose(a[1], b[1], rtol=1e-5, atol=1e-5)


@given(data=st.data())
def test_shapes_at_every_edge(device: torch.device, data: st.DataObject) -> None:
    windows, ratios = (1, 2, 5, 33), (1, 4, 2, 33)
    pairs = list(zip(windows, ratios, strict=True) if device.type == "cuda" else itertools.product(windows, ratios))
    window, ratio = data.draw(st.sampled_from(pairs))  # a GPU compiles kernels for each
    sizes = {
        "B": data.draw(st.sampled_from((1, 2))),
        "S": data.draw(st.sampled_from((1, 2, window, window + 1, ratio - 1, ratio, ratio + 1))),
        "P": data.draw(st.sampled_from((0, 1, window - 1, window, window + 1))),
        "T": data.draw(st.sampled_from((0, 1, 7))),
    }
    configuration = {"H": 8, "D": 64, "ratio": ratio, "window": window, "scale": 0.125}
    call = make(HCA.contract, configuration, sizes, data.draw(st.integers(0, 99))).to(device)
    sink, offset = call.tensors[3:]
    offset[:] = data.draw(st.sampled_from((-2, 0, window, ratio - 2, ratio - 1, ratio, 7 * ratio, sizes["P"])))
    sink[0] = data.draw(st.sampled_from((0.0, -INF, 3.0)))
    check(HCA, call)


@both
def test_prefill_chunked_prefill_and_decode_are_one(spec: OpSpec, device: torch.device) -> None:
    tensors = case(spec, device, S=33, P=0)
    whole = run(spec, tensors)

    def part(begin: int, end: int, kept: int) -> tuple[Tensor, Tensor]:
        names = ("q", "indices") if spec is CSA else ("q",)
        queries = {name: tensors[name][:, begin:end] for name in names}
        rows = tensors["window_kv"][:, max(begin - kept, 0) : end]
        return run(spec, tensors | queries | {"window_kv": rows}, offset=begin)

    # on a GPU, the keys of few queries are summed in splits
    same = equal if device.type == "cpu" else near
    for t in range(33):
        for kept in (4, 33):
            assert same(part(t, t + 1, kept), tuple(x[:, t : t + 1] for x in whole))
            assert equal(part(t, t + 1, kept), part(t, t + 1, 4))
    parts = [part(0, 10, 4), part(10, 19, 4), part(19, 33, 4)]
    assert equal(tuple(torch.cat(x, 1) for x in zip(*parts, strict=True)), whole)
    assert not same(part(20, 21, 3), tuple(x[:, 20:21] for x in whole)), "a token of the window missing"


@both
def test_an_offset_for_each_sequence(spec: OpSpec, device: torch.device) -> None:
    tensors = case(spec, device)
    alike = torch.full((3,), 6, dtype=torch.int32, device=device)
    assert equal(run(spec, tensors, offset=alike), run(spec, tensors, offset=6))
    positions = [0, 30, 2**30 - 10]
    of_each = run(spec, tensors, offset=torch.tensor(positions, dtype=torch.int32, device=device))
    for b, offset in enumerate(positions):
        assert equal(tuple(x[b] for x in of_each), tuple(x[b] for x in run(spec, tensors, offset=offset)))
    assert not equal(run(spec, tensors, offset=3), run(spec, tensors, offset=6))


@both
def test_a_query_without_a_key(spec: OpSpec, device: torch.device) -> None:
    """Padding on the left: queries at positions below 0."""
    tensors = case(spec, device)
    if spec is CSA:
        tensors["indices"][:, :4] = -1
    leaves = {name: t.requires_grad_(name in GRADIENTS) for name, t in tensors.items()}
    for sink in (0.0, -INF, INF):
        with torch.no_grad():
            leaves["sink"][:] = sink
        out, lse = run(spec, leaves, offset=torch.full((3,), -4, dtype=torch.int32, device=device))
        assert (out[:, :4] == 0).all()
        assert (lse[:, :4] == INF).all()
        assert lse[:, 4:].isfinite().all()
        grads = torch.autograd.grad(
            (out, lse), [leaves[n] for n in GRADIENTS], (torch.ones_like(out), torch.ones_like(lse))
        )
        assert all(g.isfinite().all() for g in grads)
        assert (grads[0][:, :4] == 0).all()
        assert (out[:, 4:] == 0).all() == (sink == INF)


@both
def test_the_sink(spec: OpSpec, device: torch.device) -> None:
    tensors = case(spec, device)
    out, lse = run(spec, tensors)
    free, same = run(spec, tensors | {"sink": torch.full_like(tensors["sink"], -INF)})
    assert torch.equal(same, lse), "lse excludes it"
    share = torch.exp(lse - torch.logaddexp(lse, tensors["sink"])).unsqueeze(-1)
    torch.testing.assert_close(out.float(), free * share, rtol=2**-7, atol=1e-6)
    assert not torch.allclose(out.float(), free.float(), rtol=2**-7)
    none, same = run(spec, tensors | {"sink": torch.full_like(tensors["sink"], INF)})
    assert (none == 0).all()
    assert torch.equal(same, lse)


@both
def test_what_must_not_be_read_changes_nothing(spec: OpSpec, device: torch.device) -> None:
    """Tokens before the windows, at positions below 0 and after a query; entries not selected, or not yet seen."""
    tensors = case(spec, device, P=12)
    S = tensors["q"].shape[1]
    if spec is CSA:
        tensors["indices"].clamp_(max=5)
    clean, spoiled = run(spec, tensors, offset=12), dict(tensors)
    spoiled["window_kv"], spoiled["compressed_kv"] = tensors["window_kv"].clone(), tensors["compressed_kv"].clone()
    spoiled["window_kv"][:, : 12 - 4] = NAN
    spoiled["compressed_kv"][:, 6 if spec is CSA else (12 + S) // 2 :] = NAN
    assert equal(run(spec, spoiled, offset=12), clean)
    leaves = {name: t.clone().requires_grad_(name in GRADIENTS) for name, t in spoiled.items()}
    out, lse = run(spec, leaves, offset=12)
    grads = torch.autograd.grad(out.float().sum() + lse.sum(), [leaves[name] for name in GRADIENTS])
    assert all(g.isfinite().all() for g in grads)
    assert (grads[1][:, : 12 - 4] == 0).all()
    assert (grads[2][:, 6 if spec is CSA else (12 + S) // 2 :] == 0).all()

    early = run(spec, tensors, offset=3)
    spoiled["window_kv"][:, : 12 - 3] = NAN
    assert equal(run(spec, spoiled, offset=3), early), "positions below 0"

    for t in range(1, S):  # a token, and an entry that is seen from it on, spoil no query before
        late = dict(tensors)
        late["window_kv"], late["compressed_kv"] = tensors["window_kv"].clone(), tensors["compressed_kv"].clone()
        late["window_kv"][:, 12 + t :] = NAN
        if spec is HCA:
            late["compressed_kv"][:, (12 + t) // 2 :] = NAN
        out, lse = run(spec, late, offset=12)
        assert equal((out[:, :t], lse[:, :t]), (clean[0][:, :t], clean[1][:, :t]))
        assert out[:, t].isnan().all(), "the test would not see a row being read"


@pytest.mark.parametrize("ratio", [1, 2, 4, 128])
def test_an_entry_is_seen_from_its_last_token_on(device: torch.device, ratio: int) -> None:
    tensors = case(HCA, device, S=1)
    for t in (ratio - 2, ratio - 1, ratio, 5 * ratio - 2, 5 * ratio - 1):
        if t < 0:
            continue
        seen = (t + 1) // ratio
        got = lemmata.hca(**tensors, ratio=ratio, offset=t)
        rows = tensors["compressed_kv"]
        fewer = lemmata.hca(**tensors | {"compressed_kv": rows[:, :seen]}, ratio=1, offset=t)
        for one, other in zip(got, fewer, strict=True):
            torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-5)
        more = lemmata.hca(**tensors | {"compressed_kv": rows[:, : seen + 1]}, ratio=1, offset=t + ratio)
        assert not torch.allclose(got[1], more[1], atol=1e-3)


def test_swa_is_hca_without_entries(device: torch.device) -> None:
    """Bit for bit where hca has one split of the keys too: of so many queries."""
    tensors = case(HCA, device)
    none = tensors.pop("compressed_kv")[:, :0]
    leaves = [t.requires_grad_() for t in tensors.values()]
    for more in ({}, {"window": 1}, {"window": 3, "offset": 2, "scale": 0.5}):
        alone, empty = lemmata.swa(**tensors, **more), lemmata.hca(**tensors, compressed_kv=none, **more)
        assert equal(alone, empty)
        of = [torch.autograd.grad(out.float().sum() + lse.sum(), leaves) for out, lse in (alone, empty)]
        assert equal(*of)
    with pytest.raises(ValueError, match=r"^swa: window: expected a value in \[1, 512\], got 0$"):
        lemmata.swa(**tensors, window=0)
    with pytest.raises(TypeError, match=r"^swa: sink: expected float32, got bfloat16; \.float\(\) converts it$"):
        lemmata.swa(**tensors | {"sink": tensors["sink"].bfloat16()})
    out, _ = lemmata.swa(**tensors)
    (grad,) = torch.autograd.grad(out.float().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="swa: expected at most one derivative, got a request for a second"):
        grad.float().sum().backward()


def test_of_few_queries_too(device: torch.device) -> None:
    """On a GPU hca shares out their keys and swa does not, so that they round apart: each as near as plain torch is."""
    tolerance, _ = SWA.tolerance(str(device))
    call = SWA.sample(S=1).to(device)
    q, window_kv, sink, offset = call.tensors
    for window in (call.statics["window"], call.statics["window"] - 1):
        statics = call.statics | {"window": window}
        alone = lemmata.swa(q, window_kv, sink, offset=offset, **statics)
        empty = lemmata.hca(q, window_kv, window_kv[:, :0], sink, offset=offset, **statics)
        for got in (alone, empty):
            assert (SWA.error(call, join(got)) <= tolerance) == (window == call.statics["window"])


def test_decode_of_swa_has_the_bits_of_prefill(device: torch.device) -> None:
    """Its keys are never shared out, also where a window has several tiles."""
    tensors = case(SWA, device, P=299)
    for window in (5, 300):
        whole = lemmata.swa(**tensors, window=window, offset=299)
        for t in range(9):
            last = {"q": tensors["q"][:, t : t + 1], "window_kv": tensors["window_kv"][:, : 300 + t]}
            wanted = tuple(x[:, t : t + 1] for x in whole)
            assert equal(lemmata.swa(**tensors | last, window=window, offset=299 + t), wanted)
            assert not equal(lemmata.swa(**tensors | last, window=window - 1, offset=299 + t), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("ratio", [64, 128])
def test_queries_in_rounds_have_the_bits_of_chunks(ratio: int) -> None:
    """Two groups of rounds, the last one not full; a chunk has other rounds, whose queries have other numbers of tiles."""
    S, window = 4500, 128
    configuration = {"H": 8, "D": 64, "ratio": ratio, "window": window, "scale": 0.125}
    call = make(HCA.contract, configuration, {"B": 2, "S": S, "P": 0, "T": 90}, 5).to("cuda")
    q, window_kv, entries, sink, offset = call.tensors
    offset[0], offset[1] = 0, 20 * ratio + 3
    whole = lemmata.hca(q, window_kv, entries, sink, offset=offset, ratio=ratio, window=window)
    for first, end in ((0, 9), (9, 1500), (1500, S)):
        tensors = q[:, first:end], window_kv[:, :end], entries, sink
        chunk = lemmata.hca(*tensors, offset=offset + first, ratio=ratio, window=window)
        assert equal(chunk, tuple(x[:, first:end] for x in whole))
        earlier = lemmata.hca(*tensors, offset=offset + first - ratio, ratio=ratio, window=window)
        assert not equal(earlier, tuple(x[:, first:end] for x in whole))
    few = 4200, 4240  # about the end of a group
    tensors = q[:, slice(*few)], window_kv[:, few[0] - window + 1 : few[1]], entries, sink, offset + few[0]
    assert equal(
        lemmata.hca(*tensors[:4], offset=tensors[4], ratio=ratio, window=window),
        tuple(x[:, slice(*few)] for x in whole),
    )
    check(HCA, replace(call, tensors=tuple(x.contiguous() for x in tensors)))


@pytest.mark.parametrize("window", [1, 64, 65])
def test_a_kernel_is_lowered_for_any_window(window: int) -> None:
    extract = pytest.importorskip("lemmata.proofs.engine.compiler.extract")
    from lemmata.kernels.build import PASS_CONFIGS
    from lemmata.kernels.hca import choose_swa, hca_fwd

    kernel = hca_fwd(choose_swa(8, 256, window, 0.0625))
    assert extract.lower(kernel, guards=False, pass_configs=PASS_CONFIGS).thread is not None


@both
def test_defaults_and_contiguity(spec: OpSpec, device: torch.device) -> None:
    tensors = case(spec, device)
    wide = {name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in tensors.items()}
    got = run(spec, wide)
    assert all(x.is_contiguous() for x in got)
    assert (got[0].dtype, got[1].dtype) == (torch.bfloat16, torch.float32)
    assert equal(got, run(spec, tensors, scale=0.125, offset=0))
    compiled = torch.compile(OPS[spec.name], fullgraph=True, backend="aot_eager")
    more = {"ratio": 2} if spec is HCA else {}
    assert equal(compiled(**tensors, window=5, offset=0, **more), got), "None for the scale"


@both
@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"offset": -1}, ValueError, r"offset: expected a value in \[0, 1073741823\], got -1"),
        ({"offset": 1.0}, TypeError, "offset: expected an int or an int32 tensor, got float"),
        ({"offset": torch.zeros(3)}, TypeError, "offset: expected int32, got float32"),
        ({"window": 513}, ValueError, r"window: expected a value in \[1, 512\], got 513"),
        ({"scale": 0.0}, ValueError, r"scale: expected a value in \[1e-06, 1000\], got 0.0"),
        ({"q": torch.zeros(3, 9, 8, 96).bfloat16()}, ValueError, r"q: expected shape \[B, S, H, D\] with D in \{64, "),
        ({"q": torch.zeros(3, 9, 4, 64).bfloat16()}, ValueError, r"q: expected shape \[B, S, H, D\] with H in \{8, "),
        ({"window_kv": torch.zeros(3, 8, 64).bfloat16()}, ValueError, r"window_kv: expected shape \[B, P\+S, D\]"),
        ({"sink": None}, TypeError, "sink: expected a tensor, got None"),
    ],
)
def test_what_does_not_fit_is_named(spec: OpSpec, changed: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^{spec.name}: {words}"):
        OPS[spec.name](**case(spec, torch.device("cpu")) | changed)


def test_gradcheck_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 5, 2, 3), (2, 8, 3), (2, 4, 3), (2,)
    inputs = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    fixed = {"offset": torch.tensor([-2, 3], dtype=torch.int32), "ratio": 2, "window": 3, "scale": 0.5}
    planted_is_caught(hca.hca, hca.hca_bwd, inputs, fixed)


def test_the_shapes_of_deepseek(device: torch.device) -> None:
    for H, S in ((64, 3), (64, 9), (128, 3), (128, 9)):
        configuration = {"H": H, "D": 512, "ratio": 128, "window": 128, "scale": 512**-0.5}
        call = make(HCA.contract, configuration, {"B": 1, "S": S, "P": 127, "T": 400}, 3).to(device)
        call.tensors[4][:] = 40_000
        check(HCA, call)
        got = HCA.run(call)
        assert within_flash_mla(HCA, call, got)
        assert not within_flash_mla(HCA, call, got * 1.03)
