"""What only steps of the KV compressor need: sequences in any parts, taken back, begun anew, in pools of states and pages."""

from __future__ import annotations

import importlib
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import lemmata
from lemmata.reference import compressor_step
from specs_compressor_step import OVERLAP, STEP
from test_compressor import KINDS, call_of

KERNELS: Any = importlib.import_module("lemmata.kernels.compressor_step")
LONG = 90  # tokens of the longest sequence


@dataclass
class Served:
    """Sequences in pools of states and pages, of which nothing is written yet: all is NaN."""

    x: tuple[Tensor, ...]  # kv, gate, ape, norm_weight and rotation of all tokens of all sequences
    state: Tensor
    cache: Tensor
    table: Tensor
    slots: Tensor
    overlap: bool

    @classmethod
    def of(cls, x: tuple[Tensor, ...], overlap: bool, capacity: int, page: int = 3) -> Served:
        """Pools with room for more than these sequences, shared out in no order."""
        (B, N, wide), (ratio, _), D, device = x[0].shape, x[2].shape, len(x[3]), x[0].device
        columns = -(-(N // ratio) // page)
        generator = torch.Generator().manual_seed(3)
        table, slots = (
            torch.randperm(n, generator=generator)[: n - 2].int().to(device) for n in (B * columns + 2, B + 2)
        )
        state = torch.full((B + 2, capacity, 2, wide), torch.nan, device=device)
        cache = torch.full((B * columns + 2, page, D), torch.nan, device=device, dtype=torch.bfloat16)
        return cls(x, state, cache, table.view(B, columns), slots, overlap)

    @property
    def room(self) -> int:
        """How many tokens may be taken back."""
        return self.state.shape[1] - (1 + self.overlap) * len(self.x[2]) + 1

    def step(self, first: list[int], S: int, wrong: bool = False) -> None:
        """Take S tokens of each sequence from the first on, or other rows than theirs; of one that begins at -1 none."""
        at = torch.tensor(first).clamp(0).unsqueeze(1) + torch.arange(S)
        rows = [t[torch.arange(len(first)).unsqueeze(1), at.to(t.device)] for t in self.x[:2]]
        rows = [t.flip(-1) + 1 for t in rows] if wrong else rows
        offset = torch.tensor(first, dtype=torch.int32, device=self.state.device)
        places = {"slots": torch.where(offset < 0, -1, self.slots), "offset": offset.clamp(0)}
        lemmata.compress_step(*rows, *self.x[2:], self.state, self.cache, self.table, **places, overlap=self.overlap)

    def entries(self, b: int, tokens: int) -> Tensor:
        """What the cache has for so many tokens of a sequence."""
        return self.cache[self.table[b].long()].flatten(0, 1)[: tokens // len(self.x[2])]

    def holds(self, b: int, tokens: int) -> bool:
        """Whether these are the entries of the whole sequence, bit for bit."""
        kv, gate, *weights = self.x
        want = lemmata.compress(kv[b : b + 1, :tokens], gate[b : b + 1, :tokens], *weights, overlap=self.overlap)
        return torch.equal(self.entries(b, tokens), want[0])


def served(device: torch.device, ratio: int, overlap: bool, more: int, B: int = 3, **sizes: int) -> Served:
    x = tuple(t.to(device) for t in call_of(B, LONG, ratio, overlap, positions=LONG, **sizes))
    return Served.of(x, overlap, (1 + overlap) * ratio + more)


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[int, bool, list[int]]]:
    """How many tokens a call has, whether they are wrong drafts, and of each sequence how many it takes back first, or none."""
    one = st.tuples(
        st.sampled_from([1, 1, 2, 3, 4, 7, 30]), st.booleans(), st.lists(st.integers(-1, 5), min_size=3, max_size=3)
    )
    return draw(st.lists(one, min_size=1, max_size=14))


@KINDS
@given(drawn=calls(), ratio=st.sampled_from([1, 2, 4, 20]), more=st.integers(0, 9))
def test_steps_of_any_size_and_phase_make_the_entries_of_the_whole(
    device: torch.device, overlap: bool, drawn: list[tuple[int, bool, list[int]]], ratio: int, more: int
) -> None:
    """Sequences stand at different tokens, some pause, tokens are taken back, and drafts leave nothing."""
    x = served(device, ratio, overlap, more)
    position, furthest = [0, 0, 0], [0, 0, 0]
    for S, wrong, back in drawn:
        first = []
        for b, count in enumerate(back):
            start = position[b] - max(min(count, position[b], x.room - (furthest[b] - position[b])), 0)
            moves = count >= 0 and start + S <= LONG and not (wrong and x.room - max(furthest[b] - start - S, 0) < S)
            first.append(start if moves else -1)
        x.step(first, S, wrong)
        for b, start in enumerate(first):
            if start >= 0:
                furthest[b] = max(furthest[b], start + S)
                position[b] = start if wrong else start + S
    for b, tokens in enumerate(position):
        assert x.holds(b, tokens)
    unused = torch.ones(len(x.cache), dtype=torch.bool, device=device)
    unused[x.table.flatten().long()] = False
    assert x.cache[unused].isnan().all(), "a page of nobody is written"


@KINDS
@pytest.mark.parametrize("ratio", [2, 4, 20])
@pytest.mark.parametrize("more", [0, 3])
def test_how_many_tokens_may_be_taken_back(device: torch.device, overlap: bool, ratio: int, more: int) -> None:
    """As many as the capacity leaves room for in every phase, and in some phase no more."""
    taken_back = []
    for more_than_room in (0, 1):
        right = []
        for end in range(3 * ratio, 4 * ratio):
            x = served(device, ratio, overlap, more, B=1)
            x.step([0], end + x.room)
            x.cache[:] = torch.nan
            x.step([end - more_than_room], x.room + more_than_room)
            done = (end - more_than_room) // ratio  # those before are not written again
            want = lemmata.compress(*(t[:, : end + x.room] for t in x.x[:2]), *x.x[2:], overlap=overlap)[0, done:]
            right.append(torch.equal(x.entries(0, end + x.room)[done:], want))
        taken_back.append(all(right))
    assert taken_back == [True, False]


@KINDS
@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5, 7, 8, 9, 41])
def test_a_prompt_by_compress_and_then_steps(device: torch.device, overlap: bool, tokens: int) -> None:
    """The last rows of the prompt, with a table that has no page, fill the state."""
    x = served(device, 4, overlap, 5, B=2)
    kv, gate, *weights = x.x
    prompt = lemmata.compress(kv[:, :tokens], gate[:, :tokens], *weights, overlap=overlap)
    for b in range(2):
        for i, entry in enumerate(prompt[b]):
            x.cache[x.table[b, i // 3], i % 3] = entry
    last = max(tokens - x.state.shape[1], 0)
    rows = kv[:, last:tokens], gate[:, last:tokens]
    places = {"slots": x.slots, "offset": last, "overlap": overlap}
    before = x.cache.clone()
    lemmata.compress_step(*rows, *weights, x.state, x.cache, torch.full_like(x.table, -1), **places)
    assert torch.equal(x.cache.nan_to_num(7), before.nan_to_num(7))
    for t in range(tokens, 60):
        x.step([t, t], 1)
    assert x.holds(0, 60)
    assert x.holds(1, 60)


@KINDS
def test_a_sequence_begins_anew(device: torch.device, overlap: bool) -> None:
    """Whatever an earlier one left in its state, and wherever that stopped."""
    x = served(device, 4, overlap, 2)
    for first in range(0, 30, 5):
        x.step([first, -1, first], 5)
    for first in range(21):
        x.step([first, first, -1], 1)
    assert x.holds(0, 21)
    assert x.holds(1, 21)
    assert x.holds(2, 30)


@KINDS
def test_what_has_no_state_or_no_page_is_left_alone(device: torch.device, overlap: bool) -> None:
    x = served(device, 4, overlap, 0)
    x.step([0, 0, 0], 12)
    state, cache = x.state.clone(), x.cache.clone()
    rows = [t[:, 12:53] for t in x.x[:2]]
    for slot, offset in ((-1, 12), (len(state), 12), (2**31 - 1, 12), (-(2**31), 12), (0, -1), (0, -(2**30))):
        where = {
            "slots": torch.full_like(x.slots, slot),
            "offset": torch.full_like(x.slots, offset),
            "overlap": overlap,
        }
        lemmata.compress_step(*rows, *x.x[2:], x.state, x.cache, x.table, **where)
        assert torch.equal(x.state.nan_to_num(7), state.nan_to_num(7)), (slot, offset)
        assert torch.equal(x.cache.nan_to_num(7), cache.nan_to_num(7)), (slot, offset)
    for table in (torch.full_like(x.table, len(cache)), x.table[:, :0], x.table[:, :1]):
        x.table, kept = table, x.table
        x.step([12, 12, 12], 41)
        x.table = kept
        assert torch.equal(x.cache.nan_to_num(7), cache.nan_to_num(7))
    assert not torch.equal(x.state.nan_to_num(7), state.nan_to_num(7)), "rows are kept all the same"


def test_states_without_slots_are_the_sequences_own(device: torch.device) -> None:
    x = served(device, 4, True, 2)
    x.slots = torch.arange(3, dtype=torch.int32, device=device)
    given = [t[:, :9] for t in x.x[:2]]
    y = Served(x.x, x.state.clone(), x.cache.clone(), x.table, x.slots, True)
    x.step([0, 0, 0], 9)
    lemmata.compress_step(*given, *y.x[2:], y.state, y.cache, y.table, offset=0)
    assert torch.equal(x.state.nan_to_num(7), y.state.nan_to_num(7))
    assert torch.equal(x.cache.nan_to_num(7), y.cache.nan_to_num(7))


def test_a_wrong_state_is_seen(device: torch.device) -> None:
    """Entries differ if a row of the block before is lost, or if a sequence goes on in another's state."""
    for spoil in (lambda x: x.state.roll(1, 1), lambda x: x.state.roll(1, 0), lambda x: x.state.flip(2)):
        x = served(device, 4, True, 0)
        x.step([0, 0, 0], 7)
        x.state[:] = spoil(x)
        x.step([7, 7, 7], 5)
        assert not x.holds(0, 12)


def test_calls_that_do_not_fit_are_named(device: torch.device) -> None:
    x = served(device, 4, True, 0)
    rows, where = [t[:, :3] for t in x.x[:2]], {"slots": x.slots, "offset": 0}
    tensors = x.state, x.cache, x.table

    def call(*places: Tensor, **other: Any) -> None:
        lemmata.compress_step(*rows, *x.x[2:], *places, **where | other)

    for places, other, message in (
        (tensors, {"offset": 1.5}, "offset: expected an int or an int32 tensor, got float"),
        (tensors, {"offset": -1}, r"offset: expected a value in \[0, "),
        (tensors, {"overlap": False}, "norm_weight: expected shape"),
        ((x.state.mT.contiguous().mT, *tensors[1:]), {}, r"state: expected a contiguous tensor, got strides \["),
        ((x.state[:, ::2], *tensors[1:]), {}, r"state: expected shape \[.*\] with 2\*ratio <= capacity, got \["),
        ((x.state, x.cache.mT.contiguous().mT, x.table), {}, r"cache: expected a contiguous tensor, got strides \["),
        ((x.state, x.cache.float(), x.table), {}, "cache: expected bfloat16, got float32"),
        ((x.state, x.cache, x.table.long()), {}, "table: expected int32, got int64"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^compress_step: {message}"):
            call(*places, **other)
    with pytest.raises(TypeError, match=r"^compress_step: ape: expected a tensor, got list"):
        lemmata.compress_step(*rows, [], *x.x[3:], *tensors, **where)  # type: ignore[arg-type]  # a list is refused


@KINDS
def test_no_gradient_is_lost(device: torch.device, overlap: bool) -> None:
    x = served(device, 4, overlap, 0)
    x.x = (x.x[0].clone().requires_grad_(), *x.x[1:])
    with pytest.raises(RuntimeError, match=r"^compress_step: expected no derivative, got a tensor that requires one: "):
        x.step([0, 0, 0], 4)
    with torch.no_grad():
        x.step([0, 0, 0], 4)
    with torch.inference_mode():
        x.step([4, 4, 4], 8)
    assert x.holds(2, 12)


def test_what_is_written_into_is_noticed_by_autograd(device: torch.device) -> None:
    x = served(device, 4, True, 0)
    weight = torch.ones(1, device=device, requires_grad=True)
    out = (weight * x.state).sum()
    x.step([0, 0, 0], 4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("S", [0, 1, 5, 40])
@pytest.mark.parametrize("spec", [STEP, OVERLAP], ids=str)
def test_the_operator_in_place(device: torch.device, spec: Any, S: int) -> None:
    call = spec.sample(3, S=S).to(device)
    opcheck(spec.overload, (*call.tensors, *call.statics.values()))


# Kernels


def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the launcher run its kernels through the interpreter."""
    run: Any = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret
    monkeypatch.setattr(KERNELS, "build", lambda factory, cfg: lambda *x: run(factory(cfg), *x, outputs=()))
    for plan in ("_plan", "_plan_keep"):
        monkeypatch.setattr(KERNELS, plan, getattr(KERNELS, plan).__wrapped__)  # keeps nothing
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())


@pytest.mark.parametrize(
    ("ratio", "overlap", "D", "capacity"),
    [(4, True, 128, 11), (4, True, 64, 16), (3, False, 64, 5), (20, False, 64, 23), (10, True, 64, 24)],
)
@pytest.mark.parametrize("S", [1, 3, 9, 47])
def test_the_launcher_with_interpreted_kernels(
    ratio: int, overlap: bool, D: int, capacity: int, S: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kernels as on a GPU, of few candidates and of more, for calls with and without a launch for the rows."""
    interpreted(monkeypatch)
    kv, gate, *weights = call_of(5, S, ratio, overlap, D, positions=64)
    generator = torch.Generator().manual_seed(5)
    state = torch.randn(6, capacity, 2, kv.shape[-1], generator=generator)
    cache = torch.randn(40, 3, D, generator=generator).bfloat16()
    table = (torch.randperm(45, generator=generator)[:35].int() - 1).view(5, 7)
    slots = torch.tensor([3, -1, 0, 6, 5], dtype=torch.int32)
    offset = torch.tensor([2 * ratio - 1, 4, 3 * ratio, 9, 0], dtype=torch.int32)
    wanted, found = (state.clone(), cache.clone()), (state.clone(), cache.clone())
    compressor_step.compress_step(kv, gate, *weights, *wanted, table, slots, offset)
    KERNELS.step(kv, gate, *weights, *found, table, slots, offset, 1e-6)
    assert torch.equal(found[0], wanted[0])
    assert not torch.equal(found[0], state)
    apart = (found[1].float() - wanted[1].float()).abs().max()
    assert apart <= 2.0**-7 * wanted[1].abs().max()
    assert ((found[1] != cache) == (wanted[1] != cache)).all(), "other rows are written"
    assert ratio > S or (wanted[1] != cache).any()


def test_without_a_cache_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted(monkeypatch)
    x = served(torch.device("cpu"), 4, True, 0)
    rows = [t[:, :9] for t in x.x[:2]]
    offset = torch.zeros(3, dtype=torch.int32)
    for cache, table in ((x.cache[:0], x.table), (x.cache, x.table[:, :0])):
        state, wanted = x.state.clone(), x.state.clone()
        KERNELS.step(*rows, *x.x[2:], state, cache, table, x.slots, offset, 1e-6)
        compressor_step.compress_step(*rows, *x.x[2:], wanted, cache, table, x.slots, offset)
        assert torch.equal(state.nan_to_num(7), wanted.nan_to_num(7))
        assert x.cache.isnan().all()


def test_memory_that_kernels_cannot_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted(monkeypatch)
    x = served(torch.device("cpu"), 4, True, 0)
    rows, offset = [t[:, :1] for t in x.x[:2]], torch.zeros(3, dtype=torch.int32)
    shifted = torch.empty(x.state.numel() + 1)[1:].view(x.state.shape)
    with pytest.raises(
        ValueError, match=r"^compress_step: state: expected memory that begins at a multiple of 16 bytes"
    ):
        KERNELS.step(*rows, *x.x[2:], shifted, x.cache, x.table, x.slots, offset, 1e-6)


@pytest.mark.parametrize(("ratio", "capacity"), [(4, 16), (128, 160)])
def test_every_access_to_rows_is_of_16_bytes(ratio: int, capacity: int) -> None:
    cuda_source = pytest.importorskip("lemmata.bench.resources").cuda_source
    from lemmata.kernels.build import PASS_CONFIGS

    cfg = KERNELS.Config(ratio, overlap=ratio == 4, capacity=capacity, keeps=False)
    for factory, each in KERNELS.step_kernels(cfg):
        text = cuda_source(factory(each), PASS_CONFIGS)
        for name in ("kv", "gate", "state"):
            every, wide = (
                len(re.findall(rf"{start}\({name} \+ ", text)) for start in (r"\*\(\w+\*\)", r"\*\(float4\*\)")
            )
            assert every == wide, (factory.__name__, name)
        assert factory is KERNELS.compress_step_norm or "float4*)(kv +" in text


def arithmetic(factory: Any, cfg: Any) -> tuple[int, ...]:
    """How many products nvcc adds at once, and how many it rounds first, in a kernel of entries."""
    resources = pytest.importorskip("lemmata.bench.resources")
    from lemmata.kernels.build import PASS_CONFIGS

    text = resources.ptx(resources.cuda_source(factory(cfg), PASS_CONFIGS))
    return tuple(len(re.findall(rf"\b{name}\b", text)) for name in ("fma.rn.f32", "mul.f32"))


@pytest.mark.parametrize(
    ("step", "whole", "ratio"),
    [
        ("compress_step", "compress_fwd", 4),
        ("compress_step_pool", "compress_pool", 128),
        ("compress_step_norm", "compress_norm", 128),
    ],
)
def test_products_are_rounded_where_those_of_compress_are(step: str, whole: str, ratio: int) -> None:
    """Which products are added unrounded is nvcc's to choose: another choice is another bit."""
    entries: Any = importlib.import_module("lemmata.kernels.compressor")
    ours = arithmetic(getattr(KERNELS, step), KERNELS.Config(ratio, overlap=ratio == 4, capacity=2 * ratio + 8))
    assert ours == arithmetic(getattr(entries, whole), entries.Config(ratio, overlap=ratio == 4))
    assert min(ours) > 0


@pytest.mark.gpu
@pytest.mark.parametrize(("ratio", "overlap", "D"), [(4, True, 512), (4, True, 128), (128, False, 512)])
def test_the_shipped_kernels_make_the_entries_of_compress_bit_for_bit(ratio: int, overlap: bool, D: int) -> None:
    tokens = 4 * ratio + 3
    x = Served.of(
        tuple(t.to("cuda") for t in call_of(3, tokens, ratio, overlap, D, 32, tokens)), overlap, 2 * ratio + 8
    )
    for S in (1, 3, tokens):
        x.cache[:] = torch.nan
        for first in range(0, tokens, S):
            x.step([first] * 3, min(S, tokens - first))
        assert all(x.holds(b, tokens) for b in range(3))


@pytest.mark.gpu
@pytest.mark.parametrize(("ratio", "overlap"), [(4, True), (128, False)])
def test_a_graph_serves_every_position(ratio: int, overlap: bool) -> None:
    """One capture of one token, replayed for each; offsets, slots and pages are read anew."""
    tokens = 3 * ratio + 2
    x = Served.of(
        tuple(t.to("cuda") for t in call_of(3, tokens, ratio, overlap, 128, 32, tokens)), overlap, 2 * ratio + 8
    )
    rows, offset = [t[:, :1].clone() for t in x.x[:2]], torch.zeros(3, dtype=torch.int32, device="cuda")
    given = *rows, *x.x[2:], x.state, x.cache, x.table
    where: dict[str, Any] = {"slots": x.slots, "offset": offset, "overlap": overlap}
    lemmata.compress_step(*given, **where)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lemmata.compress_step(*given, **where)
    for t in range(tokens):
        for row, every in zip(rows, x.x[:2], strict=True):
            row.copy_(every[:, t : t + 1])
        offset.fill_(t)
        graph.replay()
    assert all(x.holds(b, tokens) for b in range(3))
