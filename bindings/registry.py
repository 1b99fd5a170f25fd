"""How an operator enters torch: schema, CPU reference, CUDA kernel, fake, in one call."""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Implementation = Callable[..., Any]


def lazily(module: str, function: str) -> Implementation:
    """The launcher, its module imported at the first call: importing lemmata must not import tilelang."""

    @functools.cache
    def launcher() -> Implementation:
        try:
            found: Implementation = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if error.name != "tilelang":
                raise
            raise RuntimeError(
                "CUDA tensors need TileLang: pip install 'lemmata[cuda]'; CPU tensors use the reference"
            ) from error
        return found

    def call(first: Tensor, *args: Any) -> Any:
        with torch.cuda.device(first.device):  # the launch goes to the current device
            return launcher()(first, *args)

    return call


def _unless(idle: Implementation, reference: Implementation, kernel: Implementation) -> Implementation:
    def call(*args: Any) -> Any:
        return reference(*args) if idle(*args) else kernel(*args)

    return call


def define(
    name: str,
    schema: str,
    *,
    reference: Implementation,
    kernel: tuple[str, str] | Implementation,
    fake: Implementation,
    idle: Implementation | None = None,
    batched: bool = False,
) -> Implementation:
    """Define ``torch.ops.lemmata.<name>`` and return its overload, bound once.

    Args:
        name: the operator's name.
        schema: arguments and results in torch's notation.
        reference: the CPU implementation; it runs without autograd, so that CPU behaves as CUDA does.
        kernel: module and function of the CUDA launcher, imported at the first CUDA call; or what CUDA runs instead.
        fake: shapes and dtypes of the results, for torch.compile and torch.export.
        idle: whether a call leaves a kernel nothing to do, so that the reference answers it on CUDA too.
        batched: the first dimension of every tensor is a batch, with which torch.vmap merges its own.
    """
    qualified = f"lemmata::{name}"
    torch.library.define(qualified, schema)
    reference = torch.no_grad()(reference)
    cuda = lazily(*kernel) if isinstance(kernel, tuple) else torch.no_grad()(kernel)
    torch.library.impl(qualified, "CPU", reference)
    torch.library.impl(qualified, "CUDA", _unless(idle, reference, cuda) if idle else cuda)
    torch.library.register_fake(qualified, fake)
    overload: Implementation = getattr(torch.ops.lemmata, name).default
    if batched:
        torch.library.register_vmap(qualified, _merging(overload))
    return overload


def _merging(overload: Implementation) -> Implementation:
    """The rule of torch.vmap for an operator whose tensors all begin with a batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        count = info.batch_size
        moved = [
            a if not isinstance(a, Tensor) else a.expand(count, *a.shape) if d is None else a.movedim(d, 0)
            for a, d in zip(args, in_dims, strict=True)
        ]
        sizes = count, moved[0].shape[1]
        results = overload(*(a.flatten(0, 1) if isinstance(a, Tensor) else a for a in moved))
        if isinstance(results, tuple):
            return tuple(r.unflatten(0, sizes) for r in results), (0,) * len(results)
        return results.unflatten(0, sizes), 0

    return rule


@functools.cache
def say_once(message: str) -> None:
    """Warn that something runs otherwise than a caller may expect, through the logger ``lemmata``."""
    logging.getLogger("lemmata").warning(message)


def wants_grad(*tensors: Tensor) -> bool:
    """Whether a derivative of a call on these tensors may be asked for.

    Besides requires_grad these are forward-mode tangents and the transforms of torch.func: the autograd function then
    answers, or raises where it has no rule. The bare operator would answer with a derivative of zero.
    """
    if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):  # noqa: C419  faster than a generator
        return True
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def checks_results() -> bool:
    """Whether LEMMATA_CHECK=1 asks that results be checked; what torch.compile has traced is not."""
    return not torch.compiler.is_compiling() and os.environ.get("LEMMATA_CHECK") == "1"
