"""What only the KV compressor needs."""

from __future__ import annotations

import importlib
import re
from contextlib import nullcontext
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

import lemmata
from lemmata.integrations.tiny import tiny_model
from lemmata.operators import OPERATORS
from lemmata.reference import compressor
from specs_compressor import OVERLAP, PLAIN

FORWARD: Any = importlib.import_module("lemmata.kernels.compressor")
BACKWARD: Any = importlib.import_module("lemmata.kernels.compressor_backward")
KINDS = pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])


def call_of(
    B: int, S: int, ratio: int, overlap: bool, D: int = 64, pairs: int = 8, positions: int = 64, seed: int = 0
) -> tuple[Tensor, ...]:
    """kv, gate, ape, norm_weight and rotation of a call."""
    generator = torch.Generator().manual_seed(seed)
    wide = (1 + overlap) * D
    kv, gate, ape = (torch.randn(shape, generator=generator) for shape in ((B, S, wide), (B, S, wide), (ratio, wide)))
    angles = torch.outer(torch.arange(positions), 10.0 ** -torch.rand(pairs, generator=generator))
    return kv, gate, ape, torch.rand(D, generator=generator) + 0.5, torch.stack([angles.cos(), angles.sin()], -1)


class Closed(torch.autograd.Function):
    """The reference in fp64 with its closed form for a derivative."""

    @staticmethod
    def forward(ctx, past, offset, rotation, *tensors):  # type: ignore[no-untyped-def]
        out, pooled = compressor.compress(*tensors, rotation, offset, past, dtype=torch.float64)
        ctx.save_for_backward(*tensors, rotation, offset, pooled)
        ctx.past = past
        return out

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return None, None, None, *compressor.compress_bwd(g, *ctx.saved_tensors, ctx.past)


@pytest.mark.parametrize(
    ("overlap", "ratio", "past", "offset", "S"),
    [(1, 2, 0, 0, 7), (1, 2, 2, 4, 7), (1, 2, 2, 0, 6), (0, 3, 0, 0, 7), (1, 4, 0, 0, 3), (0, 4, 0, 0, 4)],
)
def test_gradcheck_of_the_reference(overlap: int, ratio: int, past: int, offset: int, S: int) -> None:
    *tensors, rotation = (t.double() for t in call_of(2, S, ratio, bool(overlap), 6, 2))
    starts = torch.full((2,), offset, dtype=torch.int32)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *x: Closed.apply(past, starts, rotation, *x), leaves)


def released(kv: Tensor, gate: Tensor, ape: Tensor, norm_weight: Tensor, rotation: Tensor) -> Tensor:
    """The released code's steps in their order and with their roundings: a table of candidates, complex rotation."""
    m, D = len(ape), len(norm_weight)
    T = kv.shape[1] // m
    values, scores = (t[:, : T * m].unflatten(1, (T, m)) for t in (kv, gate))
    scores = scores + ape
    if kv.shape[-1] > D:
        tables = []
        for table, nothing in ((values, 0.0), (scores, -torch.inf)):
            before = pad(table[:, :-1, :, :D], (0, 0, 0, 0, 1, 0), value=nothing)
            tables.append(torch.cat([before, table[..., D:]], 2))
        values, scores = tables
    x = (values * scores.softmax(2)).sum(2).bfloat16().float()
    y = (norm_weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))).bfloat16()
    tail = y[..., -2 * rotation.shape[1] :].float().unflatten(-1, (-1, 2))
    angles = torch.view_as_complex(rotation[: T * m : m].contiguous())
    turned = torch.view_as_real(torch.view_as_complex(tail.contiguous()) * angles).flatten(-2).bfloat16()
    return torch.cat([y[..., : -2 * rotation.shape[1]], turned], -1)


