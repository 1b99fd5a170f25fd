"""Steps of the KV compressor at decode: lemmata, torch.compile of the same on sequences that all have a state and pages.

Each case is one token of each of 1, 32 or 128 sequences, of CSA's attention (C4, 512 channels), of its indexer (C4, 128) and of
HCA (C128, 512). Sequences stand at different tokens of their blocks, so that with 128 of them some finish an entry in any call.
One sequence stands at the last token of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.reference import compressor_step as reference

PAIRS, EPS, PAGE, CONTEXT, ROOM = 32, 1e-6, 64, 1024, 8
BATCHES = 1, 32, 128
LIMIT = 6.0


def inputs(B: int, ratio: int, D: int, device: str = "cuda") -> tuple[Tensor, ...]:
    """Return the tensors of a step of one token, those of the operator in its order."""
    halves = 1 + (ratio == 4)
    columns = CONTEXT // ratio // PAGE + 1
    kv, gate = (torch.randn(B, 1, halves * D, device=device) for _ in range(2))
    weights = torch.randn(ratio, halves * D, device=device), torch.rand(D, device=device)
    angles = torch.outer(
        torch.arange(CONTEXT, device=device), 160000.0 ** -(torch.arange(PAIRS, device=device) / PAIRS)
    )
    rotation = torch.stack([angles.cos(), angles.sin()], -1)
    state = torch.randn(B, halves * ratio + ROOM, 2, halves * D, device=device)
    cache = torch.zeros(B * columns, PAGE, D, device=device, dtype=torch.bfloat16)
    table = torch.randperm(B * columns, device=device).int().view(B, columns)
    offset = CONTEXT - 1 - torch.arange(B, device=device, dtype=torch.int32)
    return kv, gate, *weights, rotation, state, cache, table, torch.randperm(B, device=device).int(), offset


def plain(*tensors: Tensor) -> None:
    """Do the step where all sequences have a state and all entries a page: nothing is selected, so that a graph takes it."""
    x = reference.Step(*tensors)
    out = reference.entries(reference.pool(x, 1).total.bfloat16(), x, EPS, torch.bfloat16)
    page = x.cache.shape[1]
    at = x.table.gather(1, x.first // page), x.first % page
    done = (x.first + 1) * x.ratio == x.start + 1
    x.cache[at] = torch.where(done.unsqueeze(-1), out, x.cache[at])
    for n, rows in enumerate((x.kv, x.gate)):
        x.state[x.slots.unsqueeze(-1), reference.place(x.start, x), n] = rows


def _call(op: Callable[..., object], B: int, ratio: int, D: int) -> Call:
    return functools.partial(op, *inputs(B, ratio, D))


def _agree(B: int, ratio: int, D: int) -> None:
    """Raise AssertionError unless both leave the same, to the rounding of entries."""
    ours = inputs(B, ratio, D)
    theirs = [t.clone() for t in ours]
    torch.ops.lemmata.compress_step_fwd(*ours, EPS)
    plain(*theirs)
    assert torch.equal(ours[5], theirs[5])
    assert ours[6].any()
    assert (ours[6].float() - theirs[6].float()).abs().max() <= 2.0**-6 * theirs[6].abs().max()


def _step(*tensors: Tensor) -> None:
    torch.ops.lemmata.compress_step_fwd.default(*tensors, EPS)


def case(B: int, kind: str, ratio: int, D: int) -> Case:
    """Return a case; its bound reads the candidates of the entries that are finished and writes the rows of the call."""
    halves = 1 + (ratio == 4)
    finished = -(-B // ratio)
    traffic = 8 * finished * halves * ratio * D + 2 * 8 * B * halves * D + 2 * finished * D
    least, why = bound(bytes=traffic, fp32=4 * finished * halves * ratio * D)
    contenders = {
        "lemmata": functools.partial(_call, _step, B, ratio, D),
        "torch.compile": functools.partial(_call, torch.compile(plain, dynamic=False), B, ratio, D),
    }
    agree = functools.partial(_agree, B, ratio, D)
    return Case("compress_step", f"1 token of {B}, {kind}", traffic, least, why, LIMIT, contenders, agree=agree)
