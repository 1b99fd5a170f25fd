"""References of operators that take each token by itself, run as operators: contiguous, or some tokens at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..reference.contract import Contract
from .registry import Implementation

TOKENS = 256  # of a chunk


def contiguous(reference: Implementation) -> Implementation:
    """Return the reference on contiguous tensors, so that strides change no bit, and results are contiguous."""

    @functools.wraps(reference)
    def call(*args: Any) -> Any:
        return reference(*(a.contiguous() if isinstance(a, Tensor) else a for a in args))

    return call


def in_chunks(contract: Contract, reference: Implementation) -> Implementation:
    """Return the reference on a fixed number of tokens at a time, zeros after the last.

    All products then have one shape, so that no bit of a token's results depends on how many others there are, and memory
    is bounded. A result without tokens is a sum over them, and the sums of the chunks are added in their order.
    """
    first = next(at for at, spec in enumerate(contract.inputs) if spec.leading)

    def chunks(tensors: tuple[Tensor, ...], count: int) -> Iterator[list[Tensor]]:
        for start in range(0, max(count, 1), TOKENS):
            parts = (
                _padded(tensor[start : start + TOKENS]) if spec.leading else tensor
                for spec, tensor in zip(contract.inputs, tensors, strict=True)
            )
            yield list(parts)

    @functools.wraps(reference)
    def call(*args: Any) -> Any:
        given, statics = args[: len(contract.inputs)], args[len(contract.inputs) :]
        leading = given[first].shape[: given[first].ndim - len(contract.inputs[first].dims)]
        count = leading.numel()
        tensors = tuple(
            tensor.reshape(count, *tensor.shape[len(leading) :]).contiguous() if spec.leading else tensor.contiguous()
            for spec, tensor in zip(contract.inputs, given, strict=True)
        )
        found = (reference(*parts, *statics) for parts in chunks(tensors, count))
        columns = zip(*(f if isinstance(f, tuple) else (f,) for f in found), strict=True)
        results = tuple(
            torch.cat(column)[:count].reshape(*leading, *column[0].shape[1:]) if spec.leading else _sum(column)
            for spec, column in zip(contract.outputs, columns, strict=True)
        )
        return results if len(results) > 1 else results[0]

    return call


def _padded(tensor: Tensor) -> Tensor:
    return pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, TOKENS - tensor.shape[0]))


def _sum(parts: tuple[Tensor, ...]) -> Tensor:
    """Add up parts, each to the sum of those before it."""
    return functools.reduce(torch.add, parts)
