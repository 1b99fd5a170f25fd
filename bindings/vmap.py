"""Rules of torch.vmap: how one call of an operator computes many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Callable[..., Any]], Callable[..., tuple[Any, Any]]]
"""From an operator's overload to what ``torch.library.register_vmap`` takes."""


def merged(overload: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make the rule of an operator whose tensors all begin with a batch: the batch of torch.vmap is merged with it."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        moved = _in_front(info.batch_size, in_dims, args)
        sizes = info.batch_size, moved[0].shape[1]
        results = overload(*(a.flatten(0, 1) if isinstance(a, Tensor) else a for a in moved))
        if isinstance(results, tuple):
            return tuple(r.unflatten(0, sizes) for r in results), (0,) * len(results)
        return results.unflatten(0, sizes), 0

    return rule


def leading(overload: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make the rule of an operator that takes any leading dimensions: the batch is one more of them."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = overload(*_in_front(info.batch_size, in_dims, args))
        return results, (0,) * len(results) if isinstance(results, tuple) else 0

    return rule


def one_by_one(overload: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make the rule of an operator that has a tensor without a batch, such as the sink: a call for each."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        calls = [
            overload(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        results = tuple(map(torch.stack, zip(*calls, strict=True)))
        return results, (0,) * len(results)

    return rule


def _in_front(count: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """Return the arguments, each tensor with the batch of torch.vmap as its first dimension."""
    return [
        a if not isinstance(a, Tensor) else a.expand(count, *a.shape) if d is None else a.movedim(d, 0)
        for a, d in zip(args, in_dims, strict=True)
    ]
