"""What the bindings of csa, hca and swa share: checks, chunks of bounded memory, both torch ops of one operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.nn.functional import pad

from ..operators import Kernel
from ..reference.contract import Contract
from ..reference.packed import packed
from . import chunks, flops
from .offset import for_each_sequence
from .packed import Packed, PackedCall
from .registry import Implementation, check, define, plain, short
from .shard_backward import ShardBackward
from .vmap import one_by_one

Backward = Callable[[dict[str, Tensor], tuple[Any, ...]], tuple[Tensor, ...]]

_NARROWEST = 128  # columns of a head in the kernels
_CHUNK = 2**24  # elements of the largest temporary, unless those of one query are more


@dataclass(frozen=True)
class Attention:
    """One operator of the family.

    Attributes:
        name: that of the public function, of its reference and, with ``_bwd``, of the reference's backward.
        reference: the module of both.
        contract, backward: what the public function and its backward take and return.
        shard_backward: what the backward takes and returns where other keys are elsewhere.
        held: from the tensors by name and the window to the elements of the largest array of one query.
    """

    name: str
    reference: ModuleType
    contract: Contract
    backward: Contract
    shard_backward: Contract
    held: Callable[[dict[str, Tensor], int], int]

    def prepared(
        self, q: Tensor, others: tuple[Tensor, ...], offset: int | Tensor, scale: float | None, **statics: int
    ) -> tuple[Tensor, float]:
        """Check a call; return the offset as a tensor, and the scale."""
        if not isinstance(q, Tensor):
            raise TypeError(f"{self.name}: q: expected a tensor, got {type(q).__name__}")
        if q.is_nested:
            raise TypeError(f"{self.name}: q: expected a strided tensor, got a nested one")
        offset = for_each_sequence(self.name, offset, q)
        if scale is None:
            check(self.contract, q, *others, offset, **statics)
            return offset, q.shape[-1] ** -0.5
        check(self.contract, q, *others, offset, **statics, scale=scale)
        return offset, scale

    def bind(self, statics: str, launcher: Implementation, backward: Backward) -> Calls:
        """Define the torch ops and return the calls of them.

        Args:
            statics: the static parameters in torch's notation.
            launcher: what a CUDA call of the forward runs.
            backward: what a CUDA call of the backward runs, on its tensors by name and its static parameters; gradients of
                keys are as wide as their sums.
        """

        def bwd_on_cuda(*args: Any) -> tuple[Tensor, ...]:
            x, more = _named(self.backward, args)
            grads = zip(_summed(self.backward), (found := backward(x, more))[1:], strict=True)
            return found[0], *(grad.type_as(x[name]) for name, grad in grads)

        def shard_bwd_on_cuda(*args: Any) -> tuple[Tensor, ...]:
            return backward(*_named(self.shard_backward, args))

        bwd, packed_bwd = self._bind("bwd", self.backward, statics, (self.chunked_bwd, bwd_on_cuda))
        shard = self._bind("shard_bwd", self.shard_backward, statics, (self._chunked_shard_bwd, shard_bwd_on_cuda))
        forward = self._chunked, launcher
        fwd, packed_fwd = self._bind("fwd", self.contract, statics, forward, (bwd, packed_bwd.op))
        return Calls(self, short(fwd), packed_fwd, ShardBackward(self.shard_backward, *shard))

    def _bind(
        self,
        name: str,
        contract: Contract,
        statics: str,
        run: tuple[Implementation, Implementation],
        gradients: tuple[OpOverload | None, OpOverload | None] = (None, None),
    ) -> tuple[OpOverload, PackedCall]:
        """Define a torch op, and the same on packed documents, from what runs on a CPU and on a GPU."""
        formula = flops.attention(_tensors(contract), products=2 if contract is self.contract else 5)
        arguments = ", ".join(f"Tensor {name}" for name in _tensors(contract))
        results = ", ".join(f"Tensor {spec.name}" for spec in contract.outputs)
        op = define(
            f"{self.name}_{name}",
            f"({arguments}, {statics}) -> ({results})",
            reference=run[0],
            kernel=run[1],
            fake=functools.partial(_fake, contract),
            idle=_idle,
            vmap=one_by_one,
            gradient=gradients[0],
            flops=formula,
            shards="heads",
        )
        before, _, direction = f"{self.name}_{name}".rpartition("_")
        flat = Packed(packed(contract), op, statics)
        return op, flat.bind(f"{before}_packed_{direction}", formula, "heads of tokens", gradients[1])

    def _chunked(self, *args: Any) -> tuple[Tensor, Tensor]:
        """Run the reference in chunks of bounded memory."""
        x, statics = _named(self.contract, args)
        out, lse = x["q"].new_empty(x["q"].shape), x["sink"].new_empty(x["q"].shape[:3])
        for piece in self._pieces(x, statics):
            at = piece.batch, piece.queries
            out[at], lse[at] = getattr(self.reference, self.name)(*piece.dense(x), *statics)
        return out, lse

    def chunked_bwd(self, *args: Any) -> tuple[Tensor, ...]:
        """Run the reference in chunks of bounded memory; round gradients that are sums over queries once."""
        x, statics = _named(self.backward, args)
        grad_q, sums = self._summed_over_chunks(f"{self.name}_bwd", x, statics)
        return grad_q, *(total.type_as(x[name]) for name, total in sums.items())

    def _chunked_shard_bwd(self, *args: Any) -> tuple[Tensor, ...]:
        """Run the reference in chunks of bounded memory; gradients that are sums over queries are not rounded."""
        grad_q, sums = self._summed_over_chunks(f"{self.name}_shard_bwd", *_named(self.shard_backward, args))
        return grad_q, *sums.values()

    def _summed_over_chunks(
        self, reference: str, x: dict[str, Tensor], statics: tuple[Any, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the gradient of q, and by name those that are sums over queries, of a backward of the reference."""
        q, sink = x["q"], x["sink"]
        grad_q, sums = q.new_empty(q.shape), {n: sink.new_zeros(x[n].shape) for n in _summed(self.backward)}
        wide = x | {name: x[name].type_as(sink) for name in sums}
        for piece in self._pieces(x, statics):
            parts = getattr(self.reference, reference)(*piece.dense(wide), *statics)
            grad_q[piece.batch, piece.queries], *more = parts
            for (name, total), part in zip(sums.items(), more, strict=True):
                piece.of(name, total).add_(part)
        return grad_q, sums

    def _pieces(self, x: dict[str, Tensor], statics: tuple[Any, ...]) -> Iterator[Piece]:
        """Yield as many queries of a sequence at a time as hold ``_CHUNK`` elements; at least one."""
        window = statics[-2]
        past = x["window_kv"].shape[1] - x["q"].shape[1]
        for b, s in chunks.pieces(x["q"], 0, max(_CHUNK // max(self.held(x, window), 1), 1)):
            yield Piece(b, s, slice(max(past + s.start - window + 1, 0), past + s.stop))


@dataclass(frozen=True)
class Calls:
    """The calls of an operator of the family: on a batch, on packed documents, and its backward for shards of the keys."""

    attention: Attention
    of_batch: Implementation
    packed: PackedCall
    shard_bwd: ShardBackward

    def __call__(
        self,
        q: Tensor,
        others: tuple[Tensor, ...],
        bounds: tuple[Tensor | None, ...],
        offset: int | Tensor,
        scale: float | None,
        **statics: int,
    ) -> tuple[Tensor, Tensor]:
        """Check a call and make it, on packed documents if there are bounds; ``statics`` are those before the scale."""
        scale, statics = plain(scale), {name: plain(value) for name, value in statics.items()}
        if any([bound is not None for bound in bounds]):  # noqa: C419  a list is faster than a generator
            return self.packed(q, *others, *bounds, offset=offset, **statics, scale=scale)  # type: ignore[no-any-return]
        at, scale = self.attention.prepared(q, others, offset, scale, **statics)
        return self.of_batch(q, *others, at, *statics.values(), scale)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Piece:
    """Slices of the batch, of its queries and of the rows that these have in their windows."""

    batch: slice
    queries: slice
    rows: slice

    def dense(self, tensors: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yield the part of each tensor that the piece needs, contiguous, so that strides do not change a bit."""
        yield from (self.of(name, tensor).contiguous() for name, tensor in tensors.items())

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """Return the piece's part of a tensor of the call, by its name."""
        if name == "sink":
            return tensor
        part = tensor[self.batch]
        if name == "offset":
            return part.add(self.queries.start)
        if name == "compressed_kv":
            return part
        return part[:, self.rows if name == "window_kv" else self.queries]


def _named(contract: Contract, args: tuple[Any, ...]) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """Return the tensors of a call by name, and its static parameters."""
    count = len(contract.inputs)
    return dict(zip((spec.name for spec in contract.inputs), args[:count], strict=True)), args[count:]


def _checked(contract: Contract, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """Return the tensors of a call by name, once the contract admits them; static parameters stand in its order."""
    x, statics = _named(contract, args)
    names = [name for name in ("ratio", "window", "scale") if name in contract.statics]
    contract.check(*x.values(), **dict(zip(names, statics, strict=True)))
    return x


def _fake(contract: Contract, *args: Any) -> tuple[Tensor, ...]:
    """Return results without numbers, once the contract admits the call."""
    x = _checked(contract, args)
    shapes = {"out": x["q"].shape, "lse": x["q"].shape[:3]} | {f"grad_{name}": t.shape for name, t in x.items()}
    return tuple(x["q"].new_empty(shapes[spec.name], dtype=spec.dtypes[0]) for spec in contract.outputs)


def _tensors(contract: Contract) -> tuple[str, ...]:
    """Return the names of the tensors of a call."""
    return tuple(spec.name for spec in contract.inputs)


def _summed(backward: Contract) -> list[str]:
    """Return the inputs whose gradients are sums over queries: all but q."""
    return [spec.name.removeprefix("grad_") for spec in backward.outputs[1:]]


def _idle(first: Tensor, *_: object) -> bool:
    return not first.numel()


def widened(launcher: Implementation) -> Implementation:
    """Return the launcher for narrow heads too: below 128 columns, which the kernels' roles share, zeros fill the rows up.

    In a kernel of 64 columns the compiler has two roles meet at one barrier, as the proofs found.
    """

    def call(q: Tensor, window_kv: Tensor, compressed_kv: Tensor, *others: Any) -> Any:
        missing = _NARROWEST - q.shape[-1]
        if missing <= 0:
            return launcher(q, window_kv, compressed_kv, *others)
        out, lse = launcher(*(pad(x, (0, missing)) for x in (q, window_kv, compressed_kv)), *others)
        return out[..., : q.shape[-1]].contiguous(), lse

    return call


def widened_backward(backward: Backward) -> Backward:
    """Return the backward for narrow heads too: zeros fill the columns up, and so do the gradients'."""

    def call(x: dict[str, Tensor], statics: tuple[Any, ...]) -> tuple[Tensor, ...]:
        width = x["q"].shape[-1]
        missing = _NARROWEST - width
        if missing <= 0:
            return backward(x, statics)
        wide = {"grad_out", "q", "window_kv", "compressed_kv", "out"}
        filled = {name: pad(t, (0, missing)) if name in wide else t for name, t in x.items()}
        *grads, grad_sink = backward(filled, statics)
        return *(grad[..., :width].contiguous() for grad in grads), grad_sink

    return call


def with_combine(factory: Callable[[Any], Any], cfg: Any) -> Iterator[Kernel]:
    """Yield a kernel and, where its config shares out the keys, the one that combines the parts."""
    from ..kernels.combine import combine
    from ..kernels.sparse_attention_config import Config

    yield factory, cfg
    if cfg.splits > 1:
        yield combine, Config(cfg.H, cfg.D, splits=cfg.splits)
