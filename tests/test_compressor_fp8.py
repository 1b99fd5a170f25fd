"""Entries of the KV compressor rounded as a cache in fp8 keeps them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

import lemmata
import test_compressor_step
from lemmata.reference import fp8
from lemmata.reference.fp8 import through_fp8
from opspec import Array
from test_compressor import KINDS, call_of, documents
from test_compressor import interpreted as of_entries
from test_compressor_step import served

FORWARD: Any = importlib.import_module("lemmata.kernels.compressor")
STEP: Any = importlib.import_module("lemmata.kernels.compressor_step")


def numbers_of_e4m3() -> Array:
    """All numbers of e4m3 from 0 on: 3 bits behind a leading 1, or none before the least exponent; the largest is 448."""
    return np.array(
        [m / 8 * 2.0**-6 for m in range(8)]
        + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]
    )


def rounded(x: Array) -> Array:
    """A block of 64 numbers in fp64, each the nearest of e4m3 times a power of two; of two as near, that with an even bit."""
    table, size, scale = numbers_of_e4m3(), max(np.abs(x).max(), float(np.float32(1e-4))), 2.0**-40
    while np.float32(size) * np.float32(1 / 448) > scale:
        scale *= 2
    found = np.empty_like(x)
    for n, value in enumerate(np.abs(x) / scale):
        apart = np.abs(table - value)
        nearest = np.flatnonzero(apart == apart.min())
        found[n] = table[nearest[nearest % 2 == 0][0] if len(nearest) > 1 else nearest[0]] * scale
    return np.copysign(found, x)


def test_there_are_127_numbers_and_the_largest_is_448() -> None:
    table = numbers_of_e4m3()
    assert (len(table), table[-1], table[1]) == (127, 448.0, 2.0**-9)
    assert (np.diff(table) > 0).all()


@given(seed=st.integers(0, 2**16), exponent=st.integers(-30, 30), power=st.booleans())
def test_a_block_is_rounded_to_the_nearest(seed: int, exponent: int, power: bool) -> None:
    """Largest numbers at a power of two times 448 included, halves between two numbers, and blocks near 0."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(3, 64, generator=generator) * 2.0**exponent).bfloat16()
    x[0, :8] = torch.tensor([448, 17, 19, -17, 9.5, 2.0**-10, 3 * 2.0**-10, 0]) * 2.0 ** (exponent if power else -20)
    x[1, 0] = 448 * 2.0**exponent
    want = np.stack([rounded(block) for block in x.double().numpy()])
    assert np.array_equal(through_fp8(x, 64).double().numpy(), want)
    assert torch.equal(through_fp8(through_fp8(x, 64), 64), through_fp8(x, 64)), "what is rounded stays"
    assert not np.array_equal(through_fp8(x * 1.03, 64).double().numpy(), want)


def test_kernels_round_by_the_reference_s_numbers() -> None:
    assert (FORWARD.BLOCK, FORWARD.FLOOR, FORWARD.LARGEST) == (fp8.BLOCK, fp8.FLOOR, fp8.LARGEST)


def test_other_channels_stay_and_blocks_are_their_own() -> None:
    x = torch.randn(2, 5, 192, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = through_fp8(x, 128)
    assert torch.equal(out[..., 128:], x[..., 128:])
    assert torch.equal(out[..., 64:128], through_fp8(x[..., 64:128], 64))
    assert torch.equal(through_fp8(x, 0), x)
    x[0, 0, 0] = torch.inf
    assert through_fp8(x, 128)[0, 0, :64].isnan().all()
    assert torch.equal(through_fp8(x, 128)[0, 0, 64:], out[0, 0, 64:])


def calls(overlap: bool, device: torch.device, D: int = 128, pairs: int = 32) -> list[Tensor]:
    return [t.to(device) for t in call_of(2, 23, 4, overlap, D, pairs)]


@KINDS
def test_entries_are_those_without_rounding_and_then_rounded(device: torch.device, overlap: bool) -> None:
    x = calls(overlap, device)
    plain = lemmata.compress(*x, overlap=overlap)
    got = lemmata.compress(*x, overlap=overlap, simulate_fp8=True)
    assert torch.equal(got, through_fp8(plain, 64))
    assert not torch.equal(got, plain)
    narrow = calls(overlap, device, 64)  # of which all channels rotate
    assert torch.equal(
        lemmata.compress(*narrow, simulate_fp8=True, overlap=overlap), lemmata.compress(*narrow, overlap=overlap)
    )


@KINDS
def test_the_gradient_passes_as_if_nothing_were_rounded(device: torch.device, overlap: bool) -> None:
    x = calls(overlap, device)
    leaves = [t.requires_grad_() for t in x[:4]]
    outs = [lemmata.compress(*x, overlap=overlap, simulate_fp8=rounds) for rounds in (False, True)]
    g = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)
    for plain, through in zip(*(torch.autograd.grad(out, leaves, g) for out in outs), strict=True):
        assert torch.equal(plain, through)
        assert plain.any()


