"""What the benchmarks of csa, hca and swa share: inputs, the bound, FlashMLA's calls, when two results agree.

FlashMLA has no window and no dense part. In prefill it takes one tensor of rows, here those of tokens and then the entries,
and a list of rows for each query; in decode a cache of each in fp8, in pages, and a plan. Rows, lists, pages and the plan are
made beforehand and not timed. It has kernels for 64 and 128 heads; to time it on fewer, they are repeated.

Rows are random numbers that fp8 pages hold exactly, so that both compute the same, and queries are tenths of random
numbers: then rounding to bf16 stays within FlashMLA's tolerances, and an entry left out does not.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import pad

from lemmata.bench import cudnn
from lemmata.bench.pages import DATA, PAGE, SCALES, D, pages, random_rows
from lemmata.bench.peers import Gradients, difference, find, require_near
from lemmata.bench.roofline import bound
from lemmata.bench.timing import Case
from lemmata.bindings.splits import VARIABLE

WINDOW, SCALE = 128, D**-0.5
DRAFTED = 8  # queries of a sequence at most at decode, with those of speculative decoding
BF16, I32 = torch.bfloat16, torch.int32

Results = Callable[[], tuple[Tensor, Tensor]]
"""A call; out [B, S, H, D] and lse [B, S, H]."""


class Sizes(NamedTuple):
    """Sequences, queries of each, heads, entries; tokens of each sequence, of which the queries are the last."""

    B: int
    S: int
    H: int
    T: int
    tokens: int


class Inputs(NamedTuple):
    """What the operators take, and which entries each query attends to, [B, S, K]; -1: none."""

    q: Tensor
    window_kv: Tensor
    compressed_kv: Tensor
    sink: Tensor
    offset: Tensor
    entries: Tensor


Operator = Callable[[Inputs], Results]
"""The call of inputs."""


class Tolerance(NamedTuple):
    """FlashMLA's: an element may be off by so much, or by so much of it; ``difference`` of the whole."""

    absolute: float
    relative: float
    difference: float


PREFILL = Tolerance(8e-4, 3.01 / 128, 7e-6), Tolerance(1e-6, 2.01 / 65536, 1e-7)  # of out, of lse
DECODE = Tolerance(1e-3, 2.01 / 128, 5e-6), Tolerance(1e-6, 8.01 / 65536, 1e-7)
_FEW, _PART = 16, 1e-5
"""How many outputs are looked at in fp64, where both differ by more than that: so many, or that part of them.

Weights rounded to bf16 leave an error of some 1.2e-4 in each result, and 8e-4 is five times that of both.
"""


def inputs(sizes: Sizes, choose: Callable[[Tensor], Tensor], device: str) -> Inputs:
    """Return random inputs; entries as chosen by the offset. The rows of entries that no query attends to are NaN."""
    B, S, H, T, tokens = sizes
    q = torch.randn(B, S, H, D, device=device, dtype=BF16) / 10
    window_kv, compressed_kv = random_rows(B, WINDOW - 1 + S, device), random_rows(B, T, device)
    offset = torch.full((B,), tokens - S, dtype=I32, device=device)
    entries = choose(offset).to(I32)
    unused = torch.ones(B, T + 1, dtype=torch.bool, device=device)
    unused.scatter_(1, torch.where(entries >= 0, entries, T).flatten(1).long(), False)
    compressed_kv[unused[:, :T]] = torch.nan
    return Inputs(q, window_kv, compressed_kv, torch.randn(H, device=device), offset, entries)


def merged(x: Inputs) -> tuple[Tensor, Tensor]:
    """Return rows [R, 1, D] and lists of them [S, 1, n], -1 up to a multiple of 128, of a single sequence."""
    S, R = x.q.shape[1], x.window_kv.shape[1]
    token = torch.arange(S, device=x.q.device).unsqueeze(-1)
    window = R - S + token + torch.arange(1 - WINDOW, 1, device=x.q.device)
    lists = torch.cat([window, torch.where(x.entries[0] >= 0, R + x.entries[0], -1)], -1).to(I32)
    rows = torch.cat([x.window_kv[0], x.compressed_kv[0]])
    return rows.unsqueeze(1), pad(lists, (0, -lists.shape[1] % 128), value=-1).unsqueeze(1)


