"""``lemmata.indexer_loss``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import indexer_loss as reference
from ..reference.contract import Contract
from ..reference.packed import packed
from . import chunks, dense_loss, flops, listed_loss
from .offset import for_each_sequence
from .packed import Packed, PackedCall
from .registry import Implementation, check, define, plain
from .vmap import one_by_one

_CHUNK = 2**24  # elements of the largest temporary, unless those of one query are more

Named = dict[str, Tensor]
"""The tensors of a call by name."""


def _held_by_list(x: Named) -> int:
    """Return the elements of the largest array of one query: the rows of its candidates, or its dot products."""
    widest: int = max(*x["q"].shape[2:], *x["core_q"].shape[2:])
    return widest * x["indices"].shape[2]


def _held_by_all(x: Named) -> int:
    """Return the elements of the largest array of one query: its dot products with all entries."""
    return x["k"].shape[1] * max(x["q"].shape[2], x["core_q"].shape[2])


def _add_listed(total: Tensor, of_rows: Tensor, piece: Named) -> None:
    """Add to the rows that a piece's indices name, each query's part in the order of the queries; the last row is for none."""
    indices, T = piece["indices"].flatten(), total.shape[1] - 1
    row = torch.where((indices >= 0) & (indices < T), indices, T)
    if total.is_cuda:  # where index_add_ has no fixed order, and index_put_ sorts
        total[0].index_put_((row.long(),), of_rows.flatten(0, 2), accumulate=True)
    else:
        total[0].index_add_(0, row, of_rows.flatten(0, 2))


def _add_all(total: Tensor, of_rows: Tensor, _: Named) -> None:
    """Add to all rows."""
    total[:, :-1] += of_rows


@dataclass(frozen=True)
class _Form:
    """One of the two forms of the loss: over listed candidates, or over all that a query sees.

    Attributes:
        name: that of the torch op.
        contract, backward: what the public function and its backward take and return.
        loss: the reference.
        parts: the gradients of q, of rows of k and of weights.
        add: adds those of rows to a total, [1, T + 1, D], of which the last row is dropped.
        held: from the tensors to the elements of the largest array of one query.
        kernels: what CUDA runs for the loss and its gradients.
    """

    name: str
    contract: Contract
    backward: Contract
    loss: Callable[..., Tensor]
    parts: Callable[..., tuple[Tensor, Tensor, Tensor]]
    add: Callable[[Tensor, Tensor, Named], None]
    held: Callable[[Named], int]
    kernels: tuple[Implementation, Implementation]

    def bind(self, statics: str) -> tuple[Implementation, PackedCall]:
        """Define the torch ops, with these static parameters in torch's notation; return the forward of either layout."""
        inputs, given = (_tensors(contract) for contract in (self.contract, self.backward))
        formulas = flops.indexer_loss(inputs, products=1), flops.indexer_loss(given, products=3)
        bwd = define(
            f"{self.name}_bwd",
            f"({_schema(given)}, {statics}) -> (Tensor grad_q, Tensor grad_k, Tensor grad_weights)",
            reference=self._backward,
            kernel=self.kernels[1],
            idle=listed_loss.idle,
            fake=self._fake_bwd,
            vmap=one_by_one,
            flops=formulas[1],
        )
        fwd = define(
            f"{self.name}_fwd",
            f"({_schema(inputs)}, {statics}) -> (Tensor out)",
            reference=self._forward,
            kernel=self.kernels[0],
            idle=listed_loss.idle,
            fake=self._fake,
            vmap=one_by_one,
            gradient=bwd,
            flops=formulas[0],
        )
        packed_bwd = Packed(packed(self.backward), bwd, statics).bind(f"{self.name}_packed_bwd", formulas[1])
        packed_fwd = Packed(packed(self.contract), fwd, statics)
        return fwd, packed_fwd.bind(f"{self.name}_packed_fwd", formulas[0], gradient=packed_bwd.op)

    def _forward(self, *args: Any) -> Tensor:
        """Run the reference in chunks of bounded memory."""
        x, statics = _named(self.contract, args)
        out = x["weights"].new_empty(x["q"].shape[:2])
        for at, piece in self._pieces(x):
            out[at] = self.loss(*piece.values(), *statics)
        return out

    def _backward(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run the reference in chunks of bounded memory; round the gradient of the keys to their dtype once."""
        x, statics = _named(self.backward, args)
        q, k, weights = x["q"], x["k"], x["weights"]
        grad_q, grad_weights = q.new_empty(q.shape), weights.new_empty(weights.shape)
        total = weights.new_zeros(k.shape[0], k.shape[1] + 1, k.shape[2])
        for at, piece in self._pieces(x):
            grad_q[at], of_rows, grad_weights[at] = self.parts(*piece.values(), *statics)
            self.add(total[at[0]], of_rows, piece)
        return grad_q, total[:, :-1].to(k.dtype, memory_format=torch.contiguous_format, copy=True), grad_weights

    def _pieces(self, x: Named) -> Iterator[tuple[tuple[slice, slice], Named]]:
        """Yield as many queries of a sequence at a time as hold ``_CHUNK`` elements, where they are, and their tensors."""
        for b, s in chunks.pieces(x["q"], 0, max(_CHUNK // max(self.held(x), 1), 1)):
            # contiguous, so that strides do not change a bit
            yield (b, s), {name: _part(name, tensor, b, s).contiguous() for name, tensor in x.items()}

    def _fake(self, *args: Any) -> Tensor:
        x = self._checked(self.contract, args)
        return x["weights"].new_empty(x["q"].shape[:2])

    def _fake_bwd(self, *args: Any) -> tuple[Tensor, ...]:
        x = self._checked(self.backward, args)
        return tuple(x[name].new_empty(x[name].shape) for name in ("q", "k", "weights"))

    @staticmethod
    def _checked(contract: Contract, args: tuple[Any, ...]) -> Named:
        x, statics = _named(contract, args)
        names = [name for name in ("ratio", "scale") if name in contract.statics]
        contract.check(*x.values(), **dict(zip(names, statics, strict=True)))
        return x


def _part(name: str, tensor: Tensor, b: slice, s: slice) -> Tensor:
    """Return a piece's part of a tensor of the call, by its name."""
    if name == "sink":
        return tensor
    if name == "offset":
        return tensor[b].add(s.start)
    return tensor[b] if name in ("k", "compressed_kv") else tensor[b, s]


def _named(contract: Contract, args: tuple[Any, ...]) -> tuple[Named, tuple[Any, ...]]:
    count = len(contract.inputs)
    return dict(zip(_tensors(contract), args[:count], strict=True)), args[count:]


def _tensors(contract: Contract) -> tuple[str, ...]:
    return tuple(spec.name for spec in contract.inputs)


def _schema(names: tuple[str, ...]) -> str:
    return ", ".join(f"Tensor {name}" for name in names)


_LISTED = _Form(
    "indexer_loss",
    reference.LISTED,
    reference.LISTED_BWD,
    reference.indexer_loss,
    reference.indexer_loss_parts,
    _add_listed,
    _held_by_list,
    (listed_loss.forward, listed_loss.backward),
)
_DENSE = _Form(
    "indexer_loss_dense",
    reference.DENSE,
    reference.DENSE_BWD,
    reference.indexer_loss_dense,
    reference.indexer_loss_dense_parts,
    _add_all,
    _held_by_all,
    (dense_loss.forward, dense_loss.backward),
)
_listed, _packed_listed = _LISTED.bind("float scale")
_dense, _packed_dense = _DENSE.bind("int ratio, float scale")


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its config: of the loss over lists, and of its gradients."""
    from ..kernels import indexer_loss_rows as rows
    from ..kernels.gradient_sums import Config as SumConfig
    from ..kernels.gradient_sums import sum_listed
    from ..kernels.indexer_loss import Config, loss_student, loss_teacher
    from ..kernels.indexer_loss_backward import loss_bwd_listed

    core, student = Config(model.heads, model.head_dim, model.scale), Config(model.index_heads, model.index_dim)
    yield loss_teacher, core
    yield loss_student, student
    yield rows.loss_rows, rows.Config(core.head_blocks)
    yield rows.loss_scores_bwd, rows.Config(core.head_blocks)
    yield loss_bwd_listed, student
    yield sum_listed, SumConfig(student.D)


def indexer_loss(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    core_q: Tensor,
    compressed_kv: Tensor,
    indices: Tensor | None,
    sink: Tensor,
    lse: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    cu_entries: Tensor | None = None,
    offset: int | Tensor = 0,
    ratio: int = 4,
    scale: float | None = None,
) -> Tensor:
    """Return the loss that trains the Lightning Indexer: how far its softmax is from what attention does, for each query.

    The teacher P is the joint softmax of ``lemmata.csa`` over window, entries and sink, summed over the heads and normalised
    over the query's candidates: ``P[j] = sum over h of exp(z[h,j] - logaddexp(lse[h], sink[h]))``, divided by its sum over
    j, with ``z[h,j] = scale * (core_q[h] · compressed_kv[j])``. The student S is the softmax of ``lemmata.indexer_scores``
    over the same candidates, and the loss is ``sum over j of P[j] * (log P[j] - log S[j])``. The candidates are those that
    ``indices`` names or, for the warm-up of the indexer beside dense attention, all that the query sees.

    Args:
        q: ``[B, S, H, D]`` bf16, of the indexer; H one of 8, 16, 32, 64 and D one of 32, 64, 128. Any strides, as of all
            tensors here; B, S, T and K may be 0; B up to 65535, T up to 2^20.
        k: ``[B, T, D]`` bf16, of the indexer. Entry j stands for the tokens from ``ratio * j`` on.
        weights: ``[B, S, H]`` fp32, of any sign; constant factors belong into them, and matter here.
        core_q: ``[B, S, core_H, core_D]`` bf16, attention's; core_H one of 8, 16, 32, 64, 128, core_D a multiple of 64, to 512.
        compressed_kv: ``[B, T, core_D]`` bf16, the entries of attention.
        indices: ``[B, S, K]`` int32, K up to 8192, in any order, as for ``csa``: those below 0 or from T on are none, and one
            that comes twice counts twice. None: j is a candidate of query t if ``j < (offset[b] + t + 1) // ratio``.
        sink: ``[core_H]`` fp32, that of attention.
        lse: ``[B, S, core_H]`` fp32, as attention returns it: of all keys, the window's too, and without the sink.
        cu_seqlens: int32 ``[documents + 1]``, bounds of packed documents in flat tensors, as for ``csa``; None: a batch.
        cu_entries: int32 ``[documents + 1]``, bounds of their entries, which count from a document's first.
        offset: the absolute position of the first query, as for ``indexer_scores``.
        ratio: tokens in an entry, 1 to 65536. It and ``offset`` say what a query sees, and count only without indices.
        scale: that of attention, 1e-6 to 1e3; None: ``core_D ** -0.5``.

    Returns:
        ``[B, S]`` fp32, contiguous, a loss for each query, at least 0. Take the mean over all of them, or over those with
        a candidate. A query without candidates has loss 0, and so has one whose teacher gives its candidates no weight, as
        with a sink or lse of +inf for all heads. Differentiable once, with respect to q, k and weights; the teacher is
        taken as it is, and its four tensors have no gradient. The derivative of relu at 0 is 0. Bitwise deterministic; a
        query's loss does not depend on other queries and sequences, nor a sequence's gradients on other sequences.

    No S x T matrix is held: on a GPU kernels compute the loss and its gradients, on a CPU the PyTorch reference, for as many
    queries at a time as 64 MiB hold. What is no candidate of a query changes nothing, NaN included. The loss of a query with a
    candidate or a tensor that is NaN or infinite is not specified.

    Raises:
        TypeError: an argument is not a tensor of the right dtype, or a parameter is of the wrong kind.
        ValueError: a shape, a device, a parameter or a bound does not fit.

    Formula: DeepSeek-V3.2's report, section 2.1.1, with the joint softmax of DeepSeek-V4's attention.
    """
    before, after, bounds = (q, k, weights, core_q, compressed_kv), (sink, lse), (cu_seqlens, cu_entries)
    return _loss(before, indices, after, bounds, offset, plain(ratio), plain(scale))


def _loss(
    before: tuple[Tensor, ...],
    indices: Tensor | None,
    after: tuple[Tensor, ...],
    bounds: tuple[Tensor | None, ...],
    offset: int | Tensor,
    ratio: int,
    scale: float | None,
) -> Tensor:
    """Call the op over a list, or over all that is seen, once its contract admits the tensors around the list."""
    q, core_q = before[0], before[3]
    if not torch.compiler.is_compiling() and not isinstance(q, Tensor):  # there, the fakes check
        raise TypeError(f"indexer_loss: q: expected a tensor, got {type(q).__name__}")
    if any(bound is not None for bound in bounds):
        if indices is not None:
            return _packed_listed(*before, indices, *after, *bounds, scale=scale)  # type: ignore[no-any-return]
        return _packed_dense(*before, *after, *bounds, offset=offset, ratio=ratio, scale=scale)  # type: ignore[no-any-return]
    given = {} if scale is None else {"scale": scale}
    if indices is not None:
        check(reference.LISTED, *before, indices, *after, **given)
        return _listed(*before, indices, *after, _scale(core_q, scale))  # type: ignore[no-any-return]
    at = for_each_sequence("indexer_loss", offset, q)
    check(reference.DENSE, *before, *after, at, ratio=ratio, **given)
    return _dense(*before, *after, at, ratio, _scale(core_q, scale))  # type: ignore[no-any-return]


def _scale(core_q: Tensor, scale: float | None) -> float:
    return core_q.shape[-1] ** -0.5 if scale is None else scale
