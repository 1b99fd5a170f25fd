"""What the records of csa, hca and swa share: an oracle in fp64 over all rows, each with how often a query has it; errors.

Both results are joined into one, ``[B, S, H, D + 1]``, the last of which is lse; so are their gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lemmata.reference.attention import Keys, logits
from opspec import Array

SIZES = {"B": 3, "S": 9, "P": 7, "T": 35}
LARGE = {"B": 2, "S": 257, "P": 130, "T": 515}
HALF = 2.0**-15  # what an fp32 rounds by, in units of what a bf16 rounds by
TINY = 1e-30  # what fp32 loses to underflow, and no result is about

INF = float("inf")


def join(results: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([results[0].float(), results[1].unsqueeze(-1)], -1)


def window_counts(S: int, P: int, offset: Array, window: int) -> Array:
    """Whether row r, the token at ``offset - P + r``, is one of the ``window`` up to the query's own, [B, S, P + S]."""
    token = offset[:, None, None] - P + np.arange(P + S)
    own = offset[:, None, None] + np.arange(S)[:, None]
    return ((token >= 0) & (token <= own) & (own - token < window)).astype(float)


def index_counts(indices: Array, T: int) -> Array:
    """How often a query's indices name each entry, [B, S, T]."""
    counts = np.zeros((*indices.shape[:2], T))
    for b, t, k in np.ndindex(indices.shape):
        if 0 <= indices[b, t, k] < T:
            counts[b, t, int(indices[b, t, k])] += 1
    return counts


def past_counts(S: int, T: int, offset: Array, ratio: int) -> Array:
    """Whether the last token of an entry is not beyond the query's, [B, S, T]."""
    last = (np.arange(T) + 1) * ratio - 1
    return (last[None, None] <= (offset[:, None] + np.arange(S))[..., None]).astype(float)


def times(q: Array, rows: Array) -> Array:
    """Each query by each row, [B, S, H, N]."""
    return q @ rows.swapaxes(1, 2)[:, None]


def over(weights: Array, rows: Array) -> Array:
    """Sums of rows, [B, S, H, D]."""
    return weights @ rows[:, None]


def into(weights: Array, q: Array) -> Array:
    """What each row has from all queries and heads, [B, N, D]."""
    B, S, H, N = weights.shape
    return weights.reshape(B, S * H, N).swapaxes(1, 2) @ q.reshape(B, S * H, -1)


class Dense:
    """Attention to all rows, ``counts[b,t,n]`` times to row n; q and rows in fp64."""

    def __init__(self, q: Array, rows: Array, counts: Array, sink: Array, scale: float) -> None:
        self.q, self.rows, self.sink, self.scale = q, rows, sink, scale
        with np.errstate(divide="ignore"):
            self.log_counts = np.log(counts)[:, :, None]
        self.seen = counts[:, :, None] > 0
        logits = scale * times(q, rows) + self.log_counts
        top = logits.max(-1, initial=-INF)
        with np.errstate(invalid="ignore", divide="ignore"):
            e = np.exp(logits - np.where(np.isfinite(top), top, 0)[..., None])
            self.lse = top + np.log(e.sum(-1))
            self.p = np.where(self.seen, e / e.sum(-1, keepdims=True), 0)
        both = self._where_some(np.logaddexp(self.lse, sink))
        self.share, self.left = np.exp(self._where_some(self.lse) - both), np.exp(sink - both)
        self.out = self.share[..., None] * over(self.p, rows)
        terms = times(abs(q), abs(rows)) * scale
        self.terms = 1 + np.where(self.seen, terms, 0).max(-1, initial=0) + abs(sink)
        self.loss = 1 + HALF * self.terms

    def _where_some(self, x: Array) -> Array:
        return np.where(np.isfinite(self.lse), x, 0)

    def results(self) -> Array:
        lse = np.where(np.isfinite(self.lse), self.lse, INF)
        return np.concatenate([self.out, lse[..., None]], -1)

    def scales(self) -> Array:
        """Return for out the sum of absolute values, and for lse fp32's unit; more where logits are sums of large terms."""
        out = over(self.share[..., None] * self.p, abs(self.rows))
        return np.concatenate([out * self.loss[..., None] + TINY, 4 * HALF * self.terms[..., None]], -1)

    def gradients(self, g: Array) -> tuple[Array, Array, Array]:
        """Return the gradients of q, rows and the sink: torch differentiates a softmax over the keys and the sink."""
        q, rows, sink = (torch.tensor(a, requires_grad=True) for a in (self.q, self.rows, self.sink))
        logits = self.scale * torch.einsum("bshd,bnd->bshn", q, rows) + torch.tensor(self.log_counts)
        with_sink = torch.cat([sink.expand(logits.shape[:3]).unsqueeze(-1), logits], -1)
        out = torch.einsum("bshn,bnd->bshd", with_sink.softmax(-1)[..., 1:], rows)
        some = torch.tensor(np.isfinite(self.lse))
        total = (out * torch.tensor(of_out(g))).sum() + (
            logits[some].logsumexp(-1) * torch.tensor(g[..., -1])[some]
        ).sum()
        return tuple(t.numpy() for t in torch.autograd.grad(total, (q, rows, sink)))  # type: ignore[return-value]

    def gradient_scales(self, g: Array) -> tuple[Array, Array, Array]:
        """Sums of absolute values; of a product of vectors, which rounds at random, the root of the sum of squares."""
        grad, q, rows = of_out(g), abs(self.q), abs(self.rows)
        P = self.share[..., None] * self.p
        products = np.sqrt(times(grad**2, rows**2))
        delta = np.sqrt((grad**2 * self.out**2).sum(-1))
        of_logits = P * (products + delta[..., None]) + self.p * abs(g[..., -1:])
        of_logits, P = of_logits * self.loss[..., None] * self.scale, P * self.loss[..., None]
        of_rows = into(of_logits, q) + into(P, abs(grad))
        of_sink = np.sqrt(((delta * (self.left + HALF) * self.loss) ** 2).sum(1) / 3).sum(0)
        return over(of_logits, rows) + TINY, of_rows + TINY, of_sink + TINY


