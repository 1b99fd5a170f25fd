"""The backward of attention for a shard of the keys: others of the same queries are elsewhere, as in context parallelism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ..reference.contract import Contract
from .offset import for_each_sequence
from .packed import PackedCall
from .registry import check, plain

_WIDTHS = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class ShardBackward:
    """The backward of one operator, on a batch and on packed documents; both torch ops give gradients of keys in fp32."""

    contract: Contract
    of_batch: OpOverload
    packed: PackedCall

    def __call__(
        self,
        before: tuple[Tensor | None, ...],
        bounds: tuple[Tensor | None, ...],
        offset: int | Tensor,
        totals: tuple[Tensor, Tensor],
        kv_dtype: torch.dtype,
        scale: float | None,
        **statics: int,
    ) -> tuple[Tensor, ...]:
        """Check a call and make it.

        Args:
            before: the tensors before the bounds, the first two of them the gradients of the results; no gradient of lse
                is one of 0.
            bounds: those of packed documents, or None for each.
            offset: as the operators take it.
            totals: the lse and Δ of all keys.
            kv_dtype: the dtype of the gradients of the keys.
            scale: as the operators take it.
            statics: the static parameters before the scale.
        """
        op, (grad_out, grad_lse, q, *others) = self.contract.op, before
        scale, statics = plain(scale), {name: plain(value) for name, value in statics.items()}
        if kv_dtype not in _WIDTHS:
            raise TypeError(f"{op}: kv_dtype: expected torch.bfloat16 or torch.float32, got {kv_dtype}")
        if grad_lse is None and isinstance(grad_out, Tensor):
            grad_lse = grad_out.new_zeros(grad_out.shape[:-1], dtype=torch.float32)
        given = (grad_out, grad_lse, q, *others)
        if any(bound is not None for bound in bounds):
            grads = self.packed(*given, *bounds, *totals, offset=offset, **statics, scale=scale)
        else:
            grads = self._on_a_batch(given, offset, totals, scale, statics)
        return grads[0], *(grad.to(kv_dtype) for grad in grads[1:-1]), grads[-1]

    def _on_a_batch(
        self,
        before: tuple[Any, ...],
        offset: int | Tensor,
        totals: tuple[Tensor, Tensor],
        scale: float | None,
        statics: dict[str, int],
    ) -> tuple[Tensor, ...]:
        """Check a call on a batch and make it."""
        op, q = self.contract.op, before[2]
        if not isinstance(q, Tensor) or q.is_nested:
            kind = "a nested one" if isinstance(q, Tensor) else type(q).__name__
            raise TypeError(f"{op}: q: expected a strided tensor, got {kind}")
        tensors = (*before, for_each_sequence(op, offset, q), *totals)
        check(self.contract, *tensors, **statics, **({} if scale is None else {"scale": scale}))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return self.of_batch(*tensors, *statics.values(), scale)  # type: ignore[no-any-return]