@pytest.mark.parametrize(("ratio", "overlap"), [(4, True), (128, False), (3, False), (2, True)])
@pytest.mark.parametrize("blocks", [1, 5])
def test_roundings_are_those_of_the_released_code_bit_for_bit(ratio: int, overlap: bool, blocks: int) -> None:
    x = call_of(2, blocks * ratio + ratio // 2, ratio, overlap, positions=blocks * ratio)
    got, want = lemmata.compress(*x, overlap=overlap), released(*x)
    assert torch.equal(got, want)
    assert not torch.equal(released(*x[:3], x[3] * (1 + 2.0**-8), x[4]), want)


@KINDS
def test_the_modules_of_transformers_compute_the_same(overlap: bool) -> None:
    """In fp32, where they round nothing: ours is theirs, but for the roundings to bf16."""
    pytest.importorskip("transformers.models.deepseek_v4.modeling_deepseek_v4")
    model = tiny_model()
    cfg, module = model.config, model.model.layers[1 if overlap else 2].self_attn.compressor
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3 * module.compress_rate + 1, cfg.hidden_size, generator=generator)
    kv, gate, places = module.kv_proj(hidden), module.gate_proj(hidden), torch.arange(hidden.shape[1])[None]
    rotation = torch.stack(module.rotary_emb(kv, places, layer_type=module.rope_layer_type), -1)[0]
    weights = module.position_bias, module.kv_norm.weight
    got = lemmata.compress(kv, gate, *weights, rotation, overlap=overlap, eps=cfg.rms_norm_eps)
    if overlap:
        module.indexer.forward = lambda *_, **__: torch.zeros(2, hidden.shape[1], 1, dtype=torch.long)
    q = torch.zeros(2, hidden.shape[1], cfg.q_lora_rank)
    want = module(hidden, q, places.expand(2, -1), None, 0)[0].squeeze(1)
    torch.testing.assert_close(got.float(), want, rtol=2.0**-6, atol=2.0**-6)
    assert not torch.allclose(got.float() * 1.1, want, rtol=2.0**-6, atol=2.0**-6)