def of_out(g: Array) -> Array:
    """The gradient of out as it arrives: in bf16."""
    return torch.tensor(g[..., :-1]).bfloat16().double().numpy()  # type: ignore[no-any-return]


def split(gradients: tuple[Array, Array, Array], T: int) -> tuple[Array, ...]:
    of_q, of_rows, of_sink = gradients
    entries = of_rows.shape[1] - T
    return of_q, of_rows[:, :entries], of_rows[:, entries:], of_sink


def once(dense: Callable[..., Dense]) -> Callable[..., Dense]:
    """The same answer to the next question about the same arrays."""
    last: list[tuple[tuple[object, ...], Dense]] = []

    def call(*arrays: Array, **statics: float) -> Dense:
        asked = (*arrays, *statics.values())
        if not last or len(last[0][0]) != len(asked) or any(a is not b for a, b in zip(last[0][0], asked, strict=True)):
            last[:] = [(asked, dense(*arrays, **statics))]
        return last[0][1]

    return call


def plain(attention: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """The reference on keys in fp32, so that torch sums their gradients in fp32."""

    def call(q: Tensor, window_kv: Tensor, compressed_kv: Tensor, *more: Tensor, **statics: float) -> Tensor:
        return join(attention(q, window_kv.float(), compressed_kv.float(), *more, **statics))

    return call


def in_bf16(q: Tensor, parts: tuple[Keys, ...], sink: Tensor, scale: float) -> Tensor:
    """Attention as one writes it for tensor cores: weights in bf16, and so their gradients and those of values.

    The rows are in fp32, as are logits, the softmax and sums over queries.
    """
    z = torch.cat([logits(q.float(), keys, scale) for keys in parts], -1)
    some = torch.cat([keys.seen for keys in parts], -1).any(-1, keepdim=True)
    with_sink = torch.cat([sink.expand(z.shape[:3]).unsqueeze(-1), z], -1)
    weights = torch.where(some.unsqueeze(-1), with_sink, 0.0).softmax(-1)[..., 1:].bfloat16()
    weights = torch.where(some.unsqueeze(-1), weights, 0.0)
    out = torch.zeros_like(q)
    for weight, keys in zip(weights.split([keys.seen.shape[-1] for keys in parts], -1), parts, strict=True):
        out = out + weight @ keys.of_each_query(keys.rows).bfloat16()
    return join((out, torch.where(some, torch.where(some.unsqueeze(-1), z, 0.0).logsumexp(-1), INF)))


def changed(
    attention: Callable[..., Tensor], names: tuple[str, ...], **changes: Callable[..., object]
) -> Callable[..., Tensor]:
    """The attention with some of its arguments replaced; a change takes the arguments by their names."""

    def call(*tensors: Tensor, **statics: float) -> Tensor:
        named = dict(zip(names, tensors, strict=True)) | statics
        new = named | {name: change(named) for name, change in changes.items()}
        return attention(*(new[name] for name in names), **{name: new[name] for name in statics})

    return call


def planted(attention: Callable[..., Tensor], names: tuple[str, ...]) -> dict[str, Callable[..., Tensor]]:
    """Errors that every operator could have."""

    def results(*tensors: Tensor, **statics: float) -> tuple[Tensor, Tensor, Tensor]:
        both = attention(*tensors, **statics)
        return both[..., :-1], both[..., -1:], tensors[names.index("sink")].unsqueeze(-1)

    def valued_sink(*tensors: Tensor, **statics: float) -> Tensor:
        out, lse, sink = results(*tensors, **statics)
        return torch.cat([out + (sink - lse).sigmoid(), lse], -1)

    def with_sink(*tensors: Tensor, **statics: float) -> Tensor:
        out, lse, sink = results(*tensors, **statics)
        return torch.cat([out, torch.logaddexp(lse, sink)], -1)

    def base_two(*tensors: Tensor, **statics: float) -> Tensor:
        out, lse, _ = results(*tensors, **statics)
        return torch.cat([out, lse / np.log(2)], -1)

    return {
        "the sink in the numerator": valued_sink,
        "lse with the sink": with_sink,
        "lse in base 2": base_two,
        "the sink scaled": changed(attention, names, sink=lambda a: a["sink"] * a["scale"]),
        "no sink": changed(attention, names, sink=lambda a: torch.full_like(a["sink"], -INF)),
        "another head's sink": changed(attention, names, sink=lambda a: a["sink"].roll(1)),
        "not scaled": changed(attention, names, scale=lambda a: 1.0),
        "a window too short": changed(attention, names, window=lambda a: a["window"] - 1),
        "a window too long": changed(attention, names, window=lambda a: a["window"] + 1),
        "the window a token late": changed(attention, names, window_kv=lambda a: a["window_kv"].roll(-1, 1)),
        "tokens before the first": changed(attention, names, offset=lambda a: a["offset"] + 2**20),
    }


def planted_in_entries(attention: Callable[..., Tensor], names: tuple[str, ...]) -> dict[str, Callable[..., Tensor]]:
    """Errors that every operator with entries could have."""
    return {
        "another sequence's entries": changed(attention, names, compressed_kv=lambda a: a["compressed_kv"].roll(1, 0)),
        "no entries": changed(attention, names, compressed_kv=lambda a: a["compressed_kv"][:, :0]),
    }
