"""How an operator enters torch: schema, CPU reference, CUDA kernel, fake, in one call."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Implementation = Callable[..., Any]


def _lazily(module: str, function: str) -> Implementation:
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


def define(
    name: str, schema: str, *, reference: Implementation, kernel: tuple[str, str], fake: Implementation
) -> Implementation:
    """Define ``torch.ops.lemmata.<name>`` and return its overload, bound once.

    Args:
        name: the operator's name.
        schema: arguments and results in torch's notation.
        reference: the CPU implementation; it runs without autograd, so that CPU behaves as CUDA does.
        kernel: module and function of the CUDA launcher, imported at the first CUDA call.
        fake: shapes and dtypes of the results, for torch.compile and torch.export.
    """
    qualified = f"lemmata::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, "CPU", torch.no_grad()(reference))
    torch.library.impl(qualified, "CUDA", _lazily(*kernel))
    torch.library.register_fake(qualified, fake)
    overload: Implementation = getattr(torch.ops.lemmata, name).default
    return overload


def wants_grad(*tensors: Tensor) -> bool:
    """Whether a derivative of a call on these tensors may be asked for.

    Besides requires_grad these are forward-mode tangents and the transforms of torch.func: the autograd function then
    answers, or raises where it has no rule. The bare operator would answer with a derivative of zero.
    """
    if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):  # noqa: C419  faster than a generator
        return True
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