@KINDS
def test_documents_and_steps_are_rounded_alike(device: torch.device, overlap: bool) -> None:
    x = documents((9, 0, 4, 13), overlap, device)
    for name, t in zip(("kv", "gate", "ape", "norm_weight", "rotation"), calls(overlap, device), strict=True):
        x[name] = t.flatten(0, 1)[:26] if name in ("kv", "gate") else t
    plain = lemmata.compress(**x)
    assert torch.equal(lemmata.compress(**x, simulate_fp8=True), through_fp8(plain, 64))
    s = served(device, 4, overlap, 3, D=128, pairs=32)
    for first in range(0, 40, 2):
        rows = [t[:, first : first + 2] for t in s.x[:2]]
        where = {"slots": s.slots, "offset": first, "overlap": overlap}
        lemmata.compress_step(*rows, *s.x[2:], s.state, s.cache, s.table, **where, simulate_fp8=True)
    want = through_fp8(lemmata.compress(*(t[:, :40] for t in s.x[:2]), *s.x[2:], overlap=overlap), 64)
    assert all(torch.equal(s.entries(b, 40), want[b]) for b in range(3))


@KINDS
def test_the_operator_under_compile(device: torch.device, overlap: bool) -> None:
    x = calls(overlap, device)
    offset = torch.zeros(2, dtype=torch.int32, device=device)
    opcheck(torch.ops.lemmata.compress_fwd.default, (*x, offset, 0, 1e-6, True))
    torch._dynamo.reset()
    compiled = torch.compile(lemmata.compress, fullgraph=True, backend="aot_eager")
    want = lemmata.compress(*x, overlap=overlap, simulate_fp8=True)
    assert torch.equal(compiled(*x, overlap=overlap, simulate_fp8=True), want)


def test_what_cannot_be_rounded_is_named() -> None:
    x = call_of(1, 8, 4, True)
    with pytest.raises(
        ValueError, match=r"^compress: simulate_fp8: expected channels that do not rotate in blocks of 64, got 48"
    ):
        lemmata.compress(*x, simulate_fp8=True)
    with pytest.raises(TypeError, match=r"^compress: simulate_fp8: expected bool, got int"):
        lemmata.compress(*x, simulate_fp8=1)  # type: ignore[arg-type]  # which is refused
    s = served(torch.device("cpu"), 4, True, 0)
    with pytest.raises(
        ValueError, match=r"^compress_step: simulate_fp8: expected channels that do not rotate .*, got 48"
    ):
        lemmata.compress_step(
            *(t[:, :1] for t in s.x[:2]), *s.x[2:], s.state, s.cache, s.table, offset=0, simulate_fp8=True
        )


@pytest.mark.parametrize(("ratio", "overlap"), [(4, True), (20, False)])
def test_interpreted_kernels_round_as_the_reference_does(
    ratio: int, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_entries(monkeypatch)
    test_compressor_step.interpreted(monkeypatch)
    x = call_of(2, 2 * ratio, ratio, overlap, 256, 32)
    offset = torch.zeros(2, dtype=torch.int32)
    plain, _ = FORWARD.forward(*x, offset, 0, 1e-6)
    got, _ = FORWARD.forward(*x, offset, 0, 1e-6, True)
    assert torch.equal(got, through_fp8(plain, 192))
    assert not torch.equal(got, plain)
    state, cache = torch.full((2, 4 * ratio, 2, x[0].shape[2]), torch.nan), torch.zeros(2, 2, 256).bfloat16()
    table = torch.arange(2, dtype=torch.int32).view(2, 1)
    STEP.step(*x, state, cache, table, table.flatten(), offset, 1e-6, True)
    assert torch.equal(cache, got)


@pytest.mark.gpu
@pytest.mark.parametrize(("ratio", "overlap"), [(4, True), (128, False)])
def test_the_shipped_kernels_round_as_the_reference_does(ratio: int, overlap: bool) -> None:
    x = [t.to("cuda") for t in call_of(2, 5 * ratio, ratio, overlap, 512, 32, 5 * ratio)]
    for size in (1e-6, 1.0, 448.0, 1e8):
        x[3] = torch.full_like(x[3], size)
        plain = lemmata.compress(*x, overlap=overlap)
        got = lemmata.compress(*x, overlap=overlap, simulate_fp8=True)
        assert torch.equal(got, through_fp8(plain, 448))
        assert not torch.equal(got, plain)
    s = test_compressor_step.Served.of(tuple(x), overlap, 4 * ratio)
    for first in (0, 2 * ratio + 1):
        rows = [t[:, first : 2 * ratio + 1 if first == 0 else 5 * ratio] for t in x[:2]]
        where = {"slots": s.slots, "offset": first, "overlap": overlap}
        lemmata.compress_step(*rows, *x[2:], s.state, s.cache, s.table, **where, simulate_fp8=True)
    assert all(torch.equal(s.entries(b, 5 * ratio), got[b]) for b in range(2))