@KINDS
@pytest.mark.parametrize("S", [0, 1, 3, 4, 5, 7, 8, 13])
def test_how_many_entries_there_are_and_what_has_no_gradient(device: torch.device, overlap: bool, S: int) -> None:
    x = [t.to(device) for t in call_of(2, S, 4, overlap)]
    leaves = [t.requires_grad_() for t in x[:4]]
    out = lemmata.compress(*x, overlap=overlap)
    assert out.shape == (2, S // 4, 64)
    kv, gate, *_ = torch.autograd.grad(out.float().square().sum(), leaves)
    for grad in (kv, gate):
        assert not grad[:, S // 4 * 4 :].any(), "tokens after the last block"
        if overlap:
            assert not grad[:, max(S // 4 - 1, 0) * 4 :, :64].any(), "first halves of the last block"
            assert grad[:, : max(S // 4 - 1, 0) * 4, :64].all()
        assert grad[:, : S // 4 * 4, -64:].all()


@KINDS
@pytest.mark.parametrize("t", [0, 3, 4, 9, 12])
def test_a_token_changes_the_entries_of_which_it_is_a_candidate(device: torch.device, overlap: bool, t: int) -> None:
    x = [v.to(device) for v in call_of(1, 14, 4, overlap)]
    before = lemmata.compress(*x, overlap=overlap)
    x[0][:, t] += 1
    changed = (lemmata.compress(*x, overlap=overlap) != before).any(-1)[0].tolist()
    of = {t // 4, t // 4 + 1} if overlap else {t // 4}
    assert changed == [i in of for i in range(3)]


@KINDS
def test_equal_values_pool_to_themselves(device: torch.device, overlap: bool) -> None:
    kv, gate, ape, _, rotation = (t.to(device) for t in call_of(1, 12, 4, overlap))
    row = torch.randint(1, 9, (64,), device=device).float()
    kv[:] = row.repeat(1 + overlap)
    out = lemmata.compress(kv, gate, ape, torch.ones(64, device=device), rotation[:0], overlap=overlap)
    want = (row * (row.square().mean() + 1e-6).rsqrt()).bfloat16().expand(1, 3, 64)
    torch.testing.assert_close(out, want, rtol=2.0**-7, atol=0)


@given(tokens=st.integers(0, 40), first=st.integers(0, 6), ratio=st.sampled_from([2, 4, 20]), second=st.integers(0, 5))
def test_shards_of_a_sequence_have_its_entries(
    device: torch.device, tokens: int, first: int, ratio: int, second: int
) -> None:
    """Cut at blocks, each with its neighbour's last block before it, that at the front with zeros."""
    kv, gate, *weights = (t.to(device) for t in call_of(2, tokens, ratio, True))
    cuts = sorted({0, min(first, tokens // ratio) * ratio, min(first + second, tokens // ratio) * ratio, tokens})
    parts = []
    for start, end in pairwise(cuts) if len(cuts) > 1 else [(0, tokens)]:
        rows = [pad(t, (0, 0, ratio, 0))[:, start : end + ratio] for t in (kv, gate)]
        offset = torch.full((2,), start, dtype=torch.int32, device=device)
        parts.append(lemmata.compress(*rows, *weights, offset=offset, past=ratio, overlap=True))
    assert torch.equal(torch.cat(parts, 1), lemmata.compress(kv, gate, *weights, overlap=True))


def test_gradients_of_shards_add_up_to_those_of_the_sequence(device: torch.device) -> None:
    x = [t.to(device) for t in call_of(1, 24, 4, True)]
    g = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)

    def grads(of: list[Tensor], grad: Tensor, **where: int) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in of[:4]]
        return torch.autograd.grad(lemmata.compress(*leaves, of[4], overlap=True, **where), leaves, grad)

    whole = grads(x, g)
    first = grads([x[0][:, :12], x[1][:, :12], *x[2:]], g[:, :3])
    second = grads([x[0][:, 8:], x[1][:, 8:], *x[2:]], g[:, 3:], offset=12, past=4)
    for all_rows, a, b in zip(whole[:2], first, second, strict=False):
        assert torch.equal(pad(a, (0, 0, 0, 12)) + pad(b, (0, 0, 8, 0)), all_rows), "each row and half has one term"
    for total, a, b in zip(whole[2:], first[2:], second[2:], strict=True):
        torch.testing.assert_close(a + b, total)


def test_at_position_0_the_past_counts_for_nothing(device: torch.device) -> None:
    x = [t.to(device) for t in call_of(2, 12, 4, True)]
    out = lemmata.compress(*x, past=4)
    x[0][:, :4], x[1][:, :4] = torch.nan, torch.inf
    assert torch.equal(lemmata.compress(*x, past=4), out)
    assert torch.equal(lemmata.compress(x[0][:, 4:], x[1][:, 4:], *x[2:]), out)
    assert lemmata.compress(*x, past=4, offset=4)[:, 0].isnan().all()


class Kept(NamedTuple):
    """What a sequence keeps between calls: rows from the block before the open one on, and the open block's position."""

    kv: Tensor
    gate: Tensor
    start: int


def fed(kept: Kept, rows: tuple[Tensor, ...], weights: list[Tensor], past: int) -> tuple[Tensor, Kept]:
    """The entries that further rows finish, and what is kept then."""
    ratio = len(weights[0])
    kv, gate = (torch.cat(both, 1) for both in zip(kept[:2], rows, strict=True))
    out = lemmata.compress(kv, gate, *weights, offset=kept.start, past=past, overlap=past > 0)
    done = out.shape[1] * ratio
    return out, Kept(kv[:, done:], gate[:, done:], kept.start + done)


@KINDS
@given(
    chunks=st.lists(st.integers(0, 9) | st.just(1), min_size=1, max_size=14),
    ratio=st.sampled_from([2, 4, 20]),
    stale=st.booleans(),
)
def test_decode_is_prefill_in_chunks_of_any_size(
    device: torch.device, overlap: bool, chunks: list[int], ratio: int, stale: bool
) -> None:
    """Token by token too; what an earlier sequence left counts for nothing, and drafts that are taken back leave nothing."""
    kv, gate, *weights = (t.to(device) for t in call_of(2, sum(chunks), ratio, overlap, positions=160))
    past = ratio if overlap else 0
    left = torch.full((2, past, kv.shape[-1]), torch.nan if stale else 0.0, device=device)
    kept, found = Kept(left, left, 0), []
    for rows in zip(kv.split(chunks, 1), gate.split(chunks, 1), strict=True):
        fed(kept, tuple(t.flip(1) + 1 for t in rows), weights, past)  # drafts
        out, kept = fed(kept, rows, weights, past)
        found.append(out)
    assert torch.equal(torch.cat(found, 1), lemmata.compress(kv, gate, *weights, overlap=overlap))
    assert kept.kv.shape[1] == past + sum(chunks) % ratio


def test_a_wrong_state_is_seen(device: torch.device) -> None:
    """Entries differ if the block before is lost, or if the open block is taken to begin elsewhere."""
    kv, gate, *weights = (t.to(device) for t in call_of(1, 12, 4, True))
    want = lemmata.compress(kv, gate, *weights)[:, 1:]
    kept = Kept(kv[:, :5], gate[:, :5], 4)
    assert torch.equal(fed(kept, (kv[:, 5:], gate[:, 5:]), weights, 4)[0], want)
    for wrong in (Kept(kept.kv.roll(1, 1), kept.gate, 4), Kept(kept.kv, kept.gate, 0), Kept(kept.kv, kept.gate, 8)):
        assert not torch.equal(fed(wrong, (kv[:, 5:], gate[:, 5:]), weights, 4)[0], want)


@KINDS
@pytest.mark.parametrize("past", [False, True])
def test_an_operator_of_no_entries_has_gradients_of_zero(device: torch.device, overlap: bool, past: bool) -> None:
    for tokens in range(4):
        S = tokens + 4 * (past and overlap)
        leaves = [t.to(device).requires_grad_() for t in call_of(2, S, 4, overlap)[:4]]
        rotation = call_of(1, 0, 4, overlap)[4].to(device)
        out = lemmata.compress(*leaves, rotation, past=4 * (past and overlap), overlap=overlap)
        assert out.shape == (2, 0, 64)
        for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
            assert grad.shape == leaf.shape
            assert not grad.any()


@KINDS
def test_a_logit_of_minus_infinity_weighs_nothing(device: torch.device, overlap: bool) -> None:
    x = [t.to(device) for t in call_of(1, 8, 4, overlap)]
    x[1][:, 1] = -torch.inf
    out = lemmata.compress(*x, overlap=overlap)
    assert not out.isnan().any()
    x[0][:, 1] += 1
    assert torch.equal(lemmata.compress(*x, overlap=overlap), out)
    x[1][:, :4] = -torch.inf
    assert lemmata.compress(*x, overlap=overlap)[:, 0].isnan().all()


@KINDS
def test_nan_stays_where_it_is_a_candidate(device: torch.device, overlap: bool) -> None:
    x = [t.to(device) for t in call_of(1, 16, 4, overlap)]
    x[1][0, 5, 70 if overlap else 6] = torch.nan
    assert lemmata.compress(*x, overlap=overlap).isnan().any(-1)[0].tolist() == [False, True, False, False]


def test_calls_that_do_not_fit_are_named() -> None:
    x = call_of(1, 8, 4, True, positions=4)
    for named, message in (
        ({"past": 3}, "past: expected 0 or 4, got 3"),
        ({"overlap": False}, r"norm_weight: expected shape \[D\], got \[64\], where D = 128"),
        ({"overlap": None, "past": 5}, "past: expected 0 or 4, got 5"),
        ({"offset": 0}, "rotation: expected a row for position 4 of the last entry, got 4 rows"),
        ({"offset": -1}, "offset: expected a value in"),
        ({"offset": 1.5}, "offset: expected an int or an int32 tensor, got float"),
        ({"cu_seqlens": torch.tensor([0, 8], dtype=torch.int32), "past": 4}, "past: expected 0 with cu_seqlens, got 4"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^compress: {message}"):
            lemmata.compress(*x, **named)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^compress: past: expected at most 3, the number of rows, got 4"):
        lemmata.compress(x[0][:, :3], x[1][:, :3], *x[2:], past=4)
    with pytest.raises(TypeError, match=r"^compress: ape: expected a tensor, got list"):
        lemmata.compress(*x[:2], [], *x[3:])  # type: ignore[arg-type]


# Packed documents

LENGTHS = ((10, 0, 3, 3, 4, 21, 8), (5, 5, 5), (23,), (0, 0), ())


def documents(lengths: tuple[int, ...], overlap: bool, device: torch.device, seed: int = 0) -> dict[str, Any]:
    """A packed call by name, some of whose offsets are not 0."""
    kv, gate, *weights = (t.to(device) for t in call_of(1, sum(lengths), 4, overlap, seed=seed))
    names = "kv", "gate", "ape", "norm_weight", "rotation"
    bounds = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)
    offset = 4 * (torch.arange(len(lengths), dtype=torch.int32, device=device) % 3)
    flat = dict(zip(names, (kv[0], gate[0], *weights), strict=True))
    return flat | {"cu_seqlens": bounds, "offset": offset, "overlap": overlap}


def alone(x: dict[str, Any]) -> list[dict[str, Any]]:
    """The call of each document as a batch of one."""
    found = []
    for d, (start, end) in enumerate(pairwise(x["cu_seqlens"].tolist())):
        rows = {name: x[name][start:end].unsqueeze(0) for name in ("kv", "gate")}
        others = {name: x[name] for name in ("ape", "norm_weight", "rotation", "overlap")}
        found.append(rows | others | {"offset": x["offset"][d : d + 1]})
    return found


def as_alone(x: dict[str, Any], **other: Any) -> bool:
    """Whether each document has the entries that it has alone."""
    want = [lemmata.compress(**one)[0] for one in alone(x)]
    got = lemmata.compress(**x | other)
    return torch.equal(got, torch.cat(want) if want else got[:0])


@KINDS
@given(lengths=st.lists(st.integers(0, 13), max_size=6).map(tuple) | st.sampled_from(LENGTHS), seed=st.integers(0, 99))
def test_each_document_is_as_alone(device: torch.device, overlap: bool, lengths: tuple[int, ...], seed: int) -> None:
    assert as_alone(documents(lengths, overlap, device, seed))


@KINDS
def test_planted_errors_in_documents_are_seen(device: torch.device, overlap: bool) -> None:
    x = documents(LENGTHS[0], overlap, device)
    late = x["cu_seqlens"].clone()
    late[5:6] += 1
    assert as_alone(x)
    assert not as_alone(x, cu_seqlens=late, entries=None)
    assert not as_alone(x, offset=torch.zeros_like(x["offset"]))


@KINDS
def test_each_gradient_is_as_alone(device: torch.device, overlap: bool) -> None:
    x = documents(LENGTHS[0], overlap, device)
    names = "kv", "gate", "ape", "norm_weight"

    def grads(of: dict[str, Any], g: Tensor) -> list[Tensor]:
        leaves = {name: of[name].detach().requires_grad_() for name in names}
        return list(torch.autograd.grad(lemmata.compress(**of | leaves), list(leaves.values()), g))

    counts = [length // 4 for length in LENGTHS[0]]
    g = torch.randn(sum(counts), 64, generator=torch.Generator().manual_seed(2)).bfloat16().to(device)
    whole = grads(x, g)
    each = [grads(one, part.unsqueeze(0)) for one, part in zip(alone(x), g.split(counts), strict=True)]
    for at in range(2):
        assert torch.equal(torch.cat([found[at][0] for found in each]), whole[at])
    for at in range(2, 4):
        torch.testing.assert_close(sum(found[at] for found in each), whole[at])


@KINDS
def test_the_packed_operator(device: torch.device, overlap: bool) -> None:
    x = documents(LENGTHS[0], overlap, device)
    tensors = [x[name] for name in ("kv", "gate", "ape", "norm_weight", "rotation", "cu_seqlens", "offset")]
    entries = sum(length // 4 for length in LENGTHS[0])
    opcheck(torch.ops.lemmata.compress_packed_fwd.default, (*tensors, entries, 1e-6))
    leaves = [t.clone().requires_grad_() for t in tensors[:4]]
    opcheck(torch.ops.lemmata.compress_packed_fwd.default, (*leaves, *tensors[4:], entries, 1e-6))
    with pytest.raises(ValueError, match=f"^compress: entries: expected {entries}, the whole blocks .*, got 3"):
        lemmata.compress(**x, entries=3)
    with pytest.raises(ValueError, match=r"^compress: cu_seqlens: expected 49 as the last bound, got 48"):
        lemmata.compress(**x | {"cu_seqlens": x["cu_seqlens"].clamp(max=48)})
    with FlopCounterMode(display=False) as counter:
        lemmata.compress(**x)
    assert counter.get_total_flops() == 4 * x["kv"].numel()


def test_compile_fullgraph_with_other_documents(device: torch.device) -> None:
    torch._dynamo.reset()
    frames = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lemmata.compress, fullgraph=True, dynamic=True, backend=frames)
    counts = []
    for lengths in ((10, 3, 29, 1, 6), (7, 9, 30), (17, 40, 5, 4, 0, 1, 8)):  # sizes that differ from each other
        x = documents(lengths, True, device)
        entries = sum(length // 4 for length in lengths)
        assert torch.equal(compiled(**x, entries=entries), lemmata.compress(**x))
        counts.append(frames.frame_count)
    assert counts[0] == counts[-1] > 0, "other documents recompiled"


# Kernels

WRITTEN = {
    "compress_fwd": ("out", "pooled"),
    "compress_pool": ("pooled",),
    "compress_norm": ("out",),
    "compress_norm_bwd": ("of_pooled", "of_weight"),
    "compress_few_bwd": ("parts",),
}
"""What a kernel writes completely; of the gradients of rows the launcher fills what no candidate is in."""


def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the launchers run their kernels through the interpreter."""
    run: Any = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret

    def build(factory: Any, cfg: Any) -> Any:
        return lambda *tensors: run(factory(cfg), *tensors, outputs=WRITTEN.get(factory.__name__, ()))

    for module in (FORWARD, BACKWARD):
        monkeypatch.setattr(module, "build", build)
        monkeypatch.setattr(module, "_plan", module._plan.__wrapped__)  # keeps nothing


@pytest.mark.parametrize(
    ("ratio", "overlap", "past", "D", "positions"),
    [(4, True, 0, 128, 64), (4, True, 4, 64, 8), (3, False, 0, 64, 64), (8, True, 8, 128, 40), (20, False, 0, 64, 0),
     (10, True, 10, 64, 64)],
)  # fmt: skip
def test_the_launchers_with_interpreted_kernels(
    ratio: int, overlap: bool, past: int, D: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kernels as on a GPU, of few candidates and of more, to the rounding of their results."""
    interpreted(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        _agree(ratio, overlap, past, D, positions)
    finally:
        torch.use_deterministic_algorithms(False)


def _agree(ratio: int, overlap: bool, past: int, D: int, positions: int) -> None:
    """Check that the launchers compute what the references do: of few candidates for more than one chunk of entries."""
    blocks = BACKWARD.CHUNK + 2 if (1 + overlap) * ratio <= 16 else 3
    x = call_of(2, past + blocks * ratio + 1, ratio, overlap, D, positions=positions)
    offset = torch.tensor([0, 2 * ratio], dtype=torch.int32)
    got, pooled = FORWARD.forward(*x, offset, past, 1e-6)
    want, pooled_want = compressor.compress(*x, offset, past)
    for found, wanted in ((got, want), (pooled, pooled_want)):
        assert (found.float() - wanted.float()).abs().max() <= 2.0**-7 * wanted.abs().max()
        assert (found.float() * 1.05 - wanted.float()).abs().max() > 2.0**-7 * wanted.abs().max(), (
            "a wrong scale would pass"
        )
    g = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    grads = BACKWARD.backward(g, *x, offset, pooled_want, past, 1e-6)
    wanted_grads = compressor.compress_bwd(g, *x, offset, pooled_want, past, 1e-6)
    for found, wanted in zip(grads, wanted_grads, strict=True):
        assert (found - wanted).abs().max() <= 2.0**-18 * wanted.abs().max()
        assert (found * 1.01 - wanted).abs().max() > 2.0**-18 * wanted.abs().max(), "a wrong scale would pass"


def test_gradients_are_fp32_whatever_the_default_dtype_is(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted(monkeypatch)
    x, offset = call_of(1, 5, 2, False), torch.zeros(1, dtype=torch.int32)
    g = torch.ones(1, 2, 64).bfloat16()
    wanted = BACKWARD.backward(g, *x, offset, g, 0, 1e-6)
    torch.set_default_dtype(torch.float64)
    try:
        found = BACKWARD.backward(g, *x, offset, g, 0, 1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
    for grad, want in zip(found, wanted, strict=True):
        assert grad.dtype == torch.float32
        assert torch.equal(grad, want)


ROWS = {
    "compress_fwd": {"kv": 2, "gate": 2},
    "compress_pool": {"kv": 1, "gate": 1},
    "compress_few_bwd": {"kv": 2, "gate": 2, "grad_kv": 2, "grad_gate": 2},
    "compress_pool_bwd": {"kv": 1, "gate": 1, "grad_kv": 1, "grad_gate": 1},
}
"""How many statements of each kernel read or write rows: one for each half."""


def test_every_access_to_rows_is_of_16_bytes_and_happens_once() -> None:
    cuda_source = pytest.importorskip("lemmata.bench.resources").cuda_source
    from lemmata.kernels.build import PASS_CONFIGS

    seen = set()
    for factory, cfg in (kernel for kernel in OPERATORS["compressor"].shipped() if kernel[0].__name__ in ROWS):
        text = cuda_source(factory(cfg), PASS_CONFIGS)
        for name, halves in ROWS[factory.__name__].items():
            every, wide = (
                len(re.findall(rf"{start}\({name} \+ ", text)) for start in (r"\*\(\w+\*\)", r"\*\(float4\*\)")
            )
            assert (every, wide) == (halves, halves), (factory.__name__, name)
        seen.add(factory.__name__)
    assert seen == ROWS.keys()


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [PLAIN, OVERLAP], ids=str)
def test_the_interpreter_agrees_with_the_compiled_kernels(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the proofs take the kernels to mean is what the compiled ones do, to rounding."""
    call = spec.sample(3)
    g = torch.randn(spec.run(call).shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    theirs, their_grads = spec.grads(spec.op, call.to("cuda"), g.to("cuda"))
    interpreted(monkeypatch)
    ours, pooled = FORWARD.forward(*call.tensors, *call.statics.values())
    grads = BACKWARD.backward(g, *call.tensors, pooled, *call.statics.values())
    assert (ours.float() - theirs.cpu().float()).abs().max() <= 2.0**-7 * ours.abs().max()
    for found, wanted in zip(grads, their_grads, strict=True):
        assert (found - wanted.cpu()).abs().max() <= 2.0**-7 * found.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize(("ratio", "overlap"), [(4, True), (128, False)])
def test_offsets_beyond_two_to_the_31(ratio: int, overlap: bool) -> None:
    wide = 512 * (1 + overlap)
    tokens = 2**31 // wide + 2 * ratio
    *_, ape, weight, rotation = (t.to("cuda") for t in call_of(1, 0, ratio, overlap, 512, 32))
    kv = torch.zeros(1, tokens, wide, device="cuda")
    gate = torch.zeros_like(kv)
    kv[:, -3 * ratio :].normal_()
    gate[:, -3 * ratio :].normal_()
    long = lemmata.compress(kv, gate, ape, weight, rotation[:0], overlap=overlap)
    short = lemmata.compress(kv[:, -3 * ratio :], gate[:, -3 * ratio :], ape, weight, rotation[:0], overlap=overlap)
    assert torch.equal(long[:, -2:], short[:, -2:])
    assert not long[:, :-3].any()


@pytest.mark.gpu
@pytest.mark.parametrize(("ratio", "overlap", "D"), [(4, True, 512), (4, True, 128), (128, False, 512)])
def test_the_shipped_kernels_agree_with_the_reference(ratio: int, overlap: bool, D: int) -> None:
    x = call_of(2, 5 * ratio + 1, ratio, overlap, D, 32, 6 * ratio)
    g = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1)).bfloat16()

    def both(device: str) -> list[Tensor]:
        leaves = [t.to(device).requires_grad_() for t in x[:4]]
        out = lemmata.compress(*leaves, x[4].to(device), overlap=overlap)
        return [out, *torch.autograd.grad(out, leaves, g.to(device))]

    for found, wanted in zip(both("cuda"), both("cpu"), strict=True):
        assert (found.cpu().float() - wanted.float()).norm() <= 2.0**-8 * wanted.float().norm()