def _prefill(x: Inputs) -> Results:
    peer: Any = find("flash_mla")
    H = x.q.shape[2]
    copies = max(64 // H, 1)
    q, sink, (rows, lists) = x.q[0].repeat(1, copies, 1), x.sink.repeat(copies), merged(x)

    def call() -> tuple[Tensor, Tensor]:
        out, _, lse = peer.flash_mla_sparse_fwd(q, rows, lists, SCALE, attn_sink=sink, use_legacy=True)
        return out[None, :, :H], lse[None, :, :H]

    return call


def _decode(plan: Any, x: Inputs) -> Results:
    peer: Any = find("flash_mla")
    (B, T), (_, S), q, sink = x.compressed_kv.shape[:2], x.q.shape[:2], x.q, x.sink
    sequence, query, token = (torch.arange(n, dtype=I32, device=q.device) for n in (B, S, WINDOW))
    sequence = sequence.view(-1, 1, 1)
    rows = pad(x.window_kv, (0, 0, 0, -x.window_kv.shape[1] % PAGE))
    window, of_window = pages(rows), rows.shape[1] * sequence + query.unsqueeze(-1) + token
    of_entries = torch.where(x.entries >= 0, T * sequence + x.entries, -1)
    entries = {"extra_k_cache": pages(x.compressed_kv), "extra_indices_in_kvcache": of_entries} if T else {}

    def call() -> tuple[Tensor, Tensor]:
        out, lse = peer.flash_mla_with_kvcache(
            q,
            window,
            None,
            None,
            D,
            plan,
            softmax_scale=SCALE,
            indices=of_window,
            attn_sink=sink,
            use_legacy=True,
            **entries,
        )
        return out, lse.mT

    return call


def _near(ours: Tensor, theirs: Tensor, tolerance: Tolerance) -> Tensor:
    """Return which elements are within FlashMLA's tolerance; NaN is not."""
    off = (ours - theirs).abs()
    return (off < tolerance.absolute) | (off < tolerance.relative * theirs.abs())


def _exact(x: Inputs, b: int, s: int, h: int) -> Tensor:
    """Return the output of a query's head in fp64, from the formula; its window is full."""
    entries = x.entries[b, s]
    keys = torch.cat([x.window_kv[b, s : s + WINDOW], x.compressed_kv[b, entries[entries >= 0].long()]]).double()
    scores = torch.cat([SCALE * (keys @ x.q[b, s, h].double()), x.sink[h].double().view(1)])
    return scores.softmax(0)[:-1] @ keys


def require_close(x: Inputs, name: str, ours: Tensor, theirs: Tensor, tolerance: Tolerance) -> None:
    """Require that results are FlashMLA's, or where a few outputs are not, those in fp64: either may be the one that is off.

    Raises:
        RuntimeError: they are neither.
    """
    far = (~_near(ours.float(), theirs.float(), tolerance)).nonzero().tolist()
    found = difference(ours.float(), theirs.float())
    checked = far if name == "out" and len(far) <= max(_FEW, _PART * ours.numel()) else []
    wrong = [i for i in checked if not _near(ours[tuple(i)].double(), _exact(x, *i[:3])[i[3]], tolerance)]
    if (far and not checked) or wrong or not found < tolerance.difference:  # so NaN is refused
        raise RuntimeError(
            f"expected {name} within FlashMLA's tolerances {tuple(tolerance)} of FlashMLA's,"
            f" got {len(far)} of {ours.numel()} elements further off, and a difference of {found:.1e}"
        )


def _agree(make: Callable[[], Inputs], ours: Operator, theirs: Operator, tolerances: tuple[Tolerance, ...]) -> None:
    x = make()
    for name, a, b, tolerance in zip(("out", "lse"), ours(x)(), theirs(x)(), tolerances, strict=True):
        require_close(x, name, a, b, tolerance)


def case(
    op: str, sizes: Sizes, attended: int, listed: int, limit: float | None, make: Callable[[], Inputs], ours: Operator
) -> Case:
    """Return the case of an operator.

    Args:
        op: its name.
        sizes: of the inputs; up to 8 queries of each sequence are decode.
        attended: entries that all queries attend to.
        listed: indices among the inputs.
        limit: of the operator's time.
        make: the inputs.
        ours: the operator.
    """
    B, S, H, T, _ = sizes
    decode = S <= DRAFTED
    contenders = {"lemmata": lambda: ours(make())}
    absent: tuple[str, ...] = ()
    agree: Callable[[], None] = lambda: None  # noqa: E731
    name = "FlashMLA, fp8 cache" if decode else "FlashMLA" if H >= 64 else "FlashMLA on 64 heads"
    if peer := find("flash_mla"):
        theirs = functools.partial(_decode, peer.get_mla_metadata()[0]) if decode else _prefill
        contenders[name] = lambda: theirs(make())
        agree = functools.partial(_agree, make, ours, theirs, DECODE if decode else PREFILL)
    else:
        absent = (name,)

    keys = attended + B * S * WINDOW
    rows = min(keys, B * (WINDOW - 1 + S + T))  # what is attended to, once, or each time if that is less
    other = B * S * H * (4 * D + 4) + 4 * listed  # q, out, lse
    least, why = bound(bytes=other + 2 * D * rows, special=H * keys, bf16=4 * D * H * keys)
    traffic = other + (DATA + SCALES if decode else 2 * D) * rows
    some = f"{listed // (B * S)} of " if listed else ""
    queries = f"decode {B} x {S}" if 1 < S <= DRAFTED else f"decode {B}" if decode else f"prefill {S}"
    shape = f"{queries}, {H} heads{f', {some}{T} entries' if T else ''}"
    return Case(op, shape, traffic, least, why, limit, contenders, absent, agree)


def in_splits(count: int, case: Case) -> Case:
    """Return a case of decode with the keys of a query in so many splits."""

    def asked(call: Callable[..., Any]) -> Callable[..., Any]:
        def run() -> Any:
            with patch.dict(os.environ, {VARIABLE: str(count)}):
                return call()

        return run

    ours = case.contenders["lemmata"]
    contenders = {**case.contenders, "lemmata": lambda: asked(ours())}
    shape = f"{case.shape}, {f'{count} splits' if count > 1 else 'one split'}"
    return replace(case, shape=shape, limit_us=None, contenders=contenders, agree=asked(case.agree))


FURTHEST = 1e-5  # the ``difference`` of gradients from the reference's or a peer's, each rounded to bf16


Upstream = tuple[Tensor, Tensor]
"""The gradients of out and lse."""


class Backward(NamedTuple):
    """The forward, the backward of inputs and upstream gradients, the PyTorch reference's, a query's indices.

    A backward gives the gradients of q, of the window's keys, of the entries where there are any, and of the sink.
    """

    forward: Operator
    ours: Callable[[Inputs, Upstream], Gradients]
    reference: Callable[[Inputs, Upstream], Gradients]
    listed: int = 0


def _upstream(x: Inputs) -> Upstream:
    """Return random gradients of out and lse."""
    return torch.randn_like(x.q), torch.randn(x.q.shape[:3], device=x.q.device)


def _cudnn(forward: Operator, x: Inputs, grads: Upstream) -> Gradients:
    """Return cuDNN's backward of a single sequence; it takes no gradient of lse."""
    (out, lse), window = forward(x)(), x.window_kv.shape[1]
    rows, lists = merged(x._replace(compressed_kv=x.compressed_kv.nan_to_num()))
    call = cudnn.attention_bwd(x.q[0], rows[:, 0], lists[:, 0], x.sink, SCALE, (grads[0][0], out[0], lse[0]))

    def split() -> tuple[Tensor, ...]:
        dq, rows, dsink = call()
        parts = [part.unsqueeze(0) for part in (dq, rows[:window], rows[window:])]
        return *(part for part in parts if part.numel()), dsink

    return split


def _gradients_agree(make: Callable[[], Inputs], backward: Backward) -> None:
    x = make()
    grads = _upstream(x)
    require_near(backward.ours(x, grads)(), backward.reference(x, grads)(), FURTHEST, "the reference's")
    if cudnn.found():
        grads = grads[0], torch.zeros_like(grads[1])
        require_near(backward.ours(x, grads)(), _cudnn(backward.forward, x, grads)(), FURTHEST, "cuDNN's")


def backward_case(op: str, sizes: Sizes, keys: int, limit: float | None, make: Callable[[], Inputs], backward: Backward
                  ) -> Case:  # fmt: skip
    """Return the case of an operator's backward.

    Args:
        op: its name.
        sizes: of the inputs.
        keys: entries that all queries attend to; the keys of windows come on top.
        limit: of the operator's time.
        make: the inputs.
        backward: the operator's.
    """
    B, S, H, T, _ = sizes
    keys += B * S * WINDOW
    traffic = 4 * B * S * H * (2 * D + 2) + 2 * 2 * D * B * (
        WINDOW - 1 + S + T
    )  # q, out and their gradients; keys and theirs
    least, why = bound(bytes=traffic, special=H * keys, bf16=10 * D * H * keys)
    some = f"{backward.listed} of " if backward.listed else ""
    shape = f"backward {S}, {H} heads{f', {some}{T} entries' if T else ''}"
    contenders = {"lemmata": lambda: backward.ours(x := make(), _upstream(x))}
    if cudnn.found():
        contenders[cudnn.NAME] = lambda: _cudnn(backward.forward, x := make(), _upstream(x))
    agree = functools.partial(_gradients_agree, make, backward)
    return Case(op, shape, traffic, least, why, limit, contenders, () if cudnn.found() else (cudnn.NAME,), agree)
